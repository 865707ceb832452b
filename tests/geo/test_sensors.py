"""Every sensor beside Sentinel: how its files are recognised, what their numbers become, and what a model gets."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from rasterio.windows import Window

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.landsat import read_mtl
from earthmind_jax.geo.overview import read_overview
from earthmind_jax.geo.radiometry import SENSORS, calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told

RNG = np.random.default_rng(11)
FINE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
SR = [f"SR_B{i}" for i in range(1, 8)]
TRUE_COLOUR = SensorConfig()
FALSE_COLOUR = dataclasses.replace(TRUE_COLOUR, optical_bands=("B11", "B08", "B04"))
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


def numbers(count, low=8000, high=20000, side=40, dtype="uint16"):
    return RNG.integers(low, high, (count, side, side)).astype(dtype)


def said(raster):
    return " ".join(raster.notes)


# Landsat


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
    with pytest.raises(UserError, match="Landsat 4 to 7"):
        read_raster(make_tif("LT05_L2SP_193026.tif", numbers(1), names=["SR_B3"]))


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


# Infrared


@pytest.mark.parametrize(
    ("dtype", "first", "step", "unit"),
    [("float32", 280.0, 0.5, "kelvin"), ("float32", -20.0, 0.5, "celsius"), ("uint16", 2000, 10, "counts")],
)
def test_infrared(make_tif, dtype, first, step, unit):
    ramp = (first + step * np.arange(101))[None, None, :].repeat(30, 1).astype(dtype)
    raster = calibrate(read_raster(make_tif("a.tif", ramp), sensor="infrared"))
    assert raster.unit == "display"
    assert raster.decided["unit"] == unit
    np.testing.assert_allclose(raster.data[0, 0], np.clip((np.arange(101) - 2) / 96 * 255, 0, 255), atol=1e-2)
    assert raster.valid.all()
    assert "percentile" in said(raster)


def test_infrared_by_name_and_fill_values(make_tif):
    array = np.linspace(285, 310, 1600, dtype=np.float32).reshape(1, 40, 40)
    array[0, 0], array[0, 1] = 0, -9999
    raster = calibrate(read_raster(make_tif("a.tif", array, names=["thermal"], units=["K"])))
    assert raster.sensor == "infrared"
    assert "kelvin (unit K)" in said(raster)
    assert not raster.valid[:2].any()
    assert raster.valid[2:].all()
    assert raster.data[0, 2].max() < 10  # the fill values do not make the rest bright


def test_surface_temperature_alone_is_a_picture(make_tif):
    raster = calibrate(read_raster(make_tif("a.tif", numbers(1, 40000, 45000), names=["ST_B10"])))
    assert raster.unit == "display"
    assert " K" in said(raster)


# Very high resolution


def test_colour_of_11_bits_is_stretched_by_the_scene(make_tif):
    array = numbers(4, 100, 2047, side=80)
    array[:, :8] = 0
    path = make_tif("a.tif", array, names=["red", "green", "blue", "nir"], transform=FINE)
    raster = calibrate(read_raster(path))
    assert (raster.sensor, raster.bands, raster.unit) == ("vhr", ("R", "G", "B", "N"), "display")
    assert not raster.valid[:8].any()
    assert raster.valid[8:].all()
    low, high = np.percentile(array[2, 8:].astype(float), (2, 98))
    np.testing.assert_allclose(raster.data[2, 8:], np.clip((array[2, 8:] - low) / (high - low), 0, 1) * 255, atol=1e-2)


def test_colour_interpretation_names_bands(make_tif):
    path = make_tif("a.tif", numbers(4, 1, 2047), photometric="RGB", transform=FINE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:3], rasterio.enums.ColorInterp.undefined]
    raster = read_raster(path)
    assert (raster.sensor, raster.bands) == ("vhr", ("R", "G", "B", "N"))
    assert "colour interpretation" in said(raster)


def test_coarse_colour_needs_its_sensor(make_tif):
    path = make_tif("a.tif", numbers(3), names=["red", "green", "blue"])
    with pytest.raises(UserError, match=r"no known sensor.*--sensor"):
        calibrate(read_raster(path))
    assert calibrate(read_raster(path), "vhr").unit == "display"


# SAR beside Sentinel-1


def amplitude(count=2, side=64, level=300.0):
    power = RNG.gamma(4, 1 / 4, (count, side, side))
    return np.rint(level * np.sqrt(power)).astype(np.uint16)


@pytest.mark.parametrize(
    ("name", "bands", "sensor"),
    [
        ("CAPELLA_C02_SP_GEO_HH_20200101.tif", ["HH"], "sar_x"),
        ("2023-01-01_UMBRA-05_GEC.tif", ["VV"], "sar_x"),
        ("SN6_Train_AOI_11_Rotterdam_SAR-Intensity_1.tif", ["HH", "HV", "VH", "VV"], "sar_x"),
        ("GF3_FSII_001.tif", ["HH", "HV"], "gf3"),
        ("a.tif", ["HH", "VV"], "sar_x"),
        ("a.tif", ["HH", "HV"], "s1"),
    ],
)
def test_other_sar_is_recognised(make_tif, name, bands, sensor):
    assert read_raster(make_tif(name, amplitude(len(bands)), names=bands)).sensor == sensor


@pytest.mark.parametrize(
    ("tags", "one"),
    [
        ({"CALIBRATION_FACTOR": "1e-5"}, 1e-5**-0.5),
        ({"calFactor": "4e-6"}, 500.0),
        ({"TIFFTAG_IMAGEDESCRIPTION": json.dumps({"collect": {"image": {"scale_factor": 0.004}}})}, 250.0),
    ],
)
def test_calibration_factor_of_the_product(make_tif, tags, one):
    array = amplitude() + 1
    raster = calibrate(read_raster(make_tif("ICEYE.tif", array, names=["VV", "VH"], tags=tags)))
    np.testing.assert_allclose(raster.data, 20 * np.log10(array / one), atol=1e-4)


def test_without_calibration_the_levels_are_relative(make_tif):
    array = amplitude(level=5000.0) + 1
    raster = calibrate(read_raster(make_tif("TSX.tif", array, names=["HH", "HV"])))
    assert np.median(raster.band("HH")) == pytest.approx(-11, abs=0.01)
    assert "levels are relative" in said(raster)
    told = calibrate(read_raster(make_tif("b.tif", array, names=["HH", "HV"]), sensor="gf3"), calibration=5000.0)
    np.testing.assert_allclose(told.data, 20 * np.log10(array / 5000.0), atol=1e-4)


def test_padding_of_a_turned_8bit_image_is_invalid(make_tif):
    array = RNG.integers(1, 255, (1, 60, 60)).astype(np.uint8)
    rows, columns = np.mgrid[0:60, 0:60]
    wedge = rows + columns < 20
    array[0, wedge] = 0
    array[0, 30:33, 30:33] = 0  # dark water
    raster = calibrate(read_raster(make_tif("umbra.tif", array), sensor="sar_x"))
    np.testing.assert_array_equal(raster.valid, ~wedge)
    assert raster.unit == "display"
    assert raster.bands == ("CO",)


# One pixel, one value: whatever the window


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


# What a model gets


def frames_of(path, kind="optical", sensors=TRUE_COLOUR, told=None):
    images = load_images({kind: path}, sensors, told or Told())
    picture, valid = images.pictures[kind]
    return sensor_frames(picture, valid, kind, sensors)[0], images


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
    with pytest.raises(UserError, match=r"no known sensor.*infrared.*--sensor"):
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


# Quality


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


# Sentinel, once more


def test_harmonised_collections_have_no_offset_left(make_tif):
    array = numbers(12, 1100, 4000)
    raster = calibrate(read_raster(make_tif("COPERNICUS_S2_SR_HARMONIZED_x.tif", array)))
    assert raster.decided["offset"] == 0
    assert "harmonised" in said(raster)


def test_bands_sorted_as_text_are_noticed(make_tif):
    base = numbers(1, 100, 3000).astype(float)
    array = np.repeat(base, 12, 0) * RNG.uniform(0.4, 1.6, (12, 40, 40))
    array[7], array[8] = base, base * RNG.uniform(0.98, 1.02, base.shape)
    calibrate(read_raster(make_tif("right.tif", array.astype(np.uint16))))
    wrong = array[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 8]]
    with pytest.raises(UserError, match=r"sorted as text.*--bands"):
        calibrate(read_raster(make_tif("wrong.tif", wrong.astype(np.uint16))))


def test_a_nameless_scene_classification_is_noticed(make_tif):
    array = numbers(13, 100, 3000)
    array[12] = RNG.integers(0, 12, (40, 40))
    with pytest.raises(UserError, match="looks like a scene classification"):
        calibrate(read_raster(make_tif("a.tif", array)))


def test_single_band_files_of_a_product(make_tif):
    for name in ("T32TQM_20230610T074621_B04_10m.jp2.tif", "T32TQM_20230610T074621_B8A_20m.tif"):
        raster = read_raster(make_tif(name.replace(".jp2", ""), numbers(1)))
        assert (raster.sensor, raster.bands[0] in name) == ("s2_l2a", True)


@pytest.mark.parametrize(("letter", "scale"), [("p", "linear"), ("a", "amplitude"), ("d", "dB")])
def test_scale_in_the_name_of_an_rtc_product(make_tif, letter, scale):
    name = f"S1A_IW_20200101T000000_DVP_RTC10_G_g{letter}uned_AD42_VV.tif"
    values = np.full((1, 10, 10), 0.4, np.float32)
    assert calibrate(read_raster(make_tif(name, values))).decided["scale"] == scale


def test_registry_is_whole(make_tif):
    for name, entry in SENSORS.items():
        assert entry.kind in ("optical", "sar")
        assert set(entry.aliases.values()) <= set(entry.bands), name
        assert set(entry.wavelengths) <= set(entry.bands), name
        assert all(set(layout) <= set(entry.bands) for layout in (*entry.layouts, *entry.told_layouts)), name


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


@pytest.mark.parametrize(("name", "driver"), [("a.img", "HFA"), ("a.bin", "ENVI")])
def test_any_format_that_gdal_reads(tmp_path, make_tif, name, driver):
    path = make_tif(name, numbers(3, 100, 3000), names=["B04", "B03", "B02"], driver=driver)
    found, images = frames_of(path)
    assert found.shape == (1, 40, 40, 3)
    assert images.crs is not None


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


LAND_COVER = np.repeat(np.repeat(np.random.default_rng(1).choice([1, 2, 6, 9], (1, 8, 8)), 9, 1), 9, 2)


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


def decibels(*middle, side=60, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([10 * np.log10(rng.gamma(4, 10 ** (m / 10) / 4, (side, side))) for m in middle]).astype(np.float32)


def test_whole_numbers_of_a_scale_are_decibels(make_tif):
    """dB x 100 in 16 bits: with the scale in the file they are what they are, without it the remedy is named."""
    db = decibels(-11, -18)
    stored = np.rint(db * 100).astype(np.int16)
    sar = load_pair(sar_path=make_tif("s.tif", stored, names=["VV", "VH"], scaling=(0.01, 0.0))).sar
    assert sar.decided["scale"] == "dB"
    assert np.abs(sar.data - db).max() < 0.0051
    assert any("numbers x 0.01" in note for note in sar.notes)
    with pytest.raises(UserError, match=r"n\.tif has a median of -\d.*dB times a number, store the band scale"):
        load_pair(sar_path=make_tif("n.tif", stored, names=["VV", "VH"]))


@pytest.mark.parametrize("fill", [0.0, -9999.0, -32768.0, np.nan, -np.inf])
def test_what_no_tag_calls_nodata_of_decibels(make_tif, fill):
    db = decibels(-11, -18)
    db[:, :, 40:] = fill
    sar = load_pair(sar_path=make_tif("s.tif", db, names=["VV_db", "VH_db"])).sar
    assert sar.valid[:, :40].all()
    assert not sar.valid[:, 40:].any()


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


@pytest.mark.parametrize(
    ("name", "band"), [("ICEYE_X7_GRD_SM_20220101T000000.tif", "CO"), ("CAPELLA_C02_SM_GEO_HH_20210101.tif", "HH")]
)
def test_one_channel_of_a_file_that_names_its_sensor(make_tif, name, band):
    path = make_tif(name, numbers(1, 50, 900), transform=FINE)
    fact = describe(path).facts
    assert (fact["taken for"], fact["bands"]) == ("sar_x", [band])
    with pytest.raises(UserError, match="was given as the optical image but looks SAR"):
        load_pair(path)


@pytest.mark.parametrize("name", ["T32TNS_20230601T101601_SCL_20m.tif", "LC08_X_QA_PIXEL.tif"])
def test_a_quality_band_is_told_beside_its_image(make_tif, name):
    path = make_tif(name, np.full((1, 40, 40), 4, np.uint8))
    assert describe(path).kind == "labels"
    with pytest.raises(UserError, match=r"looks like a label raster: a quality band"):
        load_images({"optical": path}, SensorConfig())


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
    np.testing.assert_allclose(optical.data[:, 10:], plain.data[:, 10:], atol=2 if sensor else 0)  # of 255: percentiles


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


def test_bands_of_two_scales_are_refused(make_tif):
    mixed = decibels(-11, -18)
    mixed[1] = 10 ** (mixed[1] / 10)
    path = make_tif("mixed.tif", mixed, names=["VV", "VH"])
    with pytest.raises(UserError, match=r"mixed\.tif has values below 0 in some bands, as dB has, and none in VH"):
        load_pair(sar_path=path)
    assert load_pair(sar_path=path, sar_scale="dB").sar.valid.any()


@pytest.mark.parametrize(
    ("sensor", "bands"), [("s2_l2a", ("B04", "B11", "B12")), ("landsat_l2", ("SR_B4", "SR_B6", "SR_B7"))]
)
def test_short_wave_infrared_by_number(make_tif, sensor, bands):
    path = make_tif("a.tif", numbers(3), names=["Red", "SWIR1", "SWIR2"])
    assert read_raster(path, sensor=sensor).bands == bands
