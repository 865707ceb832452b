"""Brightness pictures of sensors whose numbers have no unit that a model knows: very-high-resolution colour, infrared.

The 2nd and 98th percentile of the valid pixels of the whole scene become black and white, band by band; they come from
the decimated scene and never from a tile, so that a pixel looks the same in every window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.sample import LARGEST, percentiles, sample_between

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

LOW_PERCENT, HIGH_PERCENT = 2.0, 98.0
WHITE = 255.0
DARKEST = -999.0  # colour numbers are hardly ever below zero: undeclared fill values
_COLDEST = {"kelvin": 100.0, "celsius": -150.0, "counts": -9999.0}  # nothing on Earth is colder: undeclared fill values
_UNIT_WORDS = {
    **dict.fromkeys(("k", "kelvin", "degree_kelvin"), "kelvin"),
    **dict.fromkeys(("c", "°c", "degc", "deg_c", "celsius", "degree_celsius", "degrees celsius"), "celsius"),
    **dict.fromkeys(("dn", "counts", "count", "digital number"), "counts"),
}


def to_picture(raster: Raster) -> Raster:
    """Colour bands as float32 0..255: 8-bit ones as they are, others stretched between scene percentiles; in numbers of
    more than 8 bits, zero in every band is no data."""
    if raster.unit == "display":
        return raster
    _require_raw(raster)
    if raster.dtype == "uint8":
        data = np.asarray(raster.data, np.float32)
        return raster.calibrated(data, raster.valid, "display", ["8-bit colour, used as it is"])
    empty = ((raster.data == 0).all(0) | ~((raster.data > DARKEST) & (raster.data < LARGEST)).all(0)) & raster.valid
    data, bounds = stretched(raster, above=DARKEST)
    notes = [f"{raster.dtype} numbers shown from black to white by the scene's 2nd and 98th percentile: {bounds}"]
    if empty.any():
        notes.append(f"{int(empty.sum())} pixels that are zero in every band, or hold fill values, are invalid")
    return raster.calibrated(data, raster.valid & ~empty, "display", notes)


def to_infrared(raster: Raster, *, scale: str | None = None) -> Raster:
    """A single infrared or thermal band as brightness 0..255 between scene percentiles, warm is bright.

    Args:
      scale: "kelvin", "celsius" or "counts"; from units, tags or values where None. It decides which numbers are fill;
        the brightness is the same for each.
    """
    if raster.unit == "display":
        return raster
    _require_raw(raster)
    unit, reason = _unit(raster, scale)
    values = np.asarray(raster.data, np.float32)
    measured = ((values > _COLDEST[unit]) & (values < LARGEST) & ((values != 0) | (unit == "celsius"))).all(0)
    data, bounds = stretched(raster, above=_COLDEST[unit], keep_zero=unit == "celsius")
    notes = [f"{unit} ({reason}); brightness by the scene's 2nd and 98th percentile: {bounds}"]
    dropped = int((raster.valid & ~measured).sum())
    if dropped:
        notes.append(f"{dropped} pixels hold fill values and are invalid")
    return raster.calibrated(data, raster.valid & measured, "display", notes, {"unit": unit})


def stretched(raster: Raster, *, above: float = -np.inf, keep_zero: bool = False) -> tuple[np.ndarray, str]:
    """(float32 [C H W] 0..255 between the scene percentiles of values over ``above``, the bounds in words)."""
    sample = sample_between(raster.scene_sample(), -np.inf, LARGEST)
    data, told = np.empty(raster.data.shape, np.float32), []
    for i, name in enumerate(raster.stored or raster.bands):
        low, high = percentiles(sample, name, LOW_PERCENT, HIGH_PERCENT, above, keep_zero)
        told.append(f"{name} {low:.6g} to {high:.6g}")
        data[i] = between(raster.data[i], low, high)
    return data, ", ".join(told)


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """float32 0..255: black at ``low``, white at ``high``, clipped; mid-grey where the scene is all the same."""
    share = (np.asarray(values, np.float64) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return (np.clip(share, 0, 1) * WHITE).astype(np.float32)


def _require_raw(raster: Raster) -> None:
    if raster.unit != "raw":
        raise UserError(f"{raster.name} is calibrated already ({raster.unit}); read it again to stretch it.")


def _unit(raster: Raster, told: str | None) -> tuple[str, str]:
    if told is not None:
        if told.lower() not in _UNIT_WORDS:
            raise UserError(f"The infrared scale {told!r} is unknown; use kelvin, celsius or counts.")
        return _UNIT_WORDS[told.lower()], "as told"
    tags = {key.lower(): str(value) for key, value in raster.tags.items()}
    for word in (*raster.units, tags.get("units", ""), tags.get("unit", "")):
        if word.lower() in _UNIT_WORDS:
            return _UNIT_WORDS[word.lower()], f"unit {word}"
    values, _ = raster.scene_sample().known
    values = values[np.isfinite(values) & (np.abs(values) < 1e6)]
    middle = float(np.median(values[values > -1000])) if (values > -1000).any() else 0.0
    if raster.dtype.startswith("float") and 180 < middle < 400:
        return "kelvin", f"the median is {middle:.1f}"
    if raster.dtype.startswith("float") and -90 < middle < 90:
        return "celsius", f"the median is {middle:.1f}"
    return "counts", f"{raster.dtype} with a median of {middle:.6g}"
