"""What a model gets of a sensor that is not its own: which bands stand for which, and how they look."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from affine import Affine
from sensor_files import FALSE_COLOUR, FINE, RNG, SR, TRUE_COLOUR, frames_of, numbers

from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told


def test_landsat_stands_for_sentinel_2(make_tif):
    array = numbers(7)
    path = make_tif("a.tif", array, names=SR)
    found, images = frames_of(path, sensors=FALSE_COLOUR)
    reflectance = array[[5, 4, 3]] * 0.0000275 - 0.2
    np.testing.assert_allclose(found[0], np.moveaxis(np.clip(reflectance / 0.3, 0, 1) * 255, 0, -1), atol=0.51)
    assert any("B11 (1.614 um) is taken from SR_B6" in note for note in images.notes)
    wide = dataclasses.replace(TRUE_COLOUR, optical_bands=("B04", "B05", "B06"))
    with pytest.raises(UserError, match=r"no band 'B05' \(0\.704 um\) and none within 5%.*it has SR_B1"):
        frames_of(path, sensors=wide)


def test_colour_stands_for_sentinel_2(make_tif):
    array = numbers(4, 100, 2047, side=60)
    path = make_tif("a.tif", array, names=["blue", "green", "red", "nir"], transform=FINE)
    found, images = frames_of(path)
    expected = calibrate(read_raster(path, ["R", "G", "B"]))
    np.testing.assert_allclose(found[0], np.moveaxis(expected.data, 0, -1), atol=0.51)
    assert any("B04 (0.665 um) is taken from R" in note for note in images.notes)
    with pytest.raises(UserError, match=r"no band 'B11' \(1\.614 um\)"):
        frames_of(path, sensors=FALSE_COLOUR)


def test_two_triplets_of_colour(make_tif):
    path = make_tif("a.tif", numbers(4, 100, 2047), names=["R", "G", "B", "N"], transform=FINE)
    six = dataclasses.replace(TRUE_COLOUR, optical_bands=("B04", "B03", "B02", "B08", "B04", "B03"))
    found, _ = frames_of(path, sensors=six)
    assert found.shape == (2, 40, 40, 3)
    np.testing.assert_array_equal(found[0, ..., 0], found[1, ..., 1])


def test_8bit_colour_with_infrared(make_tif):
    array = numbers(4, 1, 255, dtype="uint8")
    path = make_tif("a.tif", array, photometric="RGB", alpha="NO")
    found, _ = frames_of(path, told=Told(bands=("R", "G", "B", "N")))
    np.testing.assert_allclose(found[0], np.moveaxis(array[:3], 0, -1), atol=0.51)
    with pytest.raises(UserError, match=r"have no names.*--bands"):
        frames_of(make_tif("b.tif", array, photometric="MINISBLACK", alpha="NO"))


@pytest.mark.parametrize("sensors", [TRUE_COLOUR, FALSE_COLOUR])
def test_infrared_is_a_grey_picture_for_any_model(make_tif, sensors):
    path = make_tif("a.tif", RNG.uniform(280, 310, (1, 30, 30)).astype(np.float32), names=["LWIR"])
    found, images = frames_of(path, sensors=sensors)
    grey = calibrate(read_raster(path)).data[0]
    for channel in range(3):
        np.testing.assert_allclose(found[0, ..., channel], grey, atol=0.51)
    assert any("grey picture" in note for note in images.notes)


def test_nameless_single_bands_are_asked_about(make_tif):
    path = make_tif("a.tif", RNG.uniform(280, 310, (1, 30, 30)).astype(np.float32))
    with pytest.raises(UserError, match=r"no known sensor.*--sensor .*infrared"):
        frames_of(path)
    assert frames_of(path, told=Told(sensor="infrared"))[0].shape == (1, 30, 30, 3)


@pytest.mark.parametrize(("channels", "second"), [("zero_pad", 0), ("replicate", None)])
def test_one_polarisation_is_padded(make_tif, channels, second):
    sensors = dataclasses.replace(TRUE_COLOUR, sar_channels=channels)
    db = RNG.uniform(-20, -5, (1, 30, 30)).astype(np.float32)
    found, images = frames_of(make_tif("GF3_a.tif", db, names=["HH"], units=["dB"]), "sar", sensors)
    expected = (db[0] + 25) / 25 * 255
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=0.51)
    np.testing.assert_allclose(found[0, ..., 1], expected if second is None else second, atol=0.51)
    assert any("VV is taken from HH" in note for note in images.notes)
    assert any("no cross-polarised band for VH" in note for note in images.notes)


def test_polarisations_stand_for_one_another(make_tif):
    db = np.stack([np.full((20, 20), -8.0), np.full((20, 20), -16.0)]).astype(np.float32)
    found, images = frames_of(make_tif("a.tif", db, names=["HV", "HH"], units=["dB", "dB"]), "sar")
    assert np.unique(found[0, ..., 0]).tolist() == [round((25 - 16) / 25 * 255)]
    assert np.unique(found[0, ..., 1]).tolist() == [round((32.5 - 8) / 32.5 * 255)]
    assert sum("polarised band of this file" in note for note in images.notes) == 2


def test_told_names_reach_a_quad_polarised_file(make_tif):
    db = np.stack([np.full((20, 20), level) for level in (-9.0, -18.0, -17.0, -8.0)]).astype(np.float32)
    path = make_tif("a.tif", db)
    with pytest.raises(UserError, match=r"have no names.*--sar-bands"):
        frames_of(path, "sar")
    found, _ = frames_of(path, "sar", told=Told(sar_sensor="sar_x"))  # HH HV VH VV, the published order
    assert np.unique(found[0, ..., 0]).tolist() == [round((25 - 8) / 25 * 255)]
    found, _ = frames_of(path, "sar", told=Told(sar_bands=("VV", "VH", "HV", "HH")))
    assert np.unique(found[0, ..., 0]).tolist() == [round((25 - 9) / 25 * 255)]


def test_8bit_sar_on_a_map_is_brought_onto_the_optical_grid(make_tif):
    optical = make_tif("o.tif", numbers(3, 1, 255, side=40, dtype="uint8"))
    array = np.zeros((1, 50, 50), np.uint8)
    seen = numbers(1, 1, 255, side=40, dtype="uint8")
    array[:, 5:45, 5:45] = seen
    sar = make_tif("s.tif", array, transform=Affine(10, 0, 499950, 0, -10, 5000050))
    images = load_images({"optical": optical, "sar": sar}, TRUE_COLOUR)
    picture, valid = images.pictures["sar"]
    assert picture.shape[:2] == (40, 40)
    assert valid.all()
    np.testing.assert_array_equal(picture[..., 0], seen[0])


@pytest.mark.parametrize(("name", "driver"), [("a.img", "HFA"), ("a.bin", "ENVI")])
def test_any_format_that_gdal_reads(tmp_path, make_tif, name, driver):
    path = make_tif(name, numbers(3, 100, 3000), names=["B04", "B03", "B02"], driver=driver)
    found, images = frames_of(path)
    assert found.shape == (1, 40, 40, 3)
    assert images.crs is not None
