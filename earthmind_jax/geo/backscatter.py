"""SAR backscatter in dB, from whatever scale the file has, without the noise at the image border.

Backscatter is a power; averages and resampling belong to the linear scale (``align``), display and networks to dB.
log10(0) is not a number: pixels without power are invalid.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.reflectance import file_scaling
from earthmind_jax.geo.regions import label_regions
from earthmind_jax.geo.sample import SceneSample
from earthmind_jax.geo.sar_calibration import SceneCalibration, amplitude_of_one

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

FAINTEST_DB, BRIGHTEST_DB = -100.0, 60.0  # beyond them a stored number is a fill value and not backscatter
BORDER_DB = -40.0  # far below the noise floor of any Sentinel-1 mode
NOMINAL_CALIBRATION = 500.0  # amplitude of 0 dB where the product's calibration table is not at hand; right to a few dB
MIDDLE_DB = -11.0  # median of co-polarised land in C-band: where a scene without any calibration is put
BRIGHT_MEDIAN_DB = -6.0  # a median above it makes one doubt that the values are power

_SCALE_WORDS = {
    **dict.fromkeys(("db", "decibel", "decibels", "log"), "dB"),
    **dict.fromkeys(("linear", "power", "linear power", "intensity", "natural"), "linear"),
    "amplitude": "amplitude",
    **dict.fromkeys(("dn", "digital number"), "dn"),
}
# Alaska Satellite Facility's RTC names: ..._RTC10_G_gpuned_...: gamma0 or sigma0, then power, amplitude or decibel.
_RTC_NAME = re.compile(r"_RTC\d{2}_[A-Z]_[gs]([pad])[uw][nf][ec][dm]")
_RTC_SCALE = {"p": "linear", "a": "amplitude", "d": "dB"}


def to_db(
    raster: Raster,
    *,
    scale: str | None = None,
    calibration: float | None = None,
    border_db: float | None = BORDER_DB,
    nominal: float | None = NOMINAL_CALIBRATION,
) -> Raster:
    """Backscatter in dB, from dB, linear power or amplitude. Zero power is invalid, never -inf.

    Args:
      scale: "dB", "linear" (power), "amplitude" (calibrated, power = value squared) or "dn" (uncalibrated
        amplitude); from tags or the data where None.
      calibration: the amplitude whose power is 1, for "dn": dB = 20 log10(DN / calibration); from the product's
        tags where None.
      border_db: pixels below it that hang together with the edge or with nodata are border noise; None keeps them.
      nominal: the calibration where nobody tells it; None puts the scene's median at ``MIDDLE_DB`` instead.
    """
    if raster.unit in ("dB", "display"):
        return raster
    if raster.unit != "raw":
        raise UserError(f"{raster.name} holds {raster.unit}, which is not SAR backscatter.")
    if raster.dtype == "uint8" and scale is None:
        return _as_picture(raster)
    data, sample, notes = np.asarray(raster.data, np.float32), raster.scene_sample(), []
    own = file_scaling(raster)
    if own is not None:
        data, sample = data * np.float32(own[0]) + np.float32(own[1]), _scaled(sample, *own)
        notes.append(f"numbers x {own[0]:g} {own[1]:+g} (band scale and offset of the file)")
    scale, reason = _sar_scale(raster, sample, scale)
    notes.append(f"SAR scale {scale}: {reason}")
    one: float | SceneCalibration = 1.0
    if scale == "dn":
        one, note = _one(raster, sample, calibration, nominal)
        notes.append(note)
    amplitude = one.at(*raster.scene_centres()) if isinstance(one, SceneCalibration) else one
    db, physical = _decibels(data, scale, amplitude)
    if scale == "dB" and raster.dtype.startswith("float"):
        physical &= (raster.data != 0).any(0)  # nothing measured is 0 dB to the last digit in every band: a fill value
    dropped = int((raster.valid & ~physical).sum())
    if dropped:
        notes.append(f"{dropped} pixels without power (zero, fill value) are invalid")
    valid = raster.valid & physical
    if border_db is not None:
        faint = valid & (db < border_db).any(0)
        noise = faint & _near_edge(raster, sample, scale, one, border_db) if faint.any() else faint
        if noise.any():
            notes.append(
                f"{int(noise.sum())} pixels of border noise (below {border_db:.0f} dB at the edge) are invalid"
            )
            valid &= ~noise
    return raster.calibrated(db, valid, "dB", notes, {"scale": scale})


def border_noise(db: np.ndarray, valid: np.ndarray, floor_db: float = BORDER_DB) -> np.ndarray:
    """bool [H W]: valid pixels of a whole scene below ``floor_db`` in some band that hang together (8-connected,
    through nodata) with its edge. Calm water inside the image stays."""
    faint = valid & (np.where(valid, db, 0) < floor_db).any(0)
    return faint & _from_edge(faint | ~valid) if faint.any() else faint


def _from_edge(mask: np.ndarray) -> np.ndarray:
    """bool [H W]: the part of ``mask`` that hangs together (8-connected) with the edge of the image."""
    label = label_regions(np.pad(mask, 1, constant_values=True))
    return (label == label[0, 0])[1:-1, 1:-1]


@lru_cache(maxsize=16)
def _scaled(sample: SceneSample, factor: float, term: float) -> SceneSample:
    """A sample of stored numbers times the band scale, once for all windows of a scene; zero stays nothing."""
    values = np.where(sample.values == 0, 0, sample.values * np.float32(factor) + np.float32(term))
    return SceneSample(values.astype(np.float32), sample.valid, sample.bands)


def _near_edge(raster: Raster, sample: SceneSample, scale: str | None, one: Any, floor_db: float) -> np.ndarray:
    """bool [H W]: where a faint pixel is border noise. Decided on the decimated scene, so that it is the same in every
    window; one sample pixel more, since the decimation may step over a thin rim."""
    chosen = tuple(sample.bands.index(name) for name in raster.stored or raster.bands)
    near = _edge_of_scene(sample, chosen, scale, one, floor_db)
    rows, columns = raster.scene_positions(near.shape)
    return near[rows[:, None], columns[None, :]]


@lru_cache(maxsize=16)
def _edge_of_scene(
    sample: SceneSample, bands: tuple[int, ...], scale: str | None, one: Any, floor_db: float
) -> np.ndarray:
    values = sample.values[list(bands)]
    if scale is None:
        nothing = (values == 0).all(0)
    else:
        amplitude = one.decimated(*sample.valid.shape) if isinstance(one, SceneCalibration) else one
        db, physical = _decibels(values, scale, amplitude)
        nothing = ~physical | (np.where(physical, db, 0) < floor_db).any(0)
    grown = np.pad(_from_edge(nothing | ~sample.valid), 1, constant_values=True)
    height, width = sample.valid.shape
    return np.logical_or.reduce([grown[r : r + height, c : c + width] for r in range(3) for c in range(3)])


def _decibels(data: np.ndarray, scale: str, one: Any) -> tuple[np.ndarray, np.ndarray]:
    """(dB [C H W], bool [H W] where every band is one that a radar can measure); ``one`` is the amplitude of 0 dB, a
    number or [C H W]."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if scale == "dB":
            db = data
        elif scale == "linear":
            db = 10 * np.log10(data)
        else:
            db = 20 * np.log10(np.where(data >= 0, data, np.nan) / np.asarray(one, np.float32))
        return db, (np.isfinite(db) & (db > FAINTEST_DB) & (db < BRIGHTEST_DB)).all(0)


