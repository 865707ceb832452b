"""A pixel has one value: whatever the window, in the sample of the scene and in its overview."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.windows import Window
from sensor_files import FINE, numbers

from earthmind_jax.geo.overview import read_overview
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster


def _scene(kind, rng, side=150):
    """(array, names, sensor, profile) of a scene whose parts differ, so that statistics of a tile would show."""
    ramp = np.linspace(0.2, 1.0, side)[None, :, None] * np.linspace(0.3, 1.0, side)[None, None, :]
    noise = rng.gamma(4, 0.25, (4, side, side))
    array = ramp * noise
    if kind == "vhr":
        return (1 + 1500 * array).astype(np.uint16), ["R", "G", "B", "N"], None, {"transform": FINE}
    if kind == "infrared":
        return (270 + 40 * array[:1]).astype(np.float32), ["thermal"], None, {}
    if kind == "landsat_l2":
        return (7000 + 30000 * array[:1]).clip(0, 65000).astype(np.uint16), ["ST_B10"], None, {}
    if kind == "s2_l2a":
        return (900 + 4000 * array).astype(np.uint16), ["B02", "B03", "B04", "B08"], None, {}
    array[:, :, :17] = 1e-6  # border noise
    array[:, 60:80, 60:80] = 1e-6  # calm water
    array[:, 100:, 140:] = 0
    if kind == "s1":
        return array[:2].astype(np.float32) * 0.1, ["VV", "VH"], None, {}
    if kind == "sar_8bit":
        return (80 * array[:1]).clip(0, 255).astype(np.uint8), None, "sar_x", {}
    return np.rint(3000 * np.sqrt(array)).clip(0, 65535).astype(np.uint16), ["HH", "HV", "VH", "VV"], kind, {}


@pytest.mark.parametrize("kind", ["vhr", "infrared", "landsat_l2", "s2_l2a", "s1", "sar_x", "gf3", "sar_8bit"])
@pytest.mark.parametrize("side", [150, 1100])
def test_a_pixel_has_one_value_in_every_window(make_tif, kind, side):
    rng = np.random.default_rng(5)
    array, names, sensor, profile = _scene(kind, rng, side)
    path = make_tif(f"{kind}_{side}.tif", array, names=names, **profile)
    whole = calibrate(read_raster(path, sensor=sensor))
    assert whole.valid.any()
    for _ in range(12):
        height, width = rng.integers(1, 70, 2)
        row, column = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        bands = [str(b) for b in rng.permutation(whole.bands)[: rng.integers(1, len(whole.bands) + 1)]]
        part = calibrate(read_raster(path, bands, Window(column, row, width, height), sensor=sensor))
        cut = slice(row, row + height), slice(column, column + width)
        if len(bands) == len(whole.bands) or kind not in ("s1", "sar_x", "gf3"):  # validity is of the bands read
            np.testing.assert_array_equal(part.valid, whole.valid[cut])
        both = part.valid & whole.valid[cut]
        for band in bands:
            np.testing.assert_array_equal(part.band(band)[both], whole.band(band)[cut][both])


@pytest.mark.parametrize("profile", [{"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "DEFLATE"}, {}])
def test_the_sample_is_every_nth_pixel(make_tif, profile):
    array = numbers(3, 1, 60000, side=1400)[:, :, :1100]
    path = make_tif("a.tif", array, names=["B04", "B03", "B02"], nodata=7, **profile)
    sample = read_raster(path, ["B03"], Window(5, 5, 10, 10)).scene_sample()
    rows, columns = (((np.arange(512) + 0.5) * side / 512).astype(int) for side in (1400, 1100))
    expected = array[:, rows][:, :, columns]
    np.testing.assert_array_equal(sample.values, expected)
    np.testing.assert_array_equal(sample.valid, (expected != 7).all(0))


def test_overview_is_the_scene_in_small(make_tif):
    array, names, _, profile = _scene("vhr", np.random.default_rng(1), 1100)
    path = make_tif("a.tif", array, names=names, **profile)
    small = read_overview(path)
    assert small.shape == (512, 512)
    assert small.gsd == pytest.approx(0.5 * 1100 / 512, rel=0.01)
    found, whole = calibrate(small), calibrate(read_raster(path))
    assert found.data.mean() == pytest.approx(whole.data.mean(), rel=0.02)
