"""Rasters that are no image of the kind they were given as, or not the sensor that was told."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from sensor_files import numbers

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told

RNG = np.random.default_rng(4)
LAND_COVER = np.repeat(np.repeat(np.random.default_rng(1).choice([1, 2, 6, 9], (1, 8, 8)), 9, 1), 9, 2)


@pytest.mark.parametrize("sensor", ["vhr", "infrared", "landsat_l1"])
def test_a_sensor_told_wrongly_of_nameless_bands(make_tif, sensor):
    numbers = np.random.default_rng(0).integers(1, 5000, (12, 20, 20)).astype(np.uint16)
    path = make_tif("s2.tif", numbers)
    remedy = rf"s2\.tif has 12 bands without names, .* --bands, or leave out --sensor {sensor}: .* Sentinel-2 Level-2A"
    with pytest.raises(UserError, match=remedy):
        load_pair(path, optical_sensor=sensor, optical_bands=("B04",))
    with pytest.raises(UserError, match=remedy):
        describe(path, sensor=sensor)


def test_a_sensor_told_of_the_other_kind():
    for told, option in (
        (Told(sensor="s1"), "--sensor s1: Sentinel-1 is a SAR"),
        (Told(sar_sensor="vhr"), "--sar-sensor vhr"),
    ):
        with pytest.raises(UserError, match=option):
            told.require_sensors()
    with pytest.raises(UserError, match=r"no sensor 'sentinel2'.*the sensors are s2_l2a"):
        Told(sensor="sentinel2").require_sensors()


@pytest.mark.parametrize("kind", ["optical", "sar"])
@pytest.mark.parametrize("name", ["labels.tif", "labels.png"])
def test_a_label_raster_is_no_image(make_tif, kind, name):
    driver = {"driver": "PNG"} if name.endswith("png") else {}
    path = make_tif(name, LAND_COVER.astype(np.uint8), **driver)
    with pytest.raises(UserError, match=rf"{name} was given as .* looks like a label raster: class values \(1 2 6 9\)"):
        load_images({kind: path}, SensorConfig())
    assert load_images({kind: path}, SensorConfig(), training=True).shape == (72, 72)
    if name.endswith("tif"):
        told = Told(sensor="rgb8") if kind == "optical" else Told(sar_sensor="s1")
        assert load_images({kind: path}, SensorConfig(), told).shape == (72, 72)


def test_a_dark_or_plain_picture_is_none(make_tif):
    rng = np.random.default_rng(0)
    for name, values in (("dark.tif", rng.integers(0, 9, (1, 40, 40))), ("plain.tif", np.full((1, 40, 40), 7))):
        assert load_images({"optical": make_tif(name, values.astype(np.uint8))}, SensorConfig()).shape == (40, 40)


def test_an_image_that_memory_does_not_hold(tmp_path):
    """A header of 40 million pixels, and little behind it."""
    path, side = tmp_path / "huge.tif", 6400
    size = {"width": side, "height": side, "count": 3, "dtype": "uint16", "tiled": True, "SPARSE_OK": True}
    place = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500000, 0, -10, 5000000)}
    with rasterio.open(path, "w", driver="GTiff", nodata=0, compress="deflate", **size, **place) as dataset:
        dataset.descriptions = ("B04", "B03", "B02")
        dataset.write(np.full((3, 512, 512), 900, np.uint16), window=rasterio.windows.Window(0, 0, 512, 512))
    with pytest.raises(UserError, match=r"huge\.tif has 6400 x 6400 pixels, too many to be held in memory"):
        load_images({"optical": path}, SensorConfig())
    window = rasterio.windows.Window(10, 20, 30, 40)
    assert load_images({"optical": path}, SensorConfig(), window=window).shape == (40, 30)


def test_percent_is_no_reflectance(make_tif):
    percent = (numbers(3, 100, 4000) / 100).astype(np.float32)
    path = make_tif("percent.tif", percent, names=["B04", "B03", "B02"])
    with pytest.raises(UserError, match=r"percent\.tif holds values up to about 3\d\S*: neither .* band scale 0\.01"):
        load_pair(path)
    scaled = load_pair(make_tif("s.tif", percent, names=["B04", "B03", "B02"], scaling=(0.01, 0.0))).optical
    np.testing.assert_allclose(scaled.data, percent / 100, rtol=1e-5)


@pytest.mark.parametrize("name", ["T32TNS_20230601T101601_SCL_20m.tif", "LC08_X_QA_PIXEL.tif"])
def test_a_quality_band_is_told_beside_its_image(make_tif, name):
    path = make_tif(name, np.full((1, 40, 40), 4, np.uint8))
    assert describe(path).kind == "labels"
    with pytest.raises(UserError, match=r"looks like a label raster: a quality band"):
        load_images({"optical": path}, SensorConfig())


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (RNG.normal(0, 1, (12, 40, 40)).astype(np.float32), "optical", "no bands, and .* hold numbers that are no ref"),
        (RNG.integers(0, 50, (12, 40, 40)).astype(np.uint16), "optical", "numbers up to about 49: no scene of"),
        (RNG.normal(15, 5, (13, 40, 40)).astype(np.int16), "optical", "no scene of Sentinel-2 is that dark"),
        (RNG.normal(0, 1, (2, 40, 40)).astype(np.float32), "sar", "hardly backscatter in dB"),
        (RNG.uniform(-0.6, 0.9, (2, 40, 40)).astype(np.float32), "sar", "hardly backscatter in dB"),
    ],
)
def test_the_count_of_bands_alone_makes_no_sensor(make_tif, array, kind, message):
    """Indices, counts and features of a network may have as many as Sentinel-1 or -2."""
    path = make_tif("a.tif", array)
    with pytest.raises(UserError, match=message):
        describe(path)
    with pytest.raises(UserError, match=message):
        load_pair(*((path,) if kind == "optical" else (None, path)))


def test_heights_and_temperatures_are_told_apart_by_the_caller(make_tif):
    rows, columns = np.mgrid[:60, :60]
    path = make_tif("kelvin.tif", (290 + 8 * np.sin(rows / 9) * np.cos(columns / 9)).astype(np.float32)[None])
    with pytest.raises(
        UserError, match=r"kelvin\.tif .* looks like smooth single values \(282 to 298\).*infrared\)\.$"
    ):
        load_images({"optical": path}, SensorConfig())
    assert load_images({"optical": path}, SensorConfig(), Told(sensor="infrared")).shape == (60, 60)


def test_coordinates_that_are_no_map(make_tif):
    facts = describe(make_tif("geocentric.tif", numbers(12, 1, 3000), crs="EPSG:4978")).facts
    assert facts["gsd_m"] is None
    assert any("no map of the Earth: text answers only" in warning for warning in facts["warnings"])


def test_pages_of_a_file(make_tif, tmp_path):
    pages = [Image.fromarray(numbers(1, 0, 255, dtype="uint8")[0]) for _ in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    (warning,) = [text for text in describe(tmp_path / "pages.tif").facts["warnings"] if "pages" in text]
    assert "the first of 3 pages is read" in warning


def test_a_virtual_raster_without_its_files(make_tif, tmp_path):
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">gone.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(UserError, match=r"a\.vrt is a virtual raster, and a file that it is made of is missing"):
        read_raster(tmp_path / "a.vrt")
