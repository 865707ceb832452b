"""Files of many makers: whose they are by name, which bands they hold, and what is asked about where nothing tells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import rasterio
from sensor_files import FALSE_COLOUR, FINE, TRUE_COLOUR, numbers, said

from earthmind_jax.data.read import load_images, load_record
from earthmind_jax.data.records import parse_record
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.band_names import canonical
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.no_sensor import no_sensor
from earthmind_jax.geo.overview import read_overview
from earthmind_jax.geo.quality import cloudy, quality_valid
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.told import Told

RNG = np.random.default_rng(5)
POWER = (RNG.gamma(4, 0.25, (2, 40, 40)) * [[[0.1]], [[0.02]]]).astype("float32")
SIX = ["blue", "green", "red", "nir08", "swir16", "swir22"]
PLANET = ["coastal", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SR_B2_median", "SR_B2"), ("LC08_044034_20140318_SR_B4", "SR_B4"), ("0_B8A", "B8A"), ("HHHH", "HH"),
        ("Band 13 (660 Nanometers)", "660nm"), ("0.842 um", "842nm"), ("B4, central wavelength 665 nm", "B04"),
        ("B4 (555.0 nm)", "555nm"), ("450-515 nm", "450-515 nm"), ("sur_refl_b01", "645nm"), ("NIR_Narrow", "nir08"),
        ("coh_VV_03May2020", "coh_VV_03May2020"), ("vis-red", "R"), ("Fmask", "Fmask"), ("VV_VH_ratio", "VV_VH_ratio"),
    ],
)  # fmt: skip
def test_names_in_what_files_say(text, name):
    assert canonical(text) == name


@pytest.mark.parametrize(
    ("file", "names", "sensor", "bands"),
    [
        ("a.tif", ["B1", "B2", "B3", "B4"], None, None),  # GaoFen's, RapidEye's, SPOT's, or a count
        ("a.tif", ["B4", "B3", "B2", "B5"], None, None),  # Landsat's near infrared, or a red edge
        ("a.tif", ["B2", "B3", "B4", "B5", "B6", "B7"], None, None),
        ("a.tif", ["B4", "B3", "B2"], "s2_l2a", None),
        ("a.tif", ["B4", "B3", "B2", "B8"], "s2_l2a", None),
        ("T32TQM_20230530T101601_B05_20m.tif", None, "s2_l2a", ["B05"]),
        ("COPERNICUS_S2_SR_HARMONIZED_x.tif", ["B5", "B6", "B7"], "s2_l2a", None),
        ("LANDSAT_LC08_C02_T1_TOA_x.tif", ["B4", "B5"], "landsat_l1", ["TOA_B4", "TOA_B5"]),
        ("LANDSAT_LC09_C02_T1_L2_x.tif", ["B4", "B5"], "landsat_l2", ["SR_B4", "SR_B5"]),
        ("a.tif", ["B4", "B3", "B2", "B8", "NDVI", "QA60"], "s2_l2a", ["B04", "B03", "B02", "B08"]),
        ("a.tif", ["VV", "VH", "RVI"], "s1", ["VV", "VH"]),
        ("a.tif", ["coh_VV_2020"], None, None),
        ("a.tif", ["sur_refl_b01", "sur_refl_b02"], "reflectance", ["645nm", "859nm"]),
        ("HLS.L30.T32TQM.2023150T101601.v2.0.tif", ["B04", "B05"], "reflectance", ["red", "nir08"]),
        ("20230530_101601_12_2456_3B_AnalyticMS_SR_8b.tif", [""] * 8, "reflectance", PLANET),
        ("20230530_101601_12_2456_3B_AnalyticMS_SR.tif", [""] * 4, "reflectance", ["blue", "green", "red", "nir"]),
        ("20230530_101601_12_2456_3B_AnalyticMS.tif", [""] * 4, "vhr", ["B", "G", "R", "N"]),
        ("20230530_LEVEL2_SEN2A_BOA.tif", ["BROADNIR", "NEARINFRARED"], "reflectance", ["nir", "nir08"]),
        ("NAIP.tif", ["NDVI", "EVI"], None, None),
        ("JAXA_ALOS_PALSAR_YEARLY.tif", ["HH", "HV", "angle"], "sar_l", ["HH", "HV"]),
        ("N46E010_20_sl_HV_F02DAR.tif", None, "sar_l", ["HV"]),
        ("IMAGE_HH_SRA_strip_007.tif", None, "sar_x", ["HH"]),
    ],
)  # fmt: skip
def test_what_is_taken_for_what(make_tif, file, names, sensor, bands):
    raster = read_raster(make_tif(file, numbers(len(names or [1]), 1000, 3000), names=names))
    assert raster.sensor == sensor
    if bands is not None:
        assert list(raster.bands) == bands


def test_numbers_that_do_not_tell_are_asked_about(make_tif):
    """Each remedy of the message works, and a sensor without numbers does not take them for another's."""
    values = numbers(4, 100, 3000)
    path = make_tif("count.tif", (values / 1e4).astype("float32"), names=["B4", "B3", "B2", "B5"])
    with pytest.raises(UserError, match=r"the numbers B02 B03 B04 B05 mean other bands .*--sensor s2_l2a"):
        load_images({"optical": path}, TRUE_COLOUR)
    with pytest.raises(UserError, match="the numbers B02 B03 B04 B05 mean other bands"):  # before a band that it lacks
        load_images({"optical": path}, FALSE_COLOUR)
    assert describe(path).facts["taken for"] == "unknown"
    colours = dataclasses.replace(TRUE_COLOUR, optical_bands=("B8A", "B04", "B03"))
    for told in (
        Told(sensor="landsat_l1"), Told(sensor="landsat_l2"), Told(bands=("red", "green", "blue", "nir08")),
        Told(sensor="reflectance", bands=("665nm", "560nm", "490nm", "865nm")),
    ):  # fmt: skip
        picture, _ = load_images({"optical": path}, colours, told).pictures["optical"]
        np.testing.assert_allclose(picture["B8A"], values[3] / 1e4, atol=1e-6)
        np.testing.assert_allclose(picture["B04"], values[0] / 1e4, atol=1e-6)
    for sensor in ("vhr", "reflectance"):
        with pytest.raises(UserError, match=r"numbers its bands \(B04 B03 B02 B05\).* in order with --bands"):
            load_images({"optical": path}, TRUE_COLOUR, Told(sensor=sensor))