def _as_picture(raster: Raster) -> Raster:
    """8-bit SAR as brightness; zeros that hang together with the edge are the padding around a turned image."""
    notes = ["8-bit SAR is a rendering whose dB range is unknown: used as a picture"]
    data = np.asarray(raster.data, np.float32)
    zero = raster.valid & (data == 0).all(0)
    wedge = zero & _near_edge(raster, raster.scene_sample(), None, 1.0, 0.0) if zero.any() else zero
    if wedge.any() and not (wedge | ~raster.valid).all():
        notes.append(f"{int(wedge.sum())} pixels of zeros at the edge are padding and invalid")
    return raster.calibrated(data, raster.valid & ~wedge, "display", notes)


def _one(
    raster: Raster, sample: SceneSample, told: float | None, nominal: float | None
) -> tuple[float | SceneCalibration, str]:
    """(amplitude of 0 dB, why)."""
    if told is not None:
        if not (np.isfinite(told) and told > 0):
            raise UserError(f"The calibration is the amplitude of 0 dB, a number above zero, not {told}.")
        return told, f"0 dB at DN {told:g}, as told"
    tables = raster.product.calibration if raster.product is not None else {}
    names = raster.stored or raster.bands
    if tables and set(names) <= set(tables):
        calibration = SceneCalibration(tuple(tables[name] for name in names), raster.scene_shape or raster.shape)
        return calibration, str(calibration)
    found = amplitude_of_one(raster.tags)
    if found is not None:
        return found[0], f"0 dB at DN {found[0]:g}: {found[1]}"
    if nominal is not None:
        return nominal, f"no calibration given: 0 dB set at DN {nominal:.0f}, so levels are right to a few dB only"
    one = _one_of_median(sample)
    return one, f"no calibration given: the scene's median set to {MIDDLE_DB:.0f} dB, so levels are relative"


@lru_cache(maxsize=16)
def _one_of_median(sample: SceneSample) -> float:
    values, bands = sample.known
    like = [i for i, name in enumerate(bands) if name in ("HH", "VV")] or [0]
    middle = float(np.median(values[like])) if values.size else 1.0
    return max(middle, 1e-6) / 10 ** (MIDDLE_DB / 20)


def _sar_scale(raster: Raster, sample: SceneSample, told: str | None) -> tuple[str, str]:
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
    named = _RTC_NAME.search(f"{PurePath(raster.path).name} {raster.tags.get('PRODUCT_URI', '')}")
    if named:
        return _RTC_SCALE[named.group(1)], f"the product name says so ({named.group().strip('_')})"
    return _detect_sar_scale(sample, raster.path or raster.name)


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
    if middle >= 10 and bool((values == np.rint(values)).all()):
        return "dn", f"large whole numbers (median {middle:.0f}): uncalibrated amplitude"
    raise UserError(f"{name} has a median of {middle:.4g} and nothing below 0: its scale is unclear; {remedy}.")


def _bright(median: float) -> bool:
    return median > 10 ** (BRIGHT_MEDIAN_DB / 10)
