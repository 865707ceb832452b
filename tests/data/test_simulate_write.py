"""Simulated scenes as GeoTIFFs: offsets, scales, grids and record lines survive the round trip."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import read_jsonl
from earthmind_jax.data.simulate import BANDS, Cover, make_questions, make_scene, write_scene
from earthmind_jax.data.simulate.noise import dilate
from earthmind_jax.data.simulate.optical import from_digital_numbers, to_digital_numbers
from earthmind_jax.data.simulate.radar import from_db, to_db
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair


@pytest.fixture(scope="module")
def scene():
    """A clear one with a lake or sea, forest, no missing data, and no ships to outshine the water."""
    found = (make_scene(seed, cloud="clear", theme="coast", nodata=0.0, gsd=10.0) for seed in range(200))
    wanted = {Cover.WATER: 0.2, Cover.FOREST: 0.2}
    calm = (s for s in found if not s.layout.counts[Cover.SHIP] and not s.layout.counts[Cover.BRIDGE])
    return next(s for s in calm if all(s.fractions[cover] > share for cover, share in wanted.items()))


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile, file.tags(), file.descriptions


@pytest.mark.parametrize("offset", [0, 1000])
def test_digital_numbers(tmp_path, scene, offset):
    write_scene(scene, tmp_path, "a", offset=offset)
    data, profile, tags, names = read(tmp_path / "a_s2.tif")
    assert profile["dtype"] == "uint16"
    assert profile["nodata"] == 0
    assert str(profile["crs"]).startswith(("EPSG:326", "EPSG:327"))
    assert names == BANDS
    assert int(tags["BOA_ADD_OFFSET"]) == -offset
    assert (float(tags["PROCESSING_BASELINE"]) >= 4.0) == bool(offset)
    told = (data.astype(float) + float(tags["BOA_ADD_OFFSET"])) / float(tags["QUANTIFICATION_VALUE"])
    np.testing.assert_allclose(told, np.maximum(scene.optical, (1 - offset) / 1e4), atol=0.51e-4)
    pair = load_pair(tmp_path / "a_s2.tif")  # the package's own reader sees the same
    np.testing.assert_allclose(pair.optical.data, told, atol=1e-6)


def test_digital_numbers_without_a_file():
    reflectance = np.array([[[0.0, 0.25, 7.0, -0.2]]])
    valid = np.array([[True, True, True, False]])
    numbers = to_digital_numbers(reflectance, valid, offset=1000)
    np.testing.assert_array_equal(numbers, [[[1000, 3500, 65535, 0]]])
    np.testing.assert_allclose(from_digital_numbers(numbers, offset=1000)[0, 0, :2], [0.0, 0.25])
    assert np.isnan(from_digital_numbers(numbers)[0, 0, 3])
    assert to_digital_numbers(np.array([[[-0.5]]]), offset=0)[0, 0, 0] == 1  # 0 is kept for nodata


@pytest.mark.parametrize(
    ("scale", "crs", "pixel"), [("linear", "EPSG:4326", 1.3), ("dB", "same", 2.0), ("dB", "EPSG:3857", 0.8)]
)
def test_radar_grid_needs_and_survives_alignment(tmp_path, scene, scale, crs, pixel):
    write_scene(scene, tmp_path, "a", sar_scale=scale, sar_crs=crs, sar_pixel=pixel)
    s1, profile, tags, names = read(tmp_path / "a_s1.tif")
    label, grid, _, _ = read(tmp_path / "a_label.tif")
    assert profile["dtype"] == "float32"
    assert names == ("VV", "VH")
    assert tags["SCALE"] == scale
    assert (profile["transform"], profile["crs"]) != (grid["transform"], grid["crs"])
    np.testing.assert_array_equal(label[0], scene.class_map)

    there = np.zeros(s1.shape[1:], np.uint8)
    reproject(label[0], there, src_transform=grid["transform"], src_crs=grid["crs"], dst_transform=profile["transform"],
              dst_crs=profile["crs"], dst_nodata=0, resampling=Resampling.nearest)  # fmt: skip
    back = np.zeros(scene.shape, np.uint8)
    reproject(there, back, src_transform=profile["transform"], src_crs=profile["crs"], dst_transform=grid["transform"],
              dst_crs=grid["crs"], dst_nodata=0, resampling=Resampling.nearest)  # fmt: skip
    assert (back == scene.class_map).mean() > (0.93 if pixel < 1.5 else 0.85)

    valid = s1[0] != profile["nodata"]
    assert 0.6 < valid.mean() < 1.0  # the scene, and nothing around it
    power = s1 if scale == "linear" else from_db(s1)
    for cover in (Cover.WATER, Cover.FOREST):  # the label says the same about the file as about the scene
        far, near = (~dilate(labels != cover, 3) for labels in (there, scene.class_map))  # away from bright ships
        inside, truth = power[:, valid & far].mean(1), scene.sar_mean[:, near].mean(1)
        np.testing.assert_allclose(to_db(inside), to_db(truth), atol=0.7)

    pair = load_pair(tmp_path / "a_s2.tif", tmp_path / "a_s1.tif")
    assert pair.sar.shape == scene.shape
    assert pair.sar.valid.mean() > 0.97
    seen, truth = pair.sar.data[1], to_db(scene.sar_mean[1])

    def likeness(dy: int, dx: int) -> float:
        inner = (slice(4, -4), slice(4, -4))
        return np.corrcoef(np.roll(seen, (dy, dx), (0, 1))[inner].ravel(), truth[inner].ravel())[0, 1]

    shifts = {(dy, dx): likeness(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)}
    assert max(shifts, key=shifts.get) == (0, 0)


def test_missing_data_is_nodata(tmp_path):
    for seed in range(6):
        scene = make_scene(seed, nodata=1.0)
        write_scene(scene, tmp_path, f"n{seed}", sar_scale="dB")
        pair = load_pair(tmp_path / f"n{seed}_s2.tif", tmp_path / f"n{seed}_s1.tif", min_overlap=0.5)
        np.testing.assert_array_equal(pair.optical.valid, scene.optical_valid)
        assert (pair.sar.valid == scene.sar_valid).mean() > 0.93


def test_record_lines(tmp_path):
    rng = np.random.default_rng(3)
    scenes = [make_scene(seed) for seed in (1, 2)]
    asked = [make_questions(scene, rng) for scene in scenes]
    for i, scene in enumerate(scenes):
        line = write_scene(scene, tmp_path, f"s{i}", questions=asked[i])
        assert line["id"] == f"s{i}"
    assert write_scene(scenes[0], tmp_path, "plain")["turns"] == []
    records = read_jsonl(tmp_path / "records.jsonl")
    assert [record.id for record in records] == ["s0", "s1"]
    for record, scene, questions in zip(records, scenes, asked, strict=True):
        sample = load_record(record, SensorConfig())
        assert sample.optical_valid.shape == scene.shape
        for turn, qa in zip(sample.turns, questions, strict=True):
            assert (turn.question, turn.answer) == (qa.prompt, qa.answer)
            assert len(turn.masks) == (qa.mask is not None)
            if qa.mask is not None:
                np.testing.assert_array_equal(turn.masks[0], qa.mask)
            if qa.region is not None:
                np.testing.assert_array_equal(turn.region, qa.region)


def test_same_name_same_files(tmp_path, scene):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for folder in ("x", "y"):
        write_scene(scene, tmp_path / folder, "a")
    for name in ("a_s1.tif", "a_s2.tif", "a_label.tif"):
        (one, profile, *_), (two, other, *_) = (read(tmp_path / folder / name) for folder in ("x", "y"))
        np.testing.assert_array_equal(one, two)
        assert profile["transform"] == other["transform"]


def test_bad_requests(tmp_path, scene):
    with pytest.raises(UserError, match="does not exist"):
        write_scene(scene, tmp_path / "nowhere", "a")
    with pytest.raises(UserError, match="linear"):
        write_scene(scene, tmp_path, "a", sar_scale="linar")
