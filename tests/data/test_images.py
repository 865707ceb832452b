"""Images that a record describes: told bands and radiometry, a file for each band, rows of HDF5 arrays."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import support
from described import CFG, ROW, SAR_ROW, SIDE, raster, record
from PIL import Image

from earthmind_jax.config import DataConfig, RunConfig
from earthmind_jax.data.check import check_records, file_problems
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.layout import measure
from earthmind_jax.data.pipeline import pipeline, training_buckets
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import parse_record, read_jsonl, record_values, write_jsonl
from earthmind_jax.data.tiles import MEAN, STD
from earthmind_jax.data.usable import require_files
from earthmind_jax.errors import UserError

DATA = DataConfig(batch_size=2, text_length=448)


def test_channels_are_named_and_calibrated_as_told(tmp_path, counts):
    raster(tmp_path / "o.tif", counts)
    power = np.random.default_rng(1).uniform(0.02, 0.2, (3, SIDE, SIDE)).astype(np.float32)
    raster(tmp_path / "s.tif", power)
    optical = {"file": "o.tif", "sensor": "s2_l2a", "bands": ["B02", "B3", "red", None], "offset": -100}
    sar = {"file": "s.tif", "sensor": "s1", "bands": ["VH", None, "VV"], "scale": "linear"}
    given = record(tmp_path, optical=optical, sar=sar)
    assert list(file_problems(given, CFG.sensors)) == []
    sample = load_record(given, CFG.sensors)
    assert set(sample.optical) == {"B04", "B03", "B02"}
    np.testing.assert_allclose(sample.optical["B04"][2, 5], (counts[2, 2, 5] - 100.0) / 10000, rtol=1e-6)
    np.testing.assert_allclose(sample.optical["B02"][9, 1], (counts[0, 9, 1] - 100.0) / 10000, rtol=1e-6)
    np.testing.assert_allclose(sample.sar["VV"], 10 * np.log10(power[2]), rtol=1e-5)
    np.testing.assert_allclose(sample.sar["VH"], 10 * np.log10(power[0]), rtol=1e-5)
    assert not sample.optical_valid[0, :3].any()
    assert sample.optical_valid.sum() == SIDE * SIDE - 3


def test_a_file_for_each_band_goes_onto_the_finest_grid_used(tmp_path):
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    ramp = (1000 + 40 * rows + 20 * columns).astype(np.uint16)
    for name in ("B02", "B03"):
        raster(tmp_path / f"p_{name}.tif", ramp[None], 10.0)
    coarse = ramp.reshape(SIDE // 2, 2, SIDE // 2, 2).mean((1, 3)).astype(np.uint16)
    coarse[0, 0] = 0
    raster(tmp_path / "p_B11.tif", coarse[None], 20.0)
    raster(tmp_path / "p_fine.tif", np.full((1, 4 * SIDE, 4 * SIDE), 7, np.uint16), 2.5)
    bands = {"B02": "p_B02.tif", "B03": "p_B03.tif", "B11": "p_B11.tif", "B01": "p_fine.tif"}
    given = record(tmp_path, optical={"bands": bands, "sensor": "s2_l2a", "offset": 0})
    sensors = dataclasses.replace(CFG.sensors, optical_bands=("B11", "B03", "B02"))
    assert list(file_problems(given, sensors)) == []
    sample = load_record(given, sensors)
    assert {band.shape for band in sample.optical.values()} == {(SIDE, SIDE)}
    seen = sample.optical_valid
    np.testing.assert_allclose(sample.optical["B02"][seen], ramp[seen] / 10000, rtol=1e-6)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(sample.optical["B11"][inside], ramp[inside] / 10000, atol=1e-4)  # bilinear, not nearest
    assert not sample.optical_valid[:2, :2].any()
    assert sample.optical_valid[3:, 3:].all()  # and the fill value bled nowhere
    assert sample.optical["B11"][sample.optical_valid].min() > 0.1
    with pytest.raises(UserError, match="has no band 'B04'"):
        load_record(given, CFG.sensors)
    assert "has no band 'B04'" in next(iter(file_problems(given, CFG.sensors)))


def test_a_pair_of_files_for_each_band(tmp_path, counts):
    for name, band in zip(("B02", "B03", "B04"), counts, strict=False):
        raster(tmp_path / f"{name}.tif", band[None])
    power = np.random.default_rng(1).uniform(0.02, 0.2, (2, SIDE // 2, SIDE // 2)).astype(np.float32)
    for name, band in zip(("VV", "VH"), power, strict=True):
        raster(tmp_path / f"{name}.tif", 10 * np.log10(band[None]), 20.0)
    optical = {"bands": {name: f"{name}.tif" for name in ("B02", "B03", "B04")}, "sensor": "s2_l2a", "offset": 0}
    given = record(tmp_path, optical=optical, sar={"bands": {"VV": "VV.tif", "VH": "VH.tif"}})
    sample = load_record(given, CFG.sensors)
    assert sample.sar["VV"].shape == (SIDE, SIDE)
    middle = 10 ** (sample.sar["VH"][10:12, 10:12] / 10)
    around = power[1, 4:7, 4:7]
    assert around.min() < middle.min() <= middle.max() < around.max()
    assert measure(given, CFG, DATA, support.tokenizer(), training_buckets(DATA)).shape == encoded(sample).shape


def encoded(sample):
    return encode_sample(sample, CFG, DATA, support.tokenizer(), training_buckets(DATA))


def test_rows_of_an_array(tmp_path, hdf5):
    given = record(tmp_path, optical=ROW, sar=SAR_ROW)
    assert list(file_problems(given, CFG.sensors)) == []
    require_files([given])
    sample = load_record(given, CFG.sensors)
    np.testing.assert_allclose(sample.optical["B04"], hdf5["sen2"][3, ..., 2], rtol=1e-6)
    np.testing.assert_allclose(sample.sar["VH"], 10 * np.log10(hdf5["sen1"][3, ..., 0]), rtol=1e-5)
    turned = load_record(record(tmp_path, optical=ROW | {"dataset": "chw", "axes": "CHW"}), CFG.sensors)
    np.testing.assert_array_equal(turned.optical["B03"], sample.optical["B03"])
    assert measure(given, CFG, DATA, support.tokenizer(), training_buckets(DATA)).shape == encoded(sample).shape


def test_stretched_to_a_picture(tmp_path):
    data = np.random.default_rng(3).integers(0, 2000, (4, 16, 20)).astype(np.uint16)
    data[:, 5, 5] = 0
    raster(tmp_path / "x.tif", data)
    written = {"file": "x.tif", "bands": ["B", None, "R", None], "stretch": [100, 1100], "nodata": 0}
    sample = load_record(record(tmp_path, sar=written), CFG.sensors)
    assert sample.sar.shape == (16, 20, 3)
    assert not sample.sar_valid[5, 5]
    seen = sample.sar_valid
    expected = np.rint(np.clip((data[[0, 2]].astype(float) - 100) / 1000, 0, 1) * 255)
    np.testing.assert_allclose(sample.sar[..., 0][seen], expected[0][seen], atol=1)
    np.testing.assert_allclose(sample.sar[..., 1][seen], expected[1][seen], atol=1)
    assert not sample.sar[..., 2].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_picture_of_all_channels(tmp_path, channels, dtype):
    data = np.random.default_rng(3).integers(0, 255, (channels, 16, 20)).astype(dtype)
    raster(tmp_path / "x.tif", data, None)
    given = record(tmp_path, optical={"file": "x.tif", "stretch": [0, 255]}, sar={"file": "x.tif", "stretch": [0, 510]})
    assert list(file_problems(given, CFG.sensors)) == []
    sample = load_record(given, CFG.sensors)
    full = np.concatenate([np.repeat(data, 3, 0) if channels == 1 else data, np.zeros_like(data[:1])])[:3]
    np.testing.assert_array_equal(np.moveaxis(sample.optical, -1, 0), full)
    np.testing.assert_allclose(np.moveaxis(sample.sar, -1, 0), full / 2, atol=0.51)


def test_what_is_measured_is_what_is_read(tmp_path, hdf5, counts):
    """Sizes from headers agree with those of the pixels, whatever the two images of a pair are."""
    raster(tmp_path / "map.tif", counts, 10.0)
    raster(tmp_path / "flat.tif", counts, None)
    raster(tmp_path / "eight.tif", np.full((3, 40, 60), 9, np.uint8), None)
    raster(tmp_path / "power.tif", np.full((2, 48, 48), 0.1, np.float32), 5.0)
    raster(tmp_path / "power_flat.tif", np.full((2, 70, 20), 0.1, np.float32), None)
    Image.fromarray(np.zeros((30, 10, 3), np.uint8)).save(tmp_path / "p.png")
    bands = {"bands": ["B02", "B03", "B04", None], "sensor": "s2_l2a"}
    polarised = {"bands": ["VV", "VH"], "sensor": "s1", "scale": "linear"}
    optical = [{"file": "map.tif", **bands}, {"file": "flat.tif", **bands}, "eight.tif", "p.png", ROW]
    sar = [{"file": "power.tif", **polarised}, {"file": "power_flat.tif", **polarised}, "p.png", SAR_ROW]
    sar += [{"file": "power.tif", "stretch": [0, 1]}, {"file": "power_flat.tif", "stretch": [0, 1]}]
    read, refused = 0, []
    for one in optical:
        for other in sar:
            given = record(tmp_path, optical=one, sar=other)
            measured = measure(given, CFG, DATA, support.tokenizer(), training_buckets(DATA))
            try:
                sample = load_record(given, CFG.sensors)
            except UserError as error:
                refused.append(str(error))
                continue
            read += 1
            assert measured.shape == encoded(sample).shape, (one, other)
            assert measured.grid == encoded(sample).grid
    assert read > 15
    assert all("the same size" in told or "give both one size" in told for told in refused)


def test_a_told_band_in_an_alpha_channel_masks_nothing(tmp_path):
    data = np.random.default_rng(3).integers(1, 255, (4, 16, 20)).astype(np.uint8)
    data[3, :8] = 0
    raster(tmp_path / "x.tif", data, photometric="RGB", ALPHA="YES")
    colour = {"file": "x.tif", "bands": ["R", "G", "B", None]}
    infrared = {"file": "x.tif", "bands": [None, "R", "G", "N"]}
    assert load_record(record(tmp_path, optical=colour), CFG.sensors).optical_valid[:8].sum() == 0
    sample = load_record(record(tmp_path, optical=infrared), CFG.sensors)
    assert sample.optical_valid.all()
    np.testing.assert_array_equal(np.moveaxis(sample.optical, -1, 0), data[1:])


def test_dates_of_every_form(tmp_path, counts, hdf5):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "p.png")
    row = ROW | {"stretch": [0, 0.3]}
    del row["unit"]
    given = record(tmp_path, optical=["p.png", row, row | {"row": 1}], sar=SAR_ROW)
    assert list(file_problems(given, CFG.sensors)) == []
    sample = load_record(given, CFG.sensors)
    assert [picture.shape for picture in sample.optical] == [(8, 8, 3)] * 3
    example = encoded(sample)
    assert (example.dates, len(example.pixels["sar"])) == (3, 3)
    assert given.dates == 3
    raster(tmp_path / "o.tif", counts)
    other = record(tmp_path, optical=[ROW, {"file": "o.tif", "bands": ["B02", "B03", "B04", None], "sensor": "s2_l2a"}])
    with pytest.raises(UserError, match=r"o\.tif' lies on another grid"):
        load_record(other, CFG.sensors)


def test_a_plain_path_beside_a_described_one(tmp_path, counts, hdf5):
    raster(tmp_path / "o.tif", counts, descriptions=("B02", "B03", "B04", "B08"))
    raster(tmp_path / "grey.tif", np.full((1, 9, 9), 128, np.uint8), None)
    sar = {"file": "s.tif", "bands": ["VV", "VH"], "scale": "amplitude", "sensor": "s1"}
    raster(tmp_path / "s.tif", np.full((2, SIDE * 2, SIDE * 2), 0.5, np.float32), 5.0)
    given = record(tmp_path, optical="o.tif", sar=sar)
    sample = load_record(given, CFG.sensors)
    np.testing.assert_allclose(sample.sar["VV"], 20 * np.log10(0.5), rtol=1e-5)
    assert sample.sar["VV"].shape == (SIDE, SIDE)
    alone = load_record(record(tmp_path, optical="o.tif"), CFG.sensors)
    np.testing.assert_array_equal(sample.optical["B04"], alone.optical["B04"])
    picture = load_record(record(tmp_path, optical=ROW, sar="grey.tif"), CFG.sensors)
    assert picture.sar.shape == (9, 9, 3)
    plain = record(tmp_path, optical=ROW, sar="s.tif")
    with pytest.raises(UserError, match="without a georeference; give both one size"):
        load_record(plain, CFG.sensors)


def test_records_with_described_images_are_written_as_they_were(tmp_path, hdf5):
    given = record(tmp_path, optical=[ROW, "p.png"], sar={"bands": {"VV": "v.tif", "VH": "h.tif"}, "scale": "dB"})
    write_jsonl(tmp_path / "r.jsonl", [given])
    (again,) = read_jsonl(tmp_path / "r.jsonl")
    assert again == given
    assert record_values(again)["optical"] == [ROW, "p.png"]
    assert again.paths("sar") == (tmp_path / "v.tif", tmp_path / "h.tif")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_rows(tmp_path, hdf5, workers):
    turns = [{"question": "Where is it?", "answer": "[SEG]", "mask": [[0, 0, 8, 0, 8, 4, 0, 4]]}]
    lines = [{"id": i, "optical": ROW | {"row": i}, "sar": SAR_ROW | {"row": i}, "turns": turns} for i in range(4)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check_records(tmp_path / "r.jsonl", CFG, DATA, support.tokenizer(), pixels=True)
    assert (report.problems, report.counts["masks"]) == ((), 4)
    data = dataclasses.replace(RunConfig().data, batch_size=2, text_length=448, workers=workers)
    options = {"shuffle": False, "augment": False, "epochs": 1}
    batches = list(pipeline(read_jsonl(tmp_path / "r.jsonl"), CFG, data, support.tokenizer(), **options))
    assert len(batches) == 2
    expected = encoded(load_record(record(tmp_path, optical=ROW, sar=SAR_ROW), CFG.sensors)).pixels["sar"][0]
    np.testing.assert_allclose(np.asarray(batches[1].sar[1, 0]) * STD + MEAN, expected / 255, atol=1e-5)


def test_a_label_value_is_a_mask(tmp_path):
    labels = np.array([[0, 40, 40], [10, 50, 0]], np.uint8)
    raster(tmp_path / "lbl.tif", labels[None], None)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "p.png")
    turn = {"question": "Where?", "answer": "[SEG] [SEG]"}
    turn["masks"] = [{"file": "lbl.tif", "value": 40}, {"file": "lbl.tif", "value": [10, 50]}]
    sample = load_record(parse_record({"id": 1, "optical": "p.png", "turns": [turn]}, "r", tmp_path), CFG.sensors)
    np.testing.assert_array_equal(sample.turns[0].mask, [labels == 40, (labels == 10) | (labels == 50)])
    for wrong in ({"file": "lbl.tif"}, {"file": "lbl.tif", "value": "a"}, {"file": 3, "value": 1}):
        bad = parse_record({"id": 1, "optical": "p.png", "turns": [turn | {"masks": [wrong] * 2}]}, "r", tmp_path)
        with pytest.raises(UserError, match="a label mask is"):
            load_record(bad, CFG.sensors)


def test_images_are_small_and_travel_to_workers(tmp_path):
    given = record(tmp_path, optical=ROW, sar=SAR_ROW)
    assert pickle.loads(pickle.dumps(given)).images("sar") == given.images("sar")


@pytest.mark.parametrize("form", ["one file", "a file for each band"])
@pytest.mark.parametrize("case", ["landsat", "hh_hv", "hh", "thermal"])
def test_bands_of_another_sensor_are_taken_as_from_a_plain_path(tmp_path, case, form):
    """Landsat's bands, HH and HV, HH alone and a thermal band: what the same file gives without a description."""
    rng = np.random.default_rng(3)
    kind, names, told = {
        "landsat": ("optical", ["SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"], {"sensor": "landsat_l2"}),
        "thermal": ("optical", ["ST_B10"], {"sensor": "landsat_l2"}),
        "hh_hv": ("sar", ["HH", "HV"], {"sensor": "sar_x", "unit": "dB"}),
        "hh": ("sar", ["HH"], {"sensor": "sar_x", "unit": "dB"}),
    }[case]
    if kind == "optical":
        values = rng.integers(8000, 20000 if case == "landsat" else 45000, (len(names), SIDE, SIDE)).astype(np.uint16)
        values += 20000 if case == "thermal" else 0
    else:
        values = rng.normal(-12, 4, (len(names), SIDE, SIDE)).astype(np.float32)
    sensors = dataclasses.replace(CFG.sensors, optical_bands=("B04", "B03", "B02"), sar_bands=("VV", "VH"))
    file = raster(tmp_path / "x.tif", values, descriptions=names, tags={"scale": "dB"} if kind == "sar" else {})
    plain = load_record(record(tmp_path, **{kind: file}), sensors)
    if form == "one file":
        described = {"file": file, "bands": names}
    else:
        parts = zip(names, values, strict=True)
        described = {"bands": {name: raster(tmp_path / f"{name}.tif", part[None]) for name, part in parts}}
    told = {"sensor": told["sensor"]} | ({"scale": told["unit"]} if kind == "sar" else {})
    made = load_record(record(tmp_path, **{kind: described | told}), sensors)
    ours, theirs = (getattr(sample, kind) for sample in (made, plain))
    assert set(ours) == set(theirs) == set(sensors.optical_bands if kind == "optical" else sensors.sar_bands)
    for band in theirs:
        np.testing.assert_allclose(ours[band], theirs[band], rtol=1e-6)
    assert np.ptp(next(iter(ours.values()))) > 0
    assert next(file_problems(record(tmp_path, **{kind: described | told}), sensors), None) is None
