"""Readers of multi-band and SAR data sets: from the published layout to encoded samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
import support

from earthmind_jax.config import DataConfig
from earthmind_jax.data import datasets
from earthmind_jax.data.check import check_records
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.pipeline import training_buckets
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import Sample
from earthmind_jax.errors import UserError

CFG = dataclasses.replace(support.model(), sensors=dataclasses.replace(support.model().sensors, max_tiles=4))
CFG = dataclasses.replace(CFG, max_length=4096)
DATA = DataConfig(batch_size=2, text_length=2048)


def samples(root: Path, split: str | None = None, name: str | None = None) -> list[Sample]:
    """Every line of a data set through the whole road; all are good and fit a batch."""
    made = []
    for line in datasets.read(root, name, split):
        assert line.problems == ()
        sample = load_record(line.record, CFG.sensors)
        example = encode_sample(sample, CFG, DATA, support.tokenizer(), training_buckets(DATA))
        assert set(example.pixels) == {sensor for sensor in support.BOTH if sample.images(sensor)}
        made.append(sample)
    return made


def asked(sample: Sample) -> dict[str, str | None]:
    return {turn.question: turn.answer for turn in sample.turns}


def masked(sample: Sample, phrase: str) -> np.ndarray:
    """The mask of the one turn whose question has the phrase and whose answer a [SEG]."""
    (turn,) = [t for t in sample.turns if phrase in t.question and "[SEG]" in (t.answer or "")]
    return turn.mask


@pytest.mark.parametrize("make", layouts.LAYOUTS, ids=lambda make: make.__name__)
def test_every_layout_is_known_from_every_other(tmp_path, make):
    if make is layouts.bigearthnet_v2:
        pytest.importorskip("pyarrow")
    make(tmp_path)
    assert datasets.recognise(tmp_path) == make.__name__
    dataset = datasets.get(make.__name__)
    report = check_records(tmp_path, CFG, DATA, support.tokenizer(), pixels=True)
    assert report.problems == ()
    assert report.counts["lines"] > 0
    assert all([dataset.title, dataset.licence, dataset.source, dataset.layout.strip(), dataset.splits])
    with pytest.raises(UserError, match="Unknown split of"):
        list(datasets.read(tmp_path, make.__name__, "another"))
    ids = [line.record.id for line in datasets.read(tmp_path)]
    assert ids == [line.record.id for line in datasets.read(tmp_path)]
    assert len(set(ids)) == len(ids)


def test_bigearthnet_v1(tmp_path):
    made = layouts.bigearthnet_v1(tmp_path)
    first, second = samples(tmp_path)
    assert first.id == layouts.V1[0][0]
    np.testing.assert_allclose(first.optical["B04"], made[0]["B04"] / 10000, rtol=1e-6)
    np.testing.assert_array_equal(first.sar["VH"], made[0]["VH"])
    (answer,) = asked(first).values()
    assert answer == "Arable land; Pastures; Marine waters"
    assert asked(second) == {"What land cover does the image show?": "Airports"}
    (third,) = samples(tmp_path, "val")
    ((question, answer),) = asked(third).items()
    assert answer == "Permanent crops"
    assert question.count(";") == 18
    every = samples(tmp_path, "all")
    assert sorted(sample.id for sample in every) == sorted(s2 for s2, _ in layouts.V1)
    for folder in (tmp_path / "BigEarthNet-S1-v1.0").rglob("*"):
        folder.unlink() if folder.is_file() else None
    (tmp_path / "BigEarthNet-S1-v1.0").rename(tmp_path / "elsewhere")
    alone = samples(tmp_path, "all")
    assert [sample.sar for sample in alone] == [None] * 3


def test_bigearthnet_v1_bands_of_other_sizes(tmp_path):
    made = layouts.bigearthnet_v1(tmp_path)
    line = next(iter(datasets.read(tmp_path)))
    sensors = dataclasses.replace(CFG.sensors, optical_bands=("B12", "B01", "B03"))
    sample = load_record(line.record, sensors)
    assert {band.shape for band in sample.optical.values()} == {(24, 24)}
    # a 20 m pixel covers four of 10 m; bilinear resampling keeps the mean to within the outer rim
    assert abs(sample.optical["B12"].mean() - made[0]["B12"].mean() / 10000) < 0.01
    coarse = load_record(line.record, dataclasses.replace(sensors, optical_bands=("B12", "B11", "B01")))
    assert coarse.optical["B12"].shape == (12, 12)
    np.testing.assert_allclose(coarse.optical["B12"], made[0]["B12"] / 10000, rtol=1e-6)


def test_bigearthnet_v2(tmp_path):
    pytest.importorskip("pyarrow")
    made = layouts.bigearthnet_v2(tmp_path)
    (first,) = samples(tmp_path)
    np.testing.assert_allclose(first.optical["B02"], made[0]["B02"] / 10000, rtol=1e-6)  # no offset, despite N9999
    np.testing.assert_array_equal(first.sar["VV"], made[0]["VV"])
    np.testing.assert_array_equal(masked(first, "urban fabric"), np.isin(made[0]["map"], (111, 112)))
    np.testing.assert_array_equal(masked(first, "inland waters"), made[0]["map"] == 512)
    assert first.turns[0].answer == "Urban fabric; Arable land; Inland waters"
    (test,) = samples(tmp_path, "test")
    assert masked(test, "moors").all()
    assert samples(tmp_path, "validation") == []


def test_so2sat(tmp_path):
    made = layouts.so2sat_lcz42(tmp_path)
    found = samples(tmp_path)
    assert len(found) == 5
    np.testing.assert_allclose(found[3].optical["B04"], made["sen2"][3, ..., 2], rtol=1e-6)
    np.testing.assert_allclose(found[3].optical["B02"], made["sen2"][3, ..., 0], rtol=1e-6)
    np.testing.assert_allclose(found[3].sar["VH"], 10 * np.log10(made["sen1"][3, ..., 4]), rtol=1e-5)
    np.testing.assert_allclose(found[3].sar["VV"], 10 * np.log10(made["sen1"][3, ..., 5]), rtol=1e-5)
    assert [next(iter(asked(s).values())) for s in found[:3]] == [
        "Compact high-rise",
        "Open high-rise",
        "Lightweight low-rise",
    ]
    infrared = dataclasses.replace(CFG.sensors, optical_bands=("B12", "B8A", "B05"))
    line = next(iter(datasets.read(tmp_path)))
    np.testing.assert_allclose(load_record(line.record, infrared).optical["B12"], made["sen2"][0, ..., 9], rtol=1e-6)
    layouts.so2sat_lcz42(tmp_path, "block/testing.h5", rows=2)
    assert [s.id for s in samples(tmp_path, "block/testing")] == ["block/testing-0", "block/testing-1"]
    with pytest.raises(UserError, match=r"There is no '.*validation.h5'; the splits .* training, block/testing"):
        list(datasets.read(tmp_path, None, "validation"))


def test_spacenet6(tmp_path):
    made = layouts.spacenet6(tmp_path)
    first, second = samples(tmp_path)
    scaled = np.clip((made[0] - 10) / 50, 0, 1) * 255
    seen = first.sar_valid
    assert (seen[:, :3].any(), seen[:, 3:].all()) == (False, True)
    for channel, band in enumerate((0, 1, 3)):  # HH, HV, VV
        np.testing.assert_allclose(first.sar[..., channel][seen], scaled[band][seen], atol=0.51)
    assert first.optical.shape == (30, 26, 3)
    mask = masked(first, "buildings")
    expected = np.zeros((30, 26), bool)
    expected[6:14, 4:12] = expected[16:24, 16:24] = True
    expected[18:22, 18:22] = False  # a courtyard
    np.testing.assert_array_equal(mask, expected)
    assert first.turns[0].question == "The radar looked from the north. How many buildings are in the image?"
    assert first.turns[0].answer == "2"
    assert asked(second) == {"The radar looked from the south. How many buildings are in the image?": "0"}
    (test,) = samples(tmp_path, "test")
    assert (test.optical, test.turns[0].answer) == (None, None)


def test_spacenet6_with_names_in_capitals(tmp_path):
    layouts.spacenet6(tmp_path)
    for path in (tmp_path / "train").rglob("*.tif"):
        path.rename(path.with_suffix(".TIF"))
    assert [sample.optical.shape for sample in samples(tmp_path)] == [(30, 26, 3)] * 2


def test_spacenet6_with_a_sliver_of_a_building(tmp_path):
    layouts.spacenet6(tmp_path)
    (labels,) = (tmp_path / "train/AOI_11_Rotterdam/geojson_buildings").glob("*_tile_8680.geojson")
    sliver = layouts.square(12.9, 4.6, 0.1)  # of half a metre's pixel, but not over its centre
    labels.write_text(json.dumps({"type": "FeatureCollection", "features": [sliver]}))
    _, second = samples(tmp_path)
    assert np.argwhere(masked(second, "buildings")).tolist() == [[9, 25]]
    assert second.turns[0].answer == "1"


def test_spacenet6_with_counts_in_four_bands(tmp_path):
    layouts.spacenet6(tmp_path)
    folder = tmp_path / "train" / "AOI_11_Rotterdam"
    for path in (folder / "PS-RGB").iterdir():
        counts = layouts.random(1).integers(1, 2047, (4, 30, 26)).astype(np.uint16)
        layouts.tif(folder / "PS-RGBNIR" / path.name.replace("PS-RGB", "PS-RGBNIR"), counts, 0.5)
        path.unlink()
    (folder / "PS-RGB").rmdir()
    first, _ = samples(tmp_path)
    np.testing.assert_allclose(first.optical[..., 2], counts[2] / 2047 * 255, atol=0.51)
    assert masked(first, "buildings").sum() == 64 + 48


def test_dfc2023(tmp_path):
    layouts.dfc2023_track2(tmp_path)
    first, second = samples(tmp_path)
    mask = masked(first, "buildings")
    assert mask.shape == (34, 40)
    assert (mask[3:8, 2:9].all(), mask[10:30, 20:29].all(), mask.sum()) == (True, True, 5 * 7 + 20 * 9)
    assert first.turns[0].answer == "2"
    assert [turn.answer for turn in second.turns] == ["0"]
    (unanswered,) = samples(tmp_path, "val")
    assert unanswered.turns[0].answer is None
    path = tmp_path / "annotations" / "buildings_only_train.json"
    told = json.loads(path.read_text())
    told["annotations"][1]["segmentation"] = {"size": [34, 40], "counts": [0, 34 * 40]}
    path.write_text(json.dumps(told))
    assert masked(samples(tmp_path)[0], "buildings").all()


@pytest.mark.parametrize(("folders", "factor", "split"), [
    (("optical", "sar", "lbl"), 10, "all"), (("train/opt", "train/sar", "train/lbl"), 1, "train"),
])  # fmt: skip
def test_whu_opt_sar(tmp_path, folders, factor, split):
    labels = layouts.whu_opt_sar(tmp_path, folders, factor)
    (sample,) = samples(tmp_path, split)
    np.testing.assert_array_equal(masked(sample, "water"), labels == 4 * factor)
    np.testing.assert_array_equal(masked(sample, "farmland"), labels == factor)
    assert sample.turns[0].answer == "farmland; water"
    assert sample.optical_valid.all()  # where the infrared is 0, too, though it is written as what GDAL calls alpha
    np.testing.assert_array_equal(
        np.moveaxis(sample.optical, -1, 0), layouts.random(70).integers(0, 255, (4, 37, 55))[:3]
    )


@pytest.mark.parametrize(("dtype", "most"), [("uint16", 1000), ("float32", 1)])
def test_whu_opt_sar_of_more_than_8_bits(tmp_path, dtype, most):
    layouts.whu_opt_sar(tmp_path)
    for folder, count in (("optical", 4), ("sar", 1)):
        values = layouts.random(count).uniform(0.05, 0.5, (count, 37, 55)) * most
        layouts.tif(tmp_path / folder / "NH49E001013.tif", values.astype(dtype), 5.0)
    (sample,) = samples(tmp_path)
    assert sample.optical["B04"].mean() > 0
    assert -40 < sample.sar["VV"].mean() < 10  # dB


def test_whu_opt_sar_by_the_authors_division(tmp_path):
    layouts.whu_opt_sar(tmp_path)
    listed = "train:\r\nNH49E001013.tif\r\n\r\ntest:\r\nNI49E1.tif\r\n"
    (tmp_path / "The division of the dataset.txt").write_text(listed)
    assert [sample.id for sample in samples(tmp_path, "train")] == ["NH49E001013"]
    (missing,) = datasets.read(tmp_path, None, "test")
    assert "NI49E1.tif" in missing.problems[0]
    with pytest.raises(UserError, match=r"names no scenes for the split val; it has test, train\."):
        list(datasets.read(tmp_path, None, "val"))


def test_dfc2023_as_it_is_unpacked(tmp_path):
    layouts.dfc2023_track2(tmp_path)
    (tmp_path / "annotations/buildings_only_train.json").rename(tmp_path / "buildings_only_train.json")
    (tmp_path / "annotations").rmdir()
    (tmp_path / "train/height").rename(tmp_path / "train/dsm")
    for path in tmp_path.glob("*/sar/*.tif"):
        layouts.tif(path, layouts.random(1).gamma(1, 0.18, (1, 34, 40)).astype(np.float32), None)
    assert datasets.recognise(tmp_path) == "dfc2023_track2"
    first, _ = samples(tmp_path)
    assert (first.turns[0].answer, masked(first, "buildings").shape) == ("2", (34, 40))
    assert (first.sar["VV"] < 3).all()  # dB
    assert len(samples(tmp_path, "val")) == 1


def test_open_earth_map_sar(tmp_path):
    labels = layouts.open_earth_map_sar(tmp_path)
    (sample,) = samples(tmp_path)
    np.testing.assert_array_equal(masked(sample, "building"), labels == 8)
    assert sample.turns[0].answer == "water; building"
    (kept_back,) = samples(tmp_path, "val")
    assert (kept_back.optical, kept_back.turns[0].answer) == (None, None)
    flat = datasets.read(tmp_path / "train", "open_earth_map_sar")
    assert [line.record.id for line in flat] == ["TrainArea_001"]


def test_multi_res_sar(tmp_path):
    layouts.multi_res_sar(tmp_path)
    (sample,) = samples(tmp_path)
    assert "shifted" in sample.turns[0].question
    assert sample.turns[0].answer is None
    assert sample.optical.shape == sample.sar.shape == (31, 45, 3)
    assert [s.id for s in samples(tmp_path, "low")] == ["low-1"]


def test_sar_ship(tmp_path):
    layouts.sar_ship(tmp_path)
    ships, empty = samples(tmp_path)
    assert ships.turns[0].answer == "[[38, 19, 62, 31, 0], [80, 80, 100, 100, 0]]"
    assert "bounding box" in ships.turns[1].question
    first, second = ships.turns[1].masks
    expected = np.zeros((64, 64), bool)
    expected[12:20, 24:40] = True
    np.testing.assert_array_equal(first, expected)
    assert (second[51:, 51:].all(), second.sum()) == (True, 13 * 13)
    assert [turn.answer for turn in empty.turns] == ["There are no ships."]
    nested = tmp_path / "ship_dataset_v0" / "ship_dataset_v0"
    nested.mkdir()
    for path in [p for p in nested.parent.iterdir() if p.is_file()]:
        path.rename(nested / path.name)
    assert len(samples(tmp_path)) == 2
    assert len(samples(nested)) == 2


def test_what_has_no_partner_is_told(tmp_path):
    layouts.sar_ship(tmp_path / "ships")
    folder = tmp_path / "ships/ship_dataset_v0"
    (folder / "Gao_ship_hh_0201608254404.jpg").unlink()
    (folder / "classes.txt").write_text("ship")
    whole, alone = datasets.read(tmp_path / "ships")
    assert (whole.problems, alone.problems) == ((), (": there is no chip that these boxes are of.",))
    layouts.whu_opt_sar(tmp_path / "whu")
    layouts.tif(tmp_path / "whu/optical/NI50E1.tif", np.ones((4, 9, 9), np.uint8), 5.0)
    whole, alone = datasets.read(tmp_path / "whu")
    assert (whole.problems, "there is no SAR image" in alone.problems[0]) == ((), True)
    layouts.open_earth_map_sar(tmp_path / "oem")
    (tmp_path / "oem/train/labels").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="train' has no folder labels, the label maps of OpenEarthMap-SAR"):
        list(datasets.read(tmp_path / "oem"))


def test_fusion_eo(tmp_path):
    layouts.fusion_eo(tmp_path)
    first, second = samples(tmp_path)
    assert asked(first) == {"<image>\nIs there a river in the image?": "Yes"}
    assert asked(second) == {"<image>\nWhat crosses the river?": "Eine Brücke.", "How many?": "1"}
    assert first.sar.shape == (40, 52, 3)


def test_fusion_eo_without_its_outer_folders(tmp_path):
    layouts.fusion_eo(tmp_path)
    for path in (tmp_path / "pair_data/train").iterdir():
        path.rename(tmp_path / path.name)
    assert datasets.recognise(tmp_path) == "fusion_eo"
    assert [line.record.optical for line in datasets.read(tmp_path)] == ["rgb/img/000123.png", "rgb/img/brücke.png"]


def test_fusion_eo_beside_other_parts_is_earthmind_data(tmp_path):
    layouts.fusion_eo(tmp_path)
    (tmp_path / "final_all.json").rename(tmp_path / "pair_data" / "train" / "final_all.json")
    assert datasets.recognise(tmp_path) == "fusion_eo"
    alone = [line.record.turns for line in datasets.read(tmp_path)]
    part = tmp_path / "vrsbenchvqa" / "annotations" / "vqatrain.json"
    part.parent.mkdir(parents=True)
    part.write_text("[]")
    assert datasets.recognise(tmp_path) == "earthmind_data"
    assert [line.record.turns for line in datasets.read(tmp_path)] == alone
