"""Single bands that are no sensor's image: class values of a label raster, heights."""

from __future__ import annotations

import os
from pathlib import PurePath

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.overview import read_overview
from earthmind_jax.geo.quality import QUALITY_BANDS
from earthmind_jax.geo.raster import Raster

MOST_CLASSES = 64  # of an 8-bit label raster
MOST_WIDE_CLASSES = 8  # of one with more bits, which heights have, too
SMOOTH = 0.2  # mean step between neighbours over the standard deviation: heights are smooth, backscatter is not
PATCHY = 0.6  # share of neighbours of one value, from which on few values are areas of a map and no dark picture


def no_sensor(raw: Raster, palette: bool = False) -> tuple[str, str] | None:
    """("labels" or "heights", the sentence that says so) of a single band that is no sensor's image."""
    if len(raw.bands) != 1 or (raw.sensor is not None and not palette):
        return None
    values = raw.data[0][raw.valid].astype(np.float64)
    kinds = np.unique(values)
    whole = bool((kinds == np.rint(kinds)).all())
    most = MOST_CLASSES if raw.dtype == "uint8" else MOST_WIDE_CLASSES
    if palette or (whole and kinds.size <= most):
        words = f"_{PurePath(raw.path).stem.upper()}_"
        if any(f"_{name}_" in words for name in QUALITY_BANDS):
            return "labels", "a quality band, not a sensor's image: tell it beside its image (--scl)"
        listed = " ".join(f"{value:.0f}" for value in kinds[:12]) + (" ..." if kinds.size > 12 else "")
        return "labels", f"class values ({listed}), not a sensor's image: truth to compare with (segment --truth)"
    if raw.dtype in ("uint8", "uint16") or values.min() < -500 or values.max() > 9000:
        return None
    steps = _steps(raw)
    if steps.size and steps.mean() < SMOOTH * values.std():
        heights = f"{values.min():.4g} to {values.max():.4g}"
        return "heights", (
            f"smooth single values ({heights}), heights, an index or the like, not a sensor's image; where they are "
            "temperatures, say so (--sensor infrared)"
        )
    return None


def require_no_labels(path: str | os.PathLike[str], kind: str) -> None:
    """UserError where a file given as the ``optical`` or ``sar`` image looks like a label raster: one nameless band of
    few whole numbers that fill areas."""
    raw = read_overview(path, labels=True)
    found = no_sensor(raw)
    if found is None or found[0] != "labels":
        return
    steps = _steps(raw)
    if np.ptp(raw.data[0][raw.valid]) == 0 or not steps.size or (steps == 0).mean() < PATCHY:
        return
    option, sensor = ("--sar-sensor", "s1") if kind == "sar" else ("--sensor", "rgb8")
    name = "SAR" if kind == "sar" else kind
    raise UserError(
        f"{raw.path} was given as the {name} image but looks like a label raster: {found[1].partition(',')[0]}; give "
        f"the image itself, or say that this is one with {option} (such as {option} {sensor})."
    )


def _steps(raw: Raster) -> np.ndarray:
    """Differences [n] of valid neighbours along the rows."""
    both = raw.valid[:, 1:] & raw.valid[:, :-1]
    return np.abs(np.diff(raw.data[0].astype(np.float64)))[both]
