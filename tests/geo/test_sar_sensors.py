"""SAR beside Sentinel-1, and SAR files of any: recognised, calibrated, or asked about."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sensor_files import FINE, RNG, numbers, said

from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster


def amplitude(count=2, side=64, level=300.0):
    power = RNG.gamma(4, 1 / 4, (count, side, side))
    return np.rint(level * np.sqrt(power)).astype(np.uint16)


def decibels(*middle, side=60, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([10 * np.log10(rng.gamma(4, 10 ** (m / 10) / 4, (side, side))) for m in middle]).astype(np.float32)


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


@pytest.mark.parametrize(("letter", "scale"), [("p", "linear"), ("a", "amplitude"), ("d", "dB")])
def test_scale_in_the_name_of_an_rtc_product(make_tif, letter, scale):
    name = f"S1A_IW_20200101T000000_DVP_RTC10_G_g{letter}uned_AD42_VV.tif"
    values = np.full((1, 10, 10), 0.4, np.float32)
    assert calibrate(read_raster(make_tif(name, values))).decided["scale"] == scale


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


def test_bands_of_two_scales_are_refused(make_tif):
    mixed = decibels(-11, -18)
    mixed[1] = 10 ** (mixed[1] / 10)
    path = make_tif("mixed.tif", mixed, names=["VV", "VH"])
    with pytest.raises(UserError, match=r"mixed\.tif has values below 0 in some bands, as dB has, and none in VH"):
        load_pair(sar_path=path)
    assert load_pair(sar_path=path, sar_scale="dB").sar.valid.any()


@pytest.mark.parametrize(
    ("name", "band"), [("ICEYE_X7_GRD_SM_20220101T000000.tif", "CO"), ("CAPELLA_C02_SM_GEO_HH_20210101.tif", "HH")]
)
def test_one_channel_of_a_file_that_names_its_sensor(make_tif, name, band):
    path = make_tif(name, numbers(1, 50, 900), transform=FINE)
    fact = describe(path).facts
    assert (fact["taken for"], fact["bands"]) == ("sar_x", [band])
    with pytest.raises(UserError, match="was given as the optical image but looks SAR"):
        load_pair(path)
