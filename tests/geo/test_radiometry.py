"""Reflectance and backscatter: every way a file can tell its scale, and what is decided where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.radiometry import border_noise, calibrate, to_db, to_display, to_reflectance
from earthmind_jax.geo.raster import FILL, read_raster

RNG = np.random.default_rng(7)


def land(bands=12, low=100, high=3000, dtype="uint16", side=40):
    return RNG.integers(low, high, (bands, side, side)).astype(dtype)


def speckle(mean=0.05, side=64, looks=4):
    return (mean * RNG.gamma(looks, 1 / looks, (2, side, side))).astype(np.float32)


def offset_of(raster):
    return next(float(note.split("DN ")[1].split(")")[0]) for note in raster.notes if note.startswith("reflectance ="))


# Sentinel-2


@pytest.mark.parametrize(
    ("tags", "low", "offset", "why"),
    [
        ({"BOA_ADD_OFFSET": "-1000"}, 1100, -1000, "BOA_ADD_OFFSET"),
        ({"RADIO_ADD_OFFSET": "-1000"}, 1100, -1000, "RADIO_ADD_OFFSET"),
        ({"BOA_ADD_OFFSET": "-1000"}, 100, -1000, "although the darkest"),
        ({"BOA_ADD_OFFSET": "0", "PROCESSING_BASELINE": "05.09"}, 100, 0, "BOA_ADD_OFFSET"),
        ({"PROCESSING_BASELINE": "04.00"}, 1100, -1000, "baseline 04.00"),
        ({"PROCESSING_BASELINE": "N0509"}, 1100, -1000, "baseline 05.09"),
        ({"PROCESSING_BASELINE": "03.01"}, 100, 0, "baseline 03.01"),
        ({"PROCESSING_BASELINE": "05.09"}, 100, 0, "applied before"),
        ({"earthsearch:boa_offset_applied": "true", "PROCESSING_BASELINE": "05.09"}, 1100, 0, "already applied"),
        ({"PRODUCT_URI": "S2A_MSIL2A_20230610T074621_N0509_R135_T36MZE.SAFE"}, 1100, -1000, "baseline 05.09"),
        ({"s2:processing_baseline": "05.09"}, 1100, -1000, "baseline 05.09"),
        ({}, 1003, -1000, "darkest"),
        ({}, 850, -1000, "darkest"),  # slightly negative reflectance is legal
        ({"PROCESSING_BASELINE": "05.09"}, 600, -1000, "baseline 05.09"),
        ({"PROCESSING_BASELINE": "99.99"}, 600, 0, "darkest"),  # a user's own sen2cor: with the offset or without
        ({"PRODUCT_URI": "S2A_MSIL2A_20230610T074621_N9999_R135_T36MZE.SAFE"}, 1100, -1000, "darkest"),
        ({}, 1, 0, "darkest"),
        ({}, 600, 0, "not certain"),
        ({}, 1800, -1000, "not certain"),
        ({"datetime": "2024-01-01T00:00:00"}, 50, 0, "darkest"),  # the date decides nothing
    ],
)
def test_offset(make_tif, tags, low, offset, why):
    array = land(low=low, high=low + 3000, side=80)
    raster = to_reflectance(read_raster(make_tif("a.tif", array, tags=tags)))
    np.testing.assert_allclose(raster.data, (array.astype(float) + offset) / 10000, atol=1e-6)
    assert offset_of(raster) == offset
    assert why in " ".join(raster.notes)
    assert raster.unit == "reflectance"


def test_offset_of_the_product_name(make_tif):
    array = land(low=2000)
    raster = to_reflectance(read_raster(make_tif("S2A_MSIL2A_20190610T074621_N0500_R135.tif", array)))
    assert offset_of(raster) == -1000


def test_patches_of_bigearthnet_have_no_offset(make_tif):
    """Nor where nothing in them is dark; the name says so, whatever the processing baseline in it."""
    name = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    raster = to_reflectance(read_raster(make_tif(f"{name}_B04.tif", land(low=1600)[:1]), sensor="s2_l2a"))
    assert offset_of(raster) == 0
    raster = to_reflectance(read_raster(make_tif(f"{name}.tif", land(low=1600))))
    assert offset_of(raster) == 0


def test_offset_as_told_wins(make_tif):
    raster = read_raster(make_tif("a.tif", land(low=1100), tags={"BOA_ADD_OFFSET": "-1000"}))
    assert offset_of(to_reflectance(raster, offset=0)) == 0


def test_offset_is_applied_once(make_tif):
    raster = to_reflectance(read_raster(make_tif("a.tif", land(low=1100))))
    assert to_reflectance(raster) is raster
    assert calibrate(raster) is raster


def test_negative_reflectance_is_legal(make_tif):
    array = land(low=1100)
    array[:, 0, :5] = 980
    raster = to_reflectance(read_raster(make_tif("a.tif", array)))
    np.testing.assert_allclose(raster.data[:, 0, :5], -0.002, atol=1e-7)
    assert raster.valid.all()


def test_zero_and_saturated_are_invalid(make_tif):
    array = land(low=1100)
    array[:, :3] = 0
    array[4, 10, 10] = 65535
    raster = to_reflectance(read_raster(make_tif("a.tif", array)))
    assert not raster.valid[:3].any()
    assert not raster.valid[10, 10]
    assert raster.valid.sum() == raster.valid.size - 3 * 40 - 1
    assert (raster.data[:, ~raster.valid] == FILL["reflectance"]).all()
    assert offset_of(raster) == -1000  # the zeros of the wedge are no dark pixels


def test_scale_and_offset_of_the_file(make_tif):
    array = land(low=1100)
    raster = to_reflectance(read_raster(make_tif("a.tif", array, scaling=(0.0001, -0.1))))
    np.testing.assert_allclose(raster.data, array * 0.0001 - 0.1, atol=1e-6)
    assert "band offset stored in the file" in raster.notes[-1]


def test_quantification_of_the_file(make_tif):
    array = land()
    raster = to_reflectance(read_raster(make_tif("a.tif", array, tags={"BOA_QUANTIFICATION_VALUE": "5000"})))
    np.testing.assert_allclose(raster.data, array / 5000, atol=1e-6)


def test_reflectance_stays_reflectance(make_tif):
    array = RNG.uniform(-0.02, 0.6, (12, 20, 20)).astype(np.float32)
    raster = to_reflectance(read_raster(make_tif("a.tif", array)))
    np.testing.assert_array_equal(raster.data, array)
    assert "already reflectance" in raster.notes[-1]


def test_decision_is_of_the_scene_not_of_the_tile(make_tif):
    array = land(low=2500, high=4000, side=200)
    array[:, :40, :40] = 300  # the only dark place
    path = make_tif("a.tif", array)
    tile = to_reflectance(read_raster(path, ["B04"], Window(100, 100, 64, 64)))
    assert offset_of(tile) == 0
    whole = to_reflectance(read_raster(path))
    np.testing.assert_array_equal(tile.data[0], whole.band("B04")[100:164, 100:164])


# Sentinel-1


def test_linear_and_db_and_dn_agree(make_tif):
    power = speckle()
    db = 10 * np.log10(power)
    dn = np.rint(np.sqrt(power) * 500).astype("uint16")
    rasters = [
        to_db(read_raster(make_tif(f"{name}.tif", array)))
        for name, array in (("linear", power), ("db", db), ("dn", dn))
    ]
    for raster, word, tolerance in zip(rasters, ("linear", "dB", "dn"), (1e-4, 1e-5, 0.3), strict=True):
        assert raster.unit == "dB"
        assert any(note.startswith(f"SAR scale {word}:") for note in raster.notes)
        assert raster.valid.all()
        np.testing.assert_allclose(raster.data, db, atol=tolerance)
    assert any("right to a few dB only" in note for note in rasters[2].notes)


def test_calibration_of_dn(make_tif):
    raster = read_raster(make_tif("a.tif", np.full((2, 8, 8), 300, "uint16")))
    np.testing.assert_allclose(to_db(raster, calibration=600.0).data, 20 * np.log10(0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("tags", "units", "names", "scale"),
    [
        ({"scale": "dB"}, None, None, "dB"),
        ({"scale": "linear"}, None, None, "linear"),
        ({"units": "decibel"}, None, None, "dB"),
        (None, ["dB", "dB"], None, "dB"),
        (None, None, ["Sigma0_VV_db", "Sigma0_VH_db"], "dB"),
    ],
)
def test_scale_is_told_by_the_file(make_tif, tags, units, names, scale):
    array = np.full((2, 8, 8), 0.5, np.float32)  # the values alone look linear
    raster = to_db(read_raster(make_tif("a.tif", array, tags=tags, units=units, names=names)))
    expected = 0.5 if scale == "dB" else 10 * np.log10(0.5)
    np.testing.assert_allclose(raster.data, expected, atol=1e-5)


@pytest.mark.parametrize(("middle", "scale"), [(0.3, "amplitude"), (120.5, "dn")])
def test_amplitude_by_the_names_of_snap(make_tif, middle, scale):
    values = (RNG.gamma(4, middle / 4, (2, 40, 40)) + 0.01).astype(np.float32)
    raster = calibrate(read_raster(make_tif("a.tif", values, names=["Amplitude_VV", "Amplitude_VH"])), "s1")
    assert raster.decided["scale"] == scale
    one = 1 if scale == "amplitude" else 500
    np.testing.assert_allclose(raster.data[:, raster.valid], 20 * np.log10(values / one)[:, raster.valid], atol=1e-3)


def test_scale_as_told_wins(make_tif):
    raster = read_raster(make_tif("a.tif", np.full((2, 8, 8), 0.5, np.float32), tags={"scale": "dB"}))
    np.testing.assert_allclose(to_db(raster, scale="linear").data, 10 * np.log10(0.5), atol=1e-5)
    np.testing.assert_allclose(to_db(raster, scale="amplitude").data, 20 * np.log10(0.5), atol=1e-5)
    with pytest.raises(UserError, match="'volts' is unknown"):
        to_db(raster, scale="volts")


def test_zero_power_is_invalid_never_infinite(make_tif):
    power = speckle()
    power[:, 20:30, 20:30] = 0
    raster = to_db(read_raster(make_tif("a.tif", power)))
    assert not raster.valid[20:30, 20:30].any()
    assert raster.valid.sum() == raster.valid.size - 100
    assert np.isfinite(raster.data).all()
    assert (raster.data[:, 20:30, 20:30] == FILL["dB"]).all()


def test_fill_values_that_nobody_declared(make_tif):
    db = 10 * np.log10(speckle())
    db[:, :4] = -9999
    raster = to_db(read_raster(make_tif("a.tif", db)))
    assert not raster.valid[:4].any()
    assert raster.valid[4:].all()
    power = speckle()
    power[:, :4] = -9999
    raster = to_db(read_raster(make_tif("b.tif", power)))
    assert any("SAR scale linear" in note for note in raster.notes)
    assert not raster.valid[:4].any()


def test_power_a_little_below_zero_is_linear(make_tif):
    power = speckle()
    power[0, 5, 5] = -0.001
    raster = to_db(read_raster(make_tif("a.tif", power)))
    assert any("SAR scale linear" in note for note in raster.notes)
    assert not raster.valid[5, 5]


@pytest.mark.parametrize("value", [5.5, -1500.0, 123.4])
def test_unclear_scale_is_asked_for(make_tif, value):
    with pytest.raises(UserError, match="give the scale"):
        to_db(read_raster(make_tif("a.tif", np.full((2, 8, 8), value, np.float32))))


def test_border_noise_is_invalid_and_calm_water_is_not(make_tif):
    power = speckle()
    power[:, :, :6] = 1e-6 * RNG.uniform(0.5, 2, (2, 64, 6))  # border noise
    power[:, 30:40, 30:40] = 5e-5  # below the threshold, but inside the image
    raster = to_db(read_raster(make_tif("a.tif", power)))
    assert not raster.valid[:, :6].any()
    assert raster.valid[:, 6:].all()
    assert any("border noise" in note for note in raster.notes)
    assert to_db(read_raster(make_tif("b.tif", power)), border_db=None).valid.all()


def test_border_noise_reaches_through_nodata():
    db = np.full((2, 10, 10), -12.0)
    valid = np.ones((10, 10), bool)
    valid[:, :3] = False
    db[:, :, 3:5] = -55
    noise = border_noise(db, valid)
    assert noise[:, 3:5].all()
    assert noise.sum() == 20


def test_border_noise_of_a_window_is_that_of_the_scene(make_tif):
    power = speckle(side=100)
    power[:, :, :6] = 1e-6
    power[:, 50:60, 50:60] = 1e-6  # calm water, that a window cuts at its edge
    path = make_tif("a.tif", power)
    assert to_db(read_raster(path, window=Window(50, 50, 30, 30))).valid.all()
    assert not to_db(read_raster(path, window=Window(2, 30, 30, 30))).valid[:, :4].any()


def test_8bit_sar_is_a_picture(make_tif):
    raster = to_db(read_raster(make_tif("a.tif", land(3, 0, 255, "uint8")), sensor="s1"))
    assert raster.unit == "display"
    assert "rendering" in raster.notes[-1]


# the registry


def test_nameless_files_are_taken_for_few_sensors(make_tif):
    arrays = {"s2_l2a": land(), "s2_l1c": land(13), "s1": speckle(), "rgb8": land(3, 0, 255, "uint8")}
    units = {"s2_l2a": "reflectance", "s2_l1c": "reflectance", "s1": "dB", "rgb8": "display"}
    for name, array in arrays.items():
        raster = calibrate(read_raster(make_tif(f"{name}.tif", array)))
        assert (raster.sensor, raster.unit) == (name, units[name])
        assert raster.data.dtype == np.float32
        assert raster.valid.shape == array.shape[1:]


def test_black_is_a_colour(make_tif):
    array = land(3, 0, 255, "uint8")
    array[:, :5] = 0
    assert to_display(read_raster(make_tif("a.tif", array))).valid.all()


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (land(5), {}, "from no known sensor; name it: --sensor s2_l2a"),
        (land(12), {"scale": "dB"}, "'scale' means nothing for Sentinel-2"),
        (land(3, 0, 255, "uint8"), {"sensor": "s2_l2a"}, "8-bit rendering"),
        (land(12), {"sensor": "rgb8"}, "an 8-bit rendering is uint8"),
    ],
)
def test_bad_requests(make_tif, array, options, message):
    with pytest.raises(UserError, match=message):
        calibrate(read_raster(make_tif("a.tif", array)), **options)


def test_nothing_left_after_calibration(make_tif):
    with pytest.raises(UserError, match="no valid pixel left"):
        calibrate(read_raster(make_tif("a.tif", np.zeros((12, 8, 8), "uint16"))))