def test_landsat_numbers_under_plain_names(make_tif):
    path = make_tif("a.tif", numbers(3, 7400, 20000), names=["B4", "B3", "B2"])
    with pytest.raises(UserError, match=r"rather the numbers of Landsat Collection 2.*--sensor landsat_l2"):
        load_images({"optical": path}, TRUE_COLOUR)
    assert calibrate(read_raster(path, sensor="landsat_l2")).data.min() < 0.02
    assert calibrate(read_raster(path, sensor="s2_l2a")).decided["offset"] == -1000


def test_reflectance_of_any_sensor(make_tif):
    values = numbers(4, 300, 4000, dtype="int16")
    values[:, :5] = -9999
    names = ["red", "green", "blue", "nir"]
    cases = [(values, {}), ((values / 1e4).astype("float32"), {}), (values // 100, {"scaling": (0.01, 0.0)})]
    for i, (stored, more) in enumerate(cases):
        made = calibrate(read_raster(make_tif(f"{i}.tif", stored, names=names, **more), sensor="reflectance"))
        np.testing.assert_allclose(made.data[:, 5:], values[:, 5:] / 1e4, atol=1e-6 if i < 2 else 0.01)
        assert not made.valid[:5].any()
        assert made.valid[5:].all()
    for stored, dtype in ((values / 100, "float32"), (values * 8.0, "float32")):
        path = make_tif("other.tif", stored.astype(dtype), names=names)
        with pytest.raises(UserError, match=r"its numbers are no reflectance.*gdal_edit.py -scale.*--sensor vhr"):
            calibrate(read_raster(path, sensor="reflectance"))


def test_spectral_bands_without_a_sensor(make_tif):
    """Floating point, or a scale of the file, makes them reflectance; else they are asked about, unless as fine as
    colour images."""
    values = numbers(6, 300, 4000)
    shares = (values / 1e4).astype("float32")
    assert calibrate(read_raster(make_tif("a.tif", shares, names=SIX))).sensor == "reflectance"
    assert read_raster(make_tif("b.tif", values, names=SIX, scaling=(1e-4, 0.0))).sensor == "reflectance"
    assert read_raster(make_tif("c.tif", values, names=SIX)).sensor is None
    fine = read_raster(make_tif("d.tif", values, names=SIX, transform=FINE))
    assert (fine.sensor, fine.bands) == ("vhr", ("B", "G", "R", "N"))
    path = make_tif("e.tif", shares)
    with rasterio.open(path, "r+") as file:
        for i, wave in enumerate((490, 560, 665, 842, 1610, 2190), 1):
            file.update_tags(i, wavelength=str(wave), wavelength_units="Nanometers")
    images = load_images({"optical": path}, FALSE_COLOUR)
    for band, i in (("B11", 4), ("B08", 3), ("B04", 2)):
        np.testing.assert_allclose(images.pictures["optical"][0][band], shares[i], atol=1e-6)


def test_a_record_tells_as_much(make_tif, tmp_path):
    """Nameless chips, and the numbers of a product that its name gives away."""
    values = numbers(6, 300, 4000, dtype="int16")
    for name, told in (
        ("chip.tif", {"sensor": "reflectance", "bands": SIX}),
        ("HLS.L30.chip.tif", {"bands": ["B02", "B03", "B04", "B05", "B06", "B07"]}),
    ):
        make_tif(name, values)
        written = {"id": "a", "optical": {"file": name, **told}, "turns": [{"question": "q", "answer": "a"}]}
        sensors = dataclasses.replace(TRUE_COLOUR, optical_bands=("B8A", "B11", "B04"))
        sample = load_record(parse_record(written, "line 1", tmp_path), sensors)
        for band, i in (("B8A", 3), ("B11", 4), ("B04", 2)):
            np.testing.assert_allclose(sample.optical[band], values[i] / 1e4, atol=1e-6)


def test_both_sensors_in_one_file(make_tif):
    """Backscatter does not stand for dark ground, by which the offset is judged."""
    optical = numbers(3, 1100, 4000).astype("float32")
    path = make_tif("both.tif", np.concatenate([10 * np.log10(POWER), optical]), names=["VV", "VH", "B4", "B3", "B2"])
    pair = load_pair(path, path, optical_bands=("B04",), sar_bands=("VV", "VH"))
    np.testing.assert_allclose(pair.optical.data[0], (optical[0] - 1000) / 1e4, atol=1e-6)
    np.testing.assert_allclose(pair.sar.data, 10 * np.log10(POWER), atol=1e-4)
    assert any("it holds SAR bands, too (VV VH)" in note for note in pair.optical.notes)


def test_amplitudes_of_no_known_calibration(make_tif):
    """L-band's has its factor; numbers that Sentinel-1 could not have get levels of their own, and it is said."""
    stored = np.rint(np.sqrt(POWER * 10**8.3)).astype("uint16")
    made = calibrate(read_raster(make_tif("JAXA_PALSAR.tif", stored, names=["HH", "HV"])))
    np.testing.assert_allclose(made.data, 10 * np.log10(POWER), atol=0.01)
    assert "JAXA" in said(made)
    path = make_tif("a.tif", stored, names=["HH", "HV"])
    assert any("numbers of Sentinel-1 they hardly are" in text for text in describe(path).facts["warnings"])
    told = calibrate(read_raster(path), scale="linear")
    assert "although its median is then" in said(told)


@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ("xml", "<Product><calibration_factor>1.2e-06</calibration_factor></Product>"),
        ("json", '{"collect": {"image": {"scale_factor": 0.00109544511501}}}'),
        ("json", '{"other": 1}'),
    ],
)
def test_calibration_beside_the_image(make_tif, tmp_path, beside, text):
    stored = np.rint(np.sqrt(POWER[:1] / 1.2e-6)).astype("uint16")
    path = make_tif("ICEYE_X7_GRD_SM_1.tif", stored)
    (tmp_path / f"ICEYE_X7_GRD_SM_1.{beside}").write_text(text)
    made = calibrate(read_raster(path))
    if "factor" in text:
        np.testing.assert_allclose(made.data, 10 * np.log10(POWER[:1]), atol=0.05)
        assert f"ICEYE_X7_GRD_SM_1.{beside}" in said(made)
    else:
        assert "levels are relative" in said(made)


