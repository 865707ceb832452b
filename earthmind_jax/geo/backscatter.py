"""Sentinel-1 backscatter in dB, from whatever scale the file has, without the noise at the image border.

Backscatter is a power; averages and resampling belong to the linear scale (``align``), display and networks to dB.
log10(0) is not a number: pixels without power are invalid.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.regions import label_regions

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

FAINTEST_DB, BRIGHTEST_DB = -100.0, 60.0  # beyond them a stored number is a fill value and not backscatter
BORDER_DB = -40.0  # far below the noise floor of any Sentinel-1 mode
NOMINAL_CALIBRATION = 500.0  # amplitude of 0 dB where the product's calibration table is not at hand; right to a few dB

_SCALE_WORDS = {
    **dict.fromkeys(("db", "decibel", "decibels", "log"), "dB"),
    **dict.fromkeys(("linear", "power", "linear power", "intensity", "natural"), "linear"),
    "amplitude": "amplitude",
    **dict.fromkeys(("dn", "digital number"), "dn"),
}


def to_db(
    raster: Raster, *, scale: str | None = None, calibration: float | None = None, border_db: float | None = BORDER_DB
) -> Raster:
    """Backscatter in dB, from dB, linear power or amplitude. Zero power is invalid, never -inf.

    Args:
      scale: "dB", "linear" (power), "amplitude" (calibrated, power = value squared) or "dn" (uncalibrated
        amplitude); from tags or the data where None.
      calibration: the amplitude whose power is 1, for "dn": dB = 20 log10(DN / calibration).
      border_db: pixels below it that hang together with the edge or with nodata are border noise; None keeps them.
    """
    if raster.unit in ("dB", "display"):
        return raster
    if raster.unit != "raw":
        raise UserError(f"{raster.name} holds {raster.unit}, which is not SAR backscatter.")
    if raster.dtype == "uint8" and scale is None:
        note = "8-bit SAR is a rendering whose dB range is unknown: used as a picture"
        return raster.calibrated(np.asarray(raster.data, np.float32), raster.valid, "display", [note])
    scale, reason = _sar_scale(raster, scale)
    notes = [f"SAR scale {scale}: {reason}"]
    data = np.asarray(raster.data, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        if scale == "dB":
            db = data
        elif scale == "linear":
            db = 10 * np.log10(data)
        else:
            one = 1.0 if scale == "amplitude" else calibration or NOMINAL_CALIBRATION
            if scale == "dn" and calibration is None:
                notes.append(f"no calibration given: 0 dB set at DN {one:.0f}, so levels are right to a few dB only")
            db = 20 * np.log10(np.where(data >= 0, data, np.nan) / one)
        physical = (np.isfinite(db) & (db > FAINTEST_DB) & (db < BRIGHTEST_DB)).all(0)
    dropped = int((raster.valid & ~physical).sum())
    if dropped:
        notes.append(f"{dropped} pixels without power (zero, fill value) are invalid")
    valid = raster.valid & physical
    if border_db is not None:
        noise = border_noise(db, valid, _scene_edges(raster), border_db)
        if noise.any():
            notes.append(
                f"{int(noise.sum())} pixels of border noise (below {border_db:.0f} dB at the edge) are invalid"
            )
            valid &= ~noise
    return raster.calibrated(db, valid, "dB", notes)


def border_noise(
    db: np.ndarray, valid: np.ndarray, edges: tuple[bool, bool, bool, bool] = (True,) * 4, floor_db: float = BORDER_DB
) -> np.ndarray:
    """bool [H W]: valid pixels below ``floor_db`` in some band that hang together (8-connected, through nodata) with an
    edge of the scene (top, bottom, left, right) or with nodata that does. Calm water inside the image stays."""
    faint = valid & (np.where(valid, db, 0) < floor_db).any(0)
    if not faint.any():
        return faint
    label = label_regions(faint | ~valid)
    sides = (label[0], label[-1], label[:, 0], label[:, -1])
    seeds = [side for side, is_edge in zip(sides, edges, strict=True) if is_edge]
    if not all(edges):
        seeds.append(label[~valid])  # a window may see the wedge only through its nodata
    reached = np.unique(np.concatenate(seeds)) if seeds else np.zeros(0, np.int32)
    return faint & np.isin(label, reached[reached > 0])


def _scene_edges(raster: Raster) -> tuple[bool, bool, bool, bool]:
    window, size = raster.window, raster.scene_shape
    if window is None or size is None:
        return (True,) * 4
    bottom, right = window.row_off + window.height, window.col_off + window.width
    return window.row_off <= 0, bottom >= size[0], window.col_off <= 0, right >= size[1]


def _sar_scale(raster: Raster, told: str | None) -> tuple[str, str]:
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
    return _detect_sar_scale(raster)


def _detect_sar_scale(raster: Raster) -> tuple[str, str]:
    values, bands = raster.scene_values()
    values = values[np.isfinite(values) & (np.abs(values) < 1e6) & (values > -1000)]
    remedy = "give the scale (dB, linear, amplitude or dn)"
    if values.size == 0:
        raise UserError(f"{raster.name} has no values in {' '.join(bands)} to tell its scale from; {remedy}.")
    low, middle = float(values.min()), float(np.median(values))
    if low < 0 and not (low > -0.1 and 0 <= middle <= 1):  # noise removal leaves linear power a little below zero
        if not FAINTEST_DB < middle < BRIGHTEST_DB:
            raise UserError(f"{raster.name} has a median of {middle:.4g}, which is no backscatter in dB; {remedy}.")
        return "dB", f"there are negative values (median {middle:.1f})"
    if middle <= 1:
        return "linear", f"no negative values and a median of {middle:.3g}"
    if middle >= 10 and bool((values == np.rint(values)).all()):
        return "dn", f"large whole numbers (median {middle:.0f}): uncalibrated amplitude"
    raise UserError(f"{raster.name} has a median of {middle:.4g} and nothing below 0: its scale is unclear; {remedy}.")
