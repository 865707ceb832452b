"""Every real chip: the right sensor, scale and offset, from files that say nothing about themselves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import align, load_pair
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.vector import polygons, rasterise
from earthmind_jax.geo.write import write_mask_cog

SCENES = ("282D_485L_3_3", "637U_59R_1_3", "38D_378R_2_3")
SENSOR = {"S1RTC": "s1", "S2L2A": "s2_l2a", "S2L1C": "s2_l1c", "S2RGB": "rgb8", "LULC": None, "DEM": None}
WITH_OFFSET = {("S2L1C", "282D_485L_3_3")}


@pytest.fixture(params=SCENES)
def scene(request):
    return request.param


@pytest.mark.parametrize("folder", SENSOR)
def test_sensor(sentinel, folder, scene):
    raster = read_raster(sentinel / folder / f"{scene}.tif")
    assert raster.sensor == SENSOR[folder]
    assert raster.shape == (224, 224)
    assert raster.valid.all()
    assert raster.gsd == pytest.approx(10, rel=0.005)
    assert raster.notes


@pytest.mark.parametrize("folder", ["S2L1C", "S2L2A"])
def test_offset_decision(sentinel, folder, scene):
    path = sentinel / folder / f"{scene}.tif"
    offset = -1000 if (folder, scene) in WITH_OFFSET else 0
    raster = calibrate(read_raster(path))
    with rasterio.open(path) as dataset:
        expected = (dataset.read().astype(np.float64) + offset) / 10000
    np.testing.assert_allclose(raster.data, expected, atol=1e-6)
    assert any(f"offset {offset:+d}" in note for note in raster.notes)
    assert -0.1 < raster.data.min() < 0.03
    assert calibrate(raster) is raster


@pytest.mark.parametrize("folder", ["S2L1C", "S2L2A"])
def test_offset_is_the_same_for_any_part(sentinel, folder, scene):
    path = sentinel / folder / f"{scene}.tif"
    whole = calibrate(read_raster(path))
    rows, columns = slice(96, 160), slice(32, 96)
    part = calibrate(read_raster(path, ["B08", "B04"], Window(32, 96, 64, 64)))
    np.testing.assert_array_equal(part.band("B08"), whole.band("B08")[rows, columns])
    np.testing.assert_array_equal(part.band("B04"), whole.band("B04")[rows, columns])


def test_sar_scale(sentinel, scene):
    path = sentinel / "S1RTC" / f"{scene}.tif"
    raster = calibrate(read_raster(path))
    assert raster.unit == "dB"
    assert raster.bands == ("VV", "VH")
    assert raster.valid.all()
    with rasterio.open(path) as dataset:
        np.testing.assert_allclose(raster.data, dataset.read(), atol=1e-5)


def test_rendering_keeps_black_pixels(sentinel, scene):
    raster = calibrate(read_raster(sentinel / "S2RGB" / f"{scene}.tif"))
    assert raster.unit == "display"
    assert raster.valid.all()
    assert raster.data.max() <= 255


def test_pair_needs_no_resampling(sentinel, scene):
    paths = [sentinel / folder / f"{scene}.tif" for folder in ("S2L2A", "S1RTC")]
    pair = load_pair(*paths)
    assert pair.overlap == 1
    assert pair.gsd_ratio == pytest.approx(1)
    assert pair.optical.unit == "reflectance"
    with rasterio.open(paths[1]) as dataset:
        np.testing.assert_allclose(pair.sar.data, dataset.read(), atol=1e-5)
    assert any("nothing resampled" in note for note in pair.notes)


def test_label_beside_sar(sentinel, scene):
    sar = read_raster(sentinel / "S1RTC" / f"{scene}.tif")
    label = align(sentinel / "LULC" / f"{scene}.tif", sar, "label").raster
    assert label.data.dtype == np.uint8
    assert set(np.unique(label.data)) <= set(range(1, 10))


def test_map_of_real_water(sentinel, tmp_path):
    scene = "282D_485L_3_3"
    label = read_raster(sentinel / "LULC" / f"{scene}.tif", labels=True)
    water = label.data[0] == 1
    collection = polygons(water, label.transform, label.crs, prompt="water")
    np.testing.assert_array_equal(rasterise(collection, label.grid), water)
    area = sum(feature["properties"]["area_m2"] for feature in collection["features"])
    assert area == pytest.approx(water.sum() * 100, rel=0.005)
    write_mask_cog(tmp_path / "water.tif", water, label.transform, label.crs)
    with rasterio.open(tmp_path / "water.tif") as dataset:
        assert dataset.transform == label.transform
        assert dataset.crs == label.crs
        np.testing.assert_array_equal(dataset.read(1), water)


def test_rasters_need_no_jax():
    modules = ", ".join(f"earthmind_jax.geo.{name}" for name in ("align", "radiometry", "raster", "vector", "write"))
    code = f"import sys, {modules}; sys.exit(any(name.split('.')[0] in ('jax', 'flax') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_swapped_pair_is_noticed(sentinel, scene):
    with pytest.raises(UserError, match=r"looks SAR.*swap"):
        load_pair(sentinel / "S1RTC" / f"{scene}.tif", sentinel / "S2L2A" / f"{scene}.tif")


def test_scenes_of_different_places(sentinel):
    with pytest.raises(
        UserError, match=r"38D_378R_2_3\.tif and .*637U_59R_1_3\.tif do not overlap.*longitude.*longitude"
    ):
        load_pair(sentinel / "S2L2A" / "637U_59R_1_3.tif", sentinel / "S1RTC" / "38D_378R_2_3.tif")