def test_copernicus_browser(make_tif):
    raw = np.rint(np.minimum(POWER[:1], 1) * 65535).astype("uint16")
    made = calibrate(read_raster(make_tif("2023_Sentinel-1_IW_VV+VH_VV_(Raw).tiff", raw)))
    np.testing.assert_allclose(made.data, 10 * np.log10(POWER[:1]), atol=0.05)
    shown = make_tif("2023_Sentinel-1_IW_VV+VH_VV_-_decibel_gamma0.tiff", raw)
    with pytest.raises(UserError, match=r"shows decibels as uint16 .* download the band itself"):
        load_images({"sar": shown}, TRUE_COLOUR)


def test_8bit_sar_of_a_named_sensor(make_tif):
    path = make_tif("2023-05-30_UMBRA-05_GEC.tif", numbers(1, 1, 255, dtype="uint8"))
    assert describe(path).kind == "sar"
    with pytest.raises(UserError, match="looks SAR"):
        load_images({"optical": path}, TRUE_COLOUR)
    assert load_images({"sar": path}, TRUE_COLOUR).shape == (40, 40)


def test_fmask(make_tif):
    codes = np.array([[0, 1, 2, 4, 8, 16, 32, 64, 255]], "uint8")
    assert quality_valid("Fmask", codes, "a.tif")[0].tolist() == [True] + [False] * 4 + [True] * 3 + [False]
    assert cloudy("Fmask", codes)[0].tolist() == [False] + [True] * 4 + [False] * 4
    path = make_tif("HLS.L30.T32TQM.2023150T101601.v2.0.Fmask.tif", np.full((1, 8, 8), 64, "uint8"))
    assert "--scl" in no_sensor(read_overview(path))[1]


def test_bands_of_maxar_by_the_metadata_beside(make_tif, tmp_path):
    path = make_tif("18JUN05-M2AS-01_P001.TIF", numbers(4, 100, 2000), transform=FINE)
    groups = "".join(
        f"BEGIN_GROUP = BAND_{b}\n\tabsCalFactor = 1;\nEND_GROUP = BAND_{b}\n" for b in ("B", "G", "R", "N")
    )
    (tmp_path / "18JUN05-M2AS-01_P001.IMD").write_text(f'version = "28.3";\nbandId = "Multi";\n{groups}END;\n')
    raster = read_raster(path)
    assert (raster.sensor, raster.bands) == ("vhr", ("B", "G", "R", "N"))
