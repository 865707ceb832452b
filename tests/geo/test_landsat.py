"""Landsat 4 to 9: bands by name and number, Level-2 and Level-1 numbers, fill and quality."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sensor_files import SR, frames_of, numbers, said

from earthmind_jax.errors import UserError
from earthmind_jax.geo.landsat import read_mtl
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told

PRODUCT = "LC08_L1TP_193026_20200619_20200625_02_T1"
MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = IMAGE_ATTRIBUTES
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
    REFLECTANCE_MULT_BAND_4 = 2.75e-05
    REFLECTANCE_ADD_BAND_4 = -0.2
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    RADIANCE_MULT_BAND_10 = 3.3420E-04
    RADIANCE_ADD_BAND_10 = 0.10000
    REFLECTANCE_MULT_BAND_4 = 2.0000E-05
    REFLECTANCE_ADD_BAND_4 = -0.100000
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
  GROUP = LEVEL1_THERMAL_CONSTANTS
    K1_CONSTANT_BAND_10 = 774.8853
    K2_CONSTANT_BAND_10 = 1321.0789
  END_GROUP = LEVEL1_THERMAL_CONSTANTS
END_GROUP = LANDSAT_METADATA_FILE
END
"""


def test_landsat_level_2(make_tif):
    array = numbers(8)
    raster = calibrate(read_raster(make_tif("a.tif", array, names=[*SR, "ST_B10"])))
    assert (raster.sensor, raster.unit) == ("landsat_l2", "reflectance")
    np.testing.assert_allclose(raster.data[:7], array[:7] * 0.0000275 - 0.2, atol=1e-6)
    np.testing.assert_allclose(raster.data[7], array[7] * 0.00341802 + 149.0, atol=1e-3)
    assert "Collection 2 Level-2" in said(raster)


def test_landsat_is_known_by_its_file_name(make_tif):
    path = make_tif("LC09_L2SP_193026_20220619_20220625_02_T1_SR_B4.TIF", numbers(1))
    raster = read_raster(path)
    assert (raster.sensor, raster.bands) == ("landsat_l2", ("SR_B4",))
    assert read_raster(path, sensor="landsat_l2").bands == ("SR_B4",)


def test_landsat_common_names(make_tif):
    path = make_tif("a.tif", numbers(3), names=["red", "green", "nir"])
    assert read_raster(path, sensor="landsat_l2").bands == ("SR_B4", "SR_B3", "SR_B5")


def test_landsat_fill_and_quality(make_tif):
    array = numbers(4)
    array[:3, 0] = 0
    array[3] = 21824  # clear
    for row, bit in enumerate((0, 1, 2, 3, 4, 5, 6, 7), start=2):
        array[3, row] = 1 << bit
    raster = calibrate(read_raster(make_tif("a.tif", array, names=["SR_B4", "SR_B3", "SR_B2", "QA_PIXEL"])))
    assert raster.bands == ("SR_B4", "SR_B3", "SR_B2")
    assert raster.valid.all(1).tolist() == [False, True, *[False] * 5, *[True] * 33]
    assert "QA_PIXEL calls" in said(raster)


def test_older_landsats_number_their_bands_otherwise(make_tif):
    path = make_tif("a.tif", numbers(6), names=["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B7"])
    with pytest.raises(UserError, match=r"as Landsat 4 to 7 do.*--bands"):
        read_raster(path)
    told = Told(bands=("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"))
    found, _ = frames_of(path, told=told)
    red = calibrate(read_raster(make_tif("b.tif", numbers(1), names=["SR_B4"])))
    assert red.sensor == "landsat_l2"
    assert found.shape == (1, 40, 40, 3)
    named = read_raster(make_tif("LT05_L2SP_193026.tif", numbers(1), names=["SR_B3"]))
    assert named.bands == ("SR_B4",)
    assert "numbered as on Landsat 4 to 7" in said(named)


def test_landsat_collection_1_is_refused(make_tif):
    with pytest.raises(UserError, match="not the numbers of Landsat Collection 2"):
        calibrate(read_raster(make_tif("a.tif", numbers(7, 100, 3000, dtype="int16"), names=SR)))


def test_landsat_with_its_own_scale(make_tif):
    array = numbers(7, 100, 3000, dtype="int16")
    raster = calibrate(read_raster(make_tif("a.tif", array, names=SR, scaling=(0.0001, 0.0))))
    np.testing.assert_allclose(raster.data, array * 0.0001, atol=1e-6)


@pytest.mark.parametrize("where", ["beside", "told", "tags", "json"])
def test_landsat_level_1(make_tif, tmp_path, where):
    array = numbers(2)
    tags = {}
    if where == "tags":
        tags = {key: str(value) for key, value in read_mtl(_mtl(tmp_path / "x_MTL.txt")).items()}
        (tmp_path / "x_MTL.txt").unlink()
    path = make_tif(f"{PRODUCT}_stack.tif", array, names=["B4", "B10"], tags=tags)
    mtl = None
    if where == "beside":
        _mtl(tmp_path / f"{PRODUCT}_MTL.txt")
    elif where == "told":
        mtl = _mtl(tmp_path / "elsewhere.txt")
    elif where == "json":
        (tmp_path / "m.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": _groups(MTL)}))
        mtl = tmp_path / "m.json"
    raster = calibrate(read_raster(path), mtl=mtl)
    assert (raster.sensor, raster.stored) == ("landsat_l1", ("TOA_B4", "BT_B10"))
    np.testing.assert_allclose(raster.data[0], (array[0] * 2e-5 - 0.1) / 0.5, atol=1e-5)
    kelvin = 1321.0789 / np.log(774.8853 / (array[1] * 3.342e-4 + 0.1) + 1)
    np.testing.assert_allclose(raster.data[1], kelvin, atol=1e-3)
    assert "30.00 degrees" in said(raster)


def _mtl(path):
    path.write_text(MTL)
    return path


def _groups(text):
    groups, name = {}, ""
    for line in text.splitlines()[1:]:
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            name = value
            groups[name] = {}
        elif value and key != "END_GROUP":
            groups[name][key] = value
    return groups


def test_landsat_level_1_needs_its_coefficients(make_tif, tmp_path):
    path = make_tif(f"{PRODUCT}_B4.TIF", numbers(1))
    with pytest.raises(UserError, match=r"needs SUN_ELEVATION.*--mtl"):
        calibrate(read_raster(path))
    (tmp_path / "other_MTL.txt").write_text(MTL)  # of another scene
    with pytest.raises(UserError, match="needs SUN_ELEVATION"):
        calibrate(read_raster(path))
    (tmp_path / "bad.txt").write_text("hello")
    with pytest.raises(UserError, match=r"bad\.txt is no Landsat MTL"):
        calibrate(read_raster(path), mtl=tmp_path / "bad.txt")
    with pytest.raises(UserError, match="REFLECTANCE_MULT_BAND_3"):
        calibrate(read_raster(make_tif("b.tif", numbers(1), names=["TOA_B3"])), mtl=tmp_path / "other_MTL.txt")
