"""Are a SAR file's numbers decibels, power or amplitude, and whose? Its name and tags tell, else its values."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.sample import SceneSample

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

FAINTEST_DB, BRIGHTEST_DB = -100.0, 60.0  # beyond them a stored number is a fill value and not backscatter
TURNED_DB = 1.0  # the cross-polarised band is weaker than the co-polarised one, by 5 dB and more over most ground
COUNTS = 10.0  # a median from which on amplitudes are uncalibrated: calibrated ones are about 0.3
LEAST_DARK_DB = -3.0  # no scene's median is above it, both polarisations together
BRIGHT_MEDIAN_DB = -6.0  # a median above it makes one doubt that the values are power

_SCALE_WORDS = {
    **dict.fromkeys(("db", "decibel", "decibels", "log"), "dB"),
    **dict.fromkeys(("linear", "power", "linear power", "intensity", "natural"), "linear"),
    "amplitude": "amplitude",
    **dict.fromkeys(("dn", "digital number"), "dn"),
}
# Alaska Satellite Facility's RTC names: ..._RTC10_G_gpuned_...: gamma0 or sigma0, then power, amplitude or decibel.
_RTC_NAME = re.compile(r"_RTC\d{2}_[A-Z]_[gs]([pad])[uw][nf][ec][dm]")
# Copernicus Browser: power from 0 to 1 as whole numbers, or a picture of decibels.
_RAW = re.compile(r"(?i)Sentinel-1_.*_[VH]{2}_\(Raw\)")
_SHOWN = re.compile(r"(?i)Sentinel-1_.*_decibel")
_RTC_SCALE = {"p": "linear", "a": "amplitude", "d": "dB"}


def sar_scale(raster: Raster, sample: SceneSample, told: str | None) -> tuple[str, str]:
    """("dB" | "linear" | "amplitude" | "dn", reason) from the caller, the tags, or the whole scene's values."""
    if told is not None:
        if told.lower() not in _SCALE_WORDS:
            raise UserError(f"The SAR scale {told!r} is unknown; use dB, linear, amplitude or dn.")
        return _SCALE_WORDS[told.lower()], "as told"
    for key, value in raster.tags.items():
        word = str(value).lower()
        if key.lower() in ("scale", "sar_scale", "units", "unit", "backscatter_scale") and word in _SCALE_WORDS:
            return _SCALE_WORDS[word], f"tag {key}={value}"
    for unit in raster.units:
        if unit.lower() in _SCALE_WORDS:
            return _SCALE_WORDS[unit.lower()], f"band unit {unit}"
    if raster.descriptions and all(re.search(r"(?i)(^|[^a-z])db($|[^a-z])", text) for text in raster.descriptions):
        return "dB", f"band name {raster.descriptions[0]}"
    if raster.descriptions and all(re.search(r"(?i)(^|[^a-z])amplitude", text) for text in raster.descriptions):
        values = sample.known[0]
        calibrated = values.size == 0 or float(np.median(values)) < COUNTS
        return "amplitude" if calibrated else "dn", f"band name {raster.descriptions[0]}"
    named = _RTC_NAME.search(f"{PurePath(raster.path).name} {raster.tags.get('PRODUCT_URI', '')}")
    if named:
        return _RTC_SCALE[named.group(1)], f"the product name says so ({named.group().strip('_')})"
    if _SHOWN.search(PurePath(raster.path).name) and not raster.dtype.startswith("float"):
        raise UserError(
            f"{raster.path} shows decibels as {raster.dtype} between limits that it does not tell; download the band "
            "itself (Raw, as 32-bit numbers)."
        )
    scale, reason = _detect_sar_scale(sample, raster.path or raster.name)
    if scale == "dB" and raster.nameless:
        _require_backscatter(sample, raster.path or raster.name)
    return scale, reason


def browser_scaling(raster: Raster) -> tuple[float, float] | None:
    """(factor, term) to power of a raw band of Copernicus Browser in whole numbers; None of anything else."""
    whole = np.issubdtype(np.dtype(raster.dtype), np.integer)
    return (1 / np.iinfo(raster.dtype).max, 0.0) if whole and _RAW.search(PurePath(raster.path).name) else None


@lru_cache(maxsize=16)
def _detect_sar_scale(sample: SceneSample, name: str) -> tuple[str, str]:
    known, bands = sample.known
    values = known[np.isfinite(known) & (np.abs(known) < 1e6) & (known > -1000)]
    remedy = "give the scale (dB, linear, amplitude or dn) with --sar-scale"
    if values.size == 0:
        raise UserError(f"{name} has no values in {' '.join(bands)} to tell its scale from; {remedy}.")
    low, middle = float(values.min()), float(np.median(values))
    if low < 0 and not (low > -0.1 and 0 <= middle <= 1):  # noise removal leaves linear power a little below zero
        if not FAINTEST_DB < middle < BRIGHTEST_DB:
            raise UserError(
                f"{name} has a median of {middle:.4g}, which is no backscatter in dB; where it is dB times a number, "
                "store the band scale in the file (gdal_edit.py -scale 0.01 for dB x 100)."
            )
        for band, one in zip(known, bands, strict=True):
            if band.min() >= 0 and np.median(band) <= 1 and len(bands) > 1:
                raise UserError(
                    f"{name} has values below 0 in some bands, as dB has, and none in {one}: its bands are "
                    f"not in one scale; bring them to one, or, where it is all right, {remedy}."
                )
        return "dB", f"there are negative values (median {middle:.1f})"
    if middle <= 1:
        few = "no" if low >= 0 else "hardly any"
        doubt = "; bright for power, so give the scale if it is amplitude" if _bright(middle) else ""
        return "linear", f"{few} negative values and a median of {middle:.3g}{doubt}"
    if middle >= COUNTS and bool((values == np.rint(values)).all()):
        return "dn", f"large whole numbers (median {middle:.0f}): uncalibrated amplitude"
    raise UserError(
        f"{name} has a median of {middle:.4g} and nothing below 0: its scale is unclear; {remedy}, or calibrate it "
        "first where it is intensity (DN squared) that was not."
    )


@lru_cache(maxsize=16)
def _require_backscatter(sample: SceneSample, name: str) -> None:
    """UserError where what nothing but its count of bands and its signs make dB is none: two indices, a shift in x and
    in y."""
    values, bands = sample.known
    middle = float(np.median(values))
    if len(bands) > 1 and middle > LEAST_DARK_DB:
        raise UserError(
            f"{name} names no bands, and a median of {middle:.2g} is hardly backscatter in dB; where it is, name them "
            f"with --sar-bands {' '.join(bands)}, and of an optical image with --bands."
        )


def _bright(median: float) -> bool:
    return median > 10 ** (BRIGHT_MEDIAN_DB / 10)


@lru_cache(maxsize=16)
def require_order(sample: SceneSample, scale: str, name: str) -> None:
    """UserError where the second of two nameless bands, taken as cross-polarised, is the stronger one."""
    values, bands = sample.known
    if bands not in (("VV", "VH"), ("HH", "HV")) or values.shape[-1] == 0:
        return
    first, second = np.median(values, -1)
    above = second - first if scale == "dB" else (10 if scale == "linear" else 20) * np.log10(second / first)
    if above > TURNED_DB:
        turned = f"{bands[1]} {bands[0]}"
        raise UserError(
            f"{name} names no bands and its second one is {above:.1f} dB stronger than its first: they seem to be "
            f"{turned}, in which order SNAP writes them; name them with --sar-bands {turned}, or, of an optical image, "
            "with --bands."
        )
