"""Large scenes from file to file: the same answer as in memory, for any size, whatever the windows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import scenes
from affine import Affine
from rasterio.windows import Window
from support import run
from swaths import flat_at, lattice, leaning, written

from earthmind_jax import checkpoint
from earthmind_jax.config import SensorConfig
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.infer import overview as overview_module
from earthmind_jax.infer.overview import look_side, overview
from earthmind_jax.infer.scene import window_note
from earthmind_jax.infer.scene_ask import ask_large
from earthmind_jax.infer.scene_read import SceneReader


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_the_same_as_in_memory(pair, whole):
    """The road for large scenes and that for images in memory draw the same masks at the same places."""
    for i, target in enumerate(scenes.TARGETS, 1):
        small = scenes.model().segment(target, **pair)
        percent = read(whole.out / f"mask_{i}_probability.tif")
        drawn = small.masks[0]
        assert drawn.probability.std() > 0.01
        assert np.abs(percent / 100 - drawn.probability)[drawn.valid].max() < 0.02
        np.testing.assert_array_equal(percent == 255, ~drawn.valid)
        agree = (read(whole.out / f"mask_{i}.tif") == 1) == drawn.array
        assert agree[drawn.valid].mean() > 0.995
        shares = whole.answer["masks"][i - 1]["fusion"]
        assert shares["sar"] == pytest.approx(small.sensor_shares["sar"], abs=0.02)
        assert shares["sar"] + shares["optical"] == pytest.approx(1)


def test_what_is_written(pair, whole):
    answer = json.loads((whole.out / "answer.json").read_text())
    assert answer == whole.answer
    assert sorted(answer["files"]) == sorted(p.name for p in whole.out.iterdir())
    with rasterio.open(pair["optical"]) as optical:
        for i in (1, 2):
            for name in (f"mask_{i}", f"mask_{i}_probability"):
                with rasterio.open(whole.out / f"{name}.tif") as dataset:
                    assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                    assert (dataset.transform, dataset.crs, dataset.shape) == (
                        optical.transform, optical.crs, optical.shape,
                    )  # fmt: skip
                    assert scenes.TARGETS[i - 1] in dataset.tags()["prompt"]
            mask, percent = (read(whole.out / f"mask_{i}{end}.tif") for end in ("", "_probability"))
            np.testing.assert_array_equal(mask == 1, (percent > 50) & (percent != 255))
            assert answer["masks"][i - 1]["pixels"] == (mask == 1).sum()
            with rasterio.open(whole.out / f"mask_{i}_sar_weight.tif") as weight:
                cell = scenes.model().config.sensors.window / scenes.model().config.vision.grid
                assert weight.transform.a == pytest.approx(optical.transform.a * cell)
                assert weight.read(1).max() <= 100
    features = json.loads((whole.out / "mask_1.geojson").read_text())["features"]
    area = sum(f["properties"]["area_m2"] for f in features)
    assert area == pytest.approx(answer["masks"][0]["pixels"] * 100, rel=0.01)


def test_several_targets_are_each_what_they_are_alone(pair, whole, tmp_path):
    alone = scenes.draw(pair, tmp_path / "alone", targets=scenes.TARGETS[1:])
    several = read(whole.out / "mask_2_probability.tif").astype(int)
    assert np.abs(several - read(alone.out / "mask_1_probability.tif")).max() <= 1


def test_an_overview_is_the_mean_of_the_scene_in_its_place(pair):
    """Of the whole and of a window, whatever the parts that it is read in; nodata takes no part."""
    reader = SceneReader(pair, scenes.model().config.sensors)
    images = load_images(pair, scenes.model().config.sensors)
    reader.strips = [[Window(x, y, min(64, 150 - x), min(37, 101 - y)) for x in (0, 64, 128)] for y in (0, 37, 74)]
    for window in (None, (slice(7, 90), slice(30, 131))):
        part = images if window is None else images.crop(window)
        seen = overview(reader, 30, window)
        (height, width), (rows, columns) = part.shape, seen.shape
        assert max(rows, columns) == 30
        assert seen.scale == (height / rows, width / columns)
        cells = [((np.arange(n) + 0.5) * m // n).astype(int) for n, m in ((height, rows), (width, columns))]
        weights = [cell == np.arange(m)[:, None] for cell, m in zip(cells, (rows, columns), strict=True)]
        for name, (bands, valid) in part.pictures.items():
            count = weights[0] @ valid.astype(float) @ weights[1].T
            area = np.outer(weights[0].sum(1), weights[1].sum(1))
            np.testing.assert_array_equal(seen.pictures[name][1], (count >= 0.5 * area) & (count > 0))
            for band, values in bands.items():
                power = 10 ** (values.astype(float) / 10) if name == "sar" else values.astype(float)
                mean = weights[0] @ np.where(valid, power, 0) @ weights[1].T / np.maximum(count, 1)
                known = seen.pictures[name][1]
                mean = (10 * np.log10(np.where(known, mean, 1)) if name == "sar" else mean)[known]
                np.testing.assert_allclose(seen.pictures[name][0][band][known], mean, atol=1e-4)
        for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):  # exactly the same ground
            there = seen.transform @ (corner[0] * columns, corner[1] * rows)
            assert there == pytest.approx(part.transform @ (corner[0] * width, corner[1] * height), abs=1e-6)


def test_a_question_about_a_large_image(pair, whole, tmp_path, monkeypatch):
    """Words from a view of the whole, the mask at full resolution."""
    monkeypatch.setattr(overview_module, "PICTURED", 16)
    question, side = whole.answer["run"]["questions"][1], look_side(scenes.model().config)
    answer, drawn = ask_large(scenes.model(), question, **pair, out=tmp_path / "out", max_new=6)
    assert max(answer.masks[0].probability.shape) == side < 150
    assert "segment_scene" in answer.notes[-1]
    several = read(whole.out / "mask_2_probability.tif").astype(int)
    assert np.abs(several - read(drawn.out / "mask_1_probability.tif")).max() <= 1


@pytest.mark.parametrize("size", [(20, 20), (33, 17), (16, 97)])
def test_odd_sizes(size, tmp_path):
    """Smaller than a window, one pixel more than a window, narrow."""
    pair = scenes.write(tmp_path, "odd", size)
    made = scenes.draw(pair, tmp_path / "out", targets=("lake",), weights=True)
    (mask,) = scenes.model().segment("lake", **pair).masks
    percent = read(made.out / "mask_1_probability.tif")
    assert percent.shape == size
    assert np.abs(percent / 100 - mask.probability)[mask.valid].max() < 0.011
    np.testing.assert_array_equal(percent == 255, ~mask.valid)
    with rasterio.open(made.out / "mask_1_sar_weight.tif") as weight, rasterio.open(pair["optical"]) as optical:
        cells = [min(32, length) / scenes.model().config.vision.grid for length in size]
        assert (weight.transform.a, -weight.transform.e) == pytest.approx((10 * cells[1], 10 * cells[0]))
        assert weight.shape == pytest.approx([n / c for n, c in zip(size, cells, strict=True)], abs=0.51)
        assert weight.bounds.top == optical.bounds.top


def test_windows_without_data_are_left_out_and_stay_nodata(pair, tmp_path):
    with rasterio.open(pair["optical"]) as source:
        data, profile, names, tags = source.read(), source.profile, source.descriptions, source.tags()
    data[:, :, 70:] = 0
    data[:, 50:] = 0
    with rasterio.open(tmp_path / "part.tif", "w", **profile) as dataset:
        dataset.write(data)
        dataset.descriptions = names
        dataset.update_tags(**tags)
    made = scenes.draw({"optical": tmp_path / "part.tif", "sar": None}, tmp_path / "out", targets=("lake",))
    np.testing.assert_array_equal(read(made.out / "mask_1.tif") == 255, (data == 0).any(0))
    assert made.answer["scene"]["empty windows"] > 0
    assert made.answer["masks"][0]["fusion"]["optical"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ()}, "nothing to segment"),
        ({"targets": ("water", " ")}, "nothing to segment"),
        ({"targets": ("water", "water ")}, "twice"),
        ({"window": 48}, "multiple of the model's own 32"),
        ({"window": 0}, "multiple"),
        ({"overlap": 0.95}, "0 to 0.9"),
        ({"optical": None, "sar": None}, "Give an optical image"),
        ({"optical": "missing.tif"}, "missing.tif"),
        ({"optical": "picture.png", "sar": None}, "picture.png"),
    ],
)
def test_what_cannot_be_drawn(options, says, pair, tmp_path):
    with pytest.raises(UserError, match=says):
        scenes.draw(pair | {k: v for k, v in options.items() if k in pair}, tmp_path / "out",
                    **{k: v for k, v in options.items() if k not in pair})  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_images_of_other_ground_are_refused(pair, tmp_path):
    far = scenes.write(tmp_path, "far away", (60, 60))
    with pytest.raises(UserError, match=r"covers 0.0%"):
        scenes.draw({"optical": pair["optical"], "sar": far["sar"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(pair, tmp_path, capsys):
    model = scenes.model()
    checkpoint.save(
        tmp_path / "model", model.config, model.engine.params, model.engine.tokenizer, {"made": "for tests"}
    )
    told = ("segment", "river", "lake", "--checkpoint", tmp_path / "model", "--optical", pair["optical"], "--sar",
            pair["sar"], "--out", tmp_path / "out", "--overlap", "0", "--json")  # fmt: skip
    code, text, err = run(capsys, *told)
    assert code == 0, err
    facts = json.loads(text)
    assert [mask["target"] for mask in facts["masks"]] == ["river", "lake"]
    assert "windows/s" in err
    assert "0:00 min left" in err
    code, text, err = run(capsys, *told, "--window", 64)
    assert code == 2
    assert "another window" in err
    code, text, err = run(capsys, *told, "--picture")
    assert (code, "--picture" in err) == (2, True)


@pytest.mark.parametrize("kind", ["gcps", "rpcs"])
def test_a_scene_that_only_control_places(tmp_path, kind):
    """Every part of it has the values, and the place, of the whole brought onto its map grid."""
    given = {"gcps": lattice()} if kind == "gcps" else {"rpcs": leaning(), "centres": flat_at(200)}
    path = written(tmp_path / "a.tif", **given)
    sensors = scenes.model().config.sensors
    whole = load_images({"sar": path}, sensors)
    reader = SceneReader({"sar": path}, sensors)
    assert (reader.grid.transform, reader.grid.crs, reader.shape) == (whole.transform, whole.crs, whole.shape)
    height = reader.shape[0]
    rows = list(reader.rows(iter([(0, 50), (40, height)])))
    frames, valid = sensor_frames(*whole.pictures["sar"], "sar", sensors)
    for part in rows:
        ((got, seen),) = part.frames["sar"]
        np.testing.assert_array_equal(seen, valid[part.top : part.bottom])
        off = np.abs(got.astype(int) - frames[:, part.top : part.bottom])
        assert off[:, seen].max() <= 1  # of 255
    if kind == "rpcs":  # from here on it is all the same
        return
    result = scenes.draw({"sar": path}, tmp_path / "out", targets=["river"])
    with rasterio.open(result.files[0]) as drawn:
        assert (drawn.shape, drawn.crs) == (whole.shape, whole.crs)
        assert drawn.transform.almost_equals(whole.transform)
        np.testing.assert_array_equal(drawn.read(1) != 255, whole.valid)


def test_longitudes_may_count_from_either_side(tmp_path):
    """Across the antimeridian: the optical image counts on beyond 180, the SAR image from -180."""
    place = {"driver": "GTiff", "height": 40, "width": 40, "crs": "EPSG:4326"}
    size, rng = 1e-4, np.random.default_rng(0)
    with rasterio.open(
        tmp_path / "o.tif", "w", count=3, dtype="uint16", transform=Affine(size, 0, 180.001, 0, -size, 5), **place
    ) as file:
        file.write(rng.integers(300, 3000, (3, 40, 40)).astype(np.uint16))
        file.descriptions = ("B04", "B03", "B02")
    with rasterio.open(
        tmp_path / "s.tif", "w", count=2, dtype="float32", transform=Affine(size, 0, -180, 0, -size, 5), **place
    ) as file:
        file.write(rng.gamma(4, 0.02, (2, 40, 40)).astype(np.float32))
    reader = SceneReader({"optical": tmp_path / "o.tif", "sar": tmp_path / "s.tif"}, SensorConfig())
    assert reader.overlap == pytest.approx(0.75)
    (rows,) = reader.rows(iter([(0, 40)]))
    assert rows.frames["sar"][0][1].mean() == pytest.approx(0.75)


def test_windows_far_larger_than_the_model_s_own(pair, tmp_path):
    result = scenes.draw(pair, tmp_path / "wide", targets=["river"], window=128)
    assert "4 times the side of the model's own (32): what is small" in result.answer["notes"][0]
    assert window_note(scenes.model(), 64) is None
