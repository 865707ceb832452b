"""Named bands, sensor ranges, channel padding and nodata."""

from __future__ import annotations

import numpy as np
import pytest

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.frames import optical_frames, sar_frames
from earthmind_jax.data.tiles import normalise, to_uint8
from earthmind_jax.errors import UserError

rng = np.random.default_rng(0)
OPTICAL = {name: rng.uniform(0, 0.3, (5, 7)).astype(np.float32) for name in ("B02", "B03", "B04", "B08", "B11", "B12")}
SAR = {"VH": rng.uniform(-32.5, 0, (5, 7)).astype(np.float32), "VV": rng.uniform(-25, 0, (5, 7)).astype(np.float32)}


def test_optical_bands_by_name():
    frames, valid = optical_frames(OPTICAL, SensorConfig())
    assert frames.shape == (1, 5, 7, 3)
    assert frames.dtype == np.float32
    assert valid.all()
    for channel, name in enumerate(("B04", "B03", "B02")):
        np.testing.assert_allclose(frames[0, ..., channel], OPTICAL[name] / 0.3, rtol=1e-6)
    shuffled, _ = optical_frames(dict(reversed(OPTICAL.items())), SensorConfig())
    np.testing.assert_array_equal(frames, shuffled)


def test_optical_triplets_make_frames():
    sensors = SensorConfig(optical_bands=("B04", "B03", "B02", "B12", "B11", "B08"), optical_range=(0.1, 0.2))
    frames, _ = optical_frames(OPTICAL, sensors)
    assert frames.shape == (2, 5, 7, 3)
    np.testing.assert_allclose(frames[1, ..., 2], np.clip((OPTICAL["B08"] - 0.1) / 0.1, 0, 1), atol=1e-6)
    assert frames.min() == 0
    assert frames.max() == 1


def test_missing_band_names_what_is_there():
    with pytest.raises(UserError, match=r"no band 'B01'.*Bands there: B02, B03, B04"):
        optical_frames(OPTICAL, SensorConfig(optical_bands=("B01", "B02", "B03")))
    with pytest.raises(UserError, match="SAR image has no band 'VV'"):
        sar_frames({"VH": SAR["VH"]}, SensorConfig())
    with pytest.raises(UserError, match="one size"):
        sar_frames({"VV": SAR["VV"], "VH": SAR["VH"][:3]}, SensorConfig())
    with pytest.raises(UserError, match="validity mask"):
        sar_frames(SAR, SensorConfig(), np.ones((2, 2), bool))
    with pytest.raises(UserError, match="low to high"):
        optical_frames(OPTICAL, SensorConfig(optical_range=(0.3, 0.3)))


def test_sar_channels():
    vv, vh = SAR["VV"] / 25 + 1, SAR["VH"] / 32.5 + 1
    padded, _ = sar_frames(SAR, SensorConfig())
    np.testing.assert_allclose(padded[0], np.stack([vv, vh, np.zeros_like(vv)], -1), atol=1e-6)
    repeated, _ = sar_frames(SAR, SensorConfig(sar_channels="replicate"))
    np.testing.assert_allclose(repeated[0], np.stack([vv, vh, vv], -1), atol=1e-6)
    one = SensorConfig(sar_bands=("VV",), sar_ranges=((-25.0, 0.0),))
    np.testing.assert_allclose(sar_frames(SAR, one)[0][0], np.stack([vv, 0 * vv, 0 * vv], -1), atol=1e-6)
    grey = SensorConfig(sar_bands=("VV",), sar_ranges=((-25.0, 0.0),), sar_channels="replicate")
    np.testing.assert_allclose(sar_frames(SAR, grey)[0][0], np.stack([vv] * 3, -1), atol=1e-6)


def test_four_polarisations_make_two_frames():
    names = ("HH", "HV", "VH", "VV")
    bands = {name: np.full((2, 2), -10.0 - i, np.float32) for i, name in enumerate(names)}
    frames, _ = sar_frames(bands, SensorConfig(sar_bands=names, sar_ranges=((-20.0, 0.0),) * 4))
    np.testing.assert_allclose(frames[:, 0, 0], [[0.5, 0.45, 0.4], [0.35, 0, 0]], atol=1e-6)


def test_nodata_is_the_mean_colour():
    bands = {name: band.copy() for name, band in OPTICAL.items()}
    bands["B03"][1, 2] = np.nan
    mask = np.ones((5, 7), bool)
    mask[4] = False
    frames, valid = optical_frames(bands, SensorConfig(), mask)
    expected = mask.copy()
    expected[1, 2] = False
    np.testing.assert_array_equal(valid, expected)
    assert np.isfinite(frames).all()
    np.testing.assert_allclose(normalise(frames)[0][~valid], 0, atol=1e-6)
    assert np.abs(normalise(to_uint8(frames))[0][~valid]).max() <= 0.5 / 255 / 0.224 + 1e-6
    frames, valid = sar_frames(SAR, SensorConfig(), mask)
    np.testing.assert_allclose(normalise(frames)[0][~valid], 0, atol=1e-6)
