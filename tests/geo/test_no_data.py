"""Pixels that are no data: by quality bands and scene classifications, by fill values told and untold."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from sensor_files import FINE, RNG, TRUE_COLOUR, numbers

from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo import sample
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told


def test_scene_classification_in_the_file(make_tif):
    array = numbers(4, 100, 3000)
    array[3] = 4
    for row, value in enumerate(range(12)):
        array[3, row] = value
    raster = read_raster(make_tif("a.tif", array, names=["B02", "B03", "B04", "SCL"]))
    assert raster.bands == ("B02", "B03", "B04")
    clear = [False, False, True, False, True, True, True, True, False, False, False, True]
    assert raster.valid.all(1)[:12].tolist() == clear
    assert raster.sensor == "s2_l2a"
    assert read_raster(make_tif("b.tif", array, names=["B02", "B03", "B04", "SCL"]), ["SCL"]).data.max() == 11


def test_scene_classification_in_a_file_of_its_own(make_tif):
    optical = make_tif("o.tif", numbers(3, 100, 3000), names=["B02", "B03", "B04"])
    codes = np.full((1, 20, 20), 4, np.uint8)
    codes[0, :5] = 9
    scl = make_tif("scl.tif", codes, transform=Affine(20, 0, 500000, 0, -20, 5000000))
    images = load_images({"optical": optical}, TRUE_COLOUR, Told(scl=scl))
    assert images.pictures["optical"][1].all(1).tolist() == [False] * 10 + [True] * 30
    with pytest.raises(UserError, match=r"o\.tif is no scene classification"):
        load_images({"optical": optical}, TRUE_COLOUR, Told(scl=optical))


def test_earth_engine_extras_are_no_bands(make_tif):
    array = numbers(5, 100, 3000)
    raster = read_raster(make_tif("a.tif", array, names=["B2", "B3", "B4", "QA60", "MSK_CLDPRB"]))
    assert (raster.sensor, raster.bands) == ("s2_l2a", ("B02", "B03", "B04"))
    db = RNG.uniform(-20, -5, (3, 20, 20)).astype(np.float32)
    for name in ("angle", "VV/VH", "localIncidenceAngle"):
        raster = read_raster(make_tif("b.tif", db, names=["VV", "VH", name]))
        assert (raster.sensor, raster.bands) == ("s1", ("VV", "VH"))


def test_a_nameless_scene_classification_is_noticed(make_tif):
    array = numbers(13, 100, 3000)
    array[12] = RNG.integers(0, 12, (40, 40))
    with pytest.raises(UserError, match="looks like a scene classification"):
        calibrate(read_raster(make_tif("a.tif", array)))


def test_near_infrared_stored_as_alpha(make_tif):
    """GDAL calls any fourth band of 8 bits alpha; water is black in the near infrared and there all the same."""
    array = numbers(4, 20, 250, dtype="uint8")
    array[3, :10] = 0
    path = make_tif("naip.tif", array, names=["Red", "Green", "Blue", "NIR"], transform=FINE)
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3].name == "alpha"
        assert not dataset.dataset_mask()[:10].any()
    for told, names in ((Told(), ("R", "G", "B", "N")), (Told(sensor="vhr", bands=("R", "G", "B", "N")), None)):
        pair = load_pair(path, optical_sensor=told.sensor, optical_names=told.bands or None)
        assert pair.optical.bands == (names or told.bands)
        assert pair.optical.valid.all()
        np.testing.assert_array_equal(pair.optical.data, array)
    colours = load_pair(path, optical_bands=("B04", "B03", "B02")).optical
    assert colours.valid.all()
    assert describe(path).facts["no_data_share"] == 0
    rgba = load_pair(make_tif("rgba.tif", array, transform=FINE)).optical  # nameless: as the file says
    assert rgba.bands == ("R", "G", "B")
    assert not rgba.valid[:10].any()


@pytest.mark.parametrize("fill", [-9999, -32768])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_fill_values_that_no_tag_declares(make_tif, fill, dtype):
    """They are no data, and the offset is judged without them: here it is still to be taken off."""
    array = numbers(3, 1050, 4000).astype(dtype)
    array[:, :10] = fill
    optical = load_pair(make_tif("a.tif", array, names=["B04", "B03", "B02"])).optical
    assert optical.decided["offset"] == -1000
    assert not optical.valid[:10].any()
    assert optical.valid[10:].all()
    assert any("fill values that the file does not declare" in note for note in optical.notes)
    window = load_pair(make_tif("a.tif", array, names=["B04", "B03", "B02"]), window=Window(0, 5, 20, 10)).optical
    np.testing.assert_array_equal(window.data, optical.data[:, 5:15, :20])


@pytest.mark.parametrize("fill", [-9999, -3.4e38, 9.96921e36])
@pytest.mark.parametrize(("names", "sensor"), [(["B04", "B03"], None), (["SR_B4", "SR_B3"], None), (["R", "G"], "vhr")])
def test_fill_values_of_floating_point(make_tif, fill, names, sensor):
    array = (numbers(2, 100, 4000) / 1e4).astype(np.float32)
    plain = load_pair(make_tif("p.tif", array, names=names), optical_sensor=sensor).optical
    array[:, :10] = fill
    optical = load_pair(make_tif("a.tif", array, names=names), optical_sensor=sensor).optical
    assert not optical.valid[:10].any()
    assert optical.valid[10:].all()
    np.testing.assert_allclose(optical.data[:, 10:], plain.data[:, 10:], atol=4 if sensor else 0)  # of 255: percentiles


@pytest.mark.parametrize(
    ("dtype", "nothing"), [("uint16", 0), ("float32", 0), ("float32", np.nan), ("float32", -32768)]
)
def test_a_band_without_anything_in_it_is_none(make_tif, dtype, nothing):
    """Its zeros would be a black channel of every pixel, or would make every pixel invalid."""
    array = numbers(5, 100, 3000).astype(dtype) / (1 if dtype == "uint16" else np.float32(1e4))
    array[3] = nothing
    names = ["B02", "B03", "B04", "B08", "B8A"]
    path = make_tif("a.tif", array.astype(dtype), names=names, nodata=nothing if nothing < 0 else None)
    optical = load_pair(path, optical_bands=("B08", "B04")).optical
    assert optical.stored == ("B8A", "B04")
    assert optical.valid.all()
    assert any("nothing but zeros and nodata is in them: B08" in note for note in optical.notes)
    window = load_pair(path, optical_bands=("B08", "B04"), window=Window(3, 5, 20, 10)).optical
    np.testing.assert_array_equal(window.data, optical.data[:, 5:15, 3:23])
    found = describe(path)
    assert found.facts["bands"] == ["B02", "B03", "B04", "B8A"]
    assert found.facts["no_data_share"] == 0
    with pytest.raises(UserError, match=r"no band 'B08'.* Nothing but zeros and nodata is in B08"):
        load_pair(
            make_tif("b.tif", array[:4].astype(dtype), names=names[:4], nodata=nothing if nothing < 0 else None),
            optical_bands=("B08", "B04"),
        )


@pytest.mark.parametrize("nothing", [0, np.nan])
def test_a_polarisation_without_anything_in_it_is_none(make_tif, nothing):
    db = RNG.uniform(-20, -5, (2, 20, 20)).astype(np.float32)
    db[1] = nothing
    path = make_tif("a.tif", db, names=["VV", "VH"])
    sar = load_pair(None, path, sar_bands=("VV", "VH")).sar
    assert sar.bands == ("VV",)
    assert sar.valid.all()
    assert any("its channel is padded" in note for note in sar.notes)
    assert describe(path).facts["bands"] == ["VV"]


def test_a_picture_may_be_without_a_colour(make_tif):
    array = numbers(3, 1, 255, dtype="uint8")
    array[2] = 0
    path = make_tif("a.tif", array)
    assert load_pair(path, optical_bands=("B04", "B03", "B02"), optical_sensor="rgb8").optical.data.shape[0] == 3


@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_blocks_that_were_never_written(tmp_path, monkeypatch, interleave):
    """A file that declares 40 times more than a whole tile of Sentinel-2 and holds next to nothing is known at once."""
    side, block = 60000, 512
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 12, "dtype": "uint16", "interleave": interleave,
        "tiled": True, "blockxsize": block, "blockysize": block, "compress": "deflate", "BIGTIFF": "YES",
        "SPARSE_OK": True, "crs": "EPSG:32632", "transform": Affine(10, 0, 500000, 0, -10, 5000000),
    }  # fmt: skip
    names = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    for name, written in (("empty.tif", False), ("part.tif", True)):
        with rasterio.open(tmp_path / name, "w", **profile) as file:
            file.descriptions = names
            if written:
                part = RNG.integers(500, 4000, (12, 2 * block, 2 * block)).astype(np.uint16)
                file.write(part, window=Window(5 * block, 7 * block, 2 * block, 2 * block))
    read = []

    def counted(*given, **options):
        read.append(given)
        return read_values(*given, **options)

    read_values = sample.read_values
    monkeypatch.setattr(sample, "read_values", counted)
    with pytest.raises(UserError, match=r"empty\.tif has no valid pixel: all are never written"):
        describe(tmp_path / "empty.tif")
    assert not read
    with rasterio.open(tmp_path / "part.tif") as file:
        seen = sample.file_sample(file.name, tuple(range(1, 13)), tuple(names), None, None)
    assert 0 < len(read) < 20
    centres = ((np.arange(sample.SAMPLE_SIDE) + 0.5) * side / sample.SAMPLE_SIDE).astype(int)
    rows, columns = (centres - first * block for first in (7, 5))
    rows_in, columns_in = ((at >= 0) & (at < 2 * block) for at in (rows, columns))
    np.testing.assert_array_equal(seen.valid, rows_in[:, None] & columns_in)
    np.testing.assert_array_equal(
        seen.values[:, rows_in][:, :, columns_in], part[:, rows[rows_in]][:, :, columns[columns_in]]
    )
