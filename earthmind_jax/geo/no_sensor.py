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
QUALITY = "a quality band"
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
        words = f"_{PurePath(raw.path).stem.upper()}_".replace(".", "_")
        if any(f"_{name.upper()}_" in words for name in QUALITY_BANDS):
            return "labels", f"{QUALITY}, not a sensor's image: tell it beside its image (--scl)"
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


def require_image(path: str | os.PathLike[str], kind: str) -> None:
    """UserError where a file given as the ``optical`` or ``sar`` image looks like something else: one nameless band of
    few whole numbers that fill areas, of a quality band, or, for an optical one, of heights."""
    raw = read_overview(path, labels=True)
    found = no_sensor(raw)
    if found is None:
        return
    option, sensor = ("--sar-sensor", "s1") if kind == "sar" else ("--sensor", "rgb8")
    given = f"{raw.path} was given as the {'SAR' if kind == 'sar' else kind} image but looks like"
    if found[0] == "heights":
        if kind == "sar":  # one band of calm water may be as smooth
            return
        raise UserError(f"{given} {found[1]}.")
    steps = _steps(raw)
    patchy = steps.size > 0 and np.ptp(raw.data[0][raw.valid]) > 0 and (steps == 0).mean() >= PATCHY
    if patchy or found[1].startswith(QUALITY):
        raise UserError(
            f"{given} a label raster: {found[1].partition(',')[0]}; give the image itself, or say that this is one "
            f"with {option} (such as {option} {sensor})."
        )


def _steps(raw: Raster) -> np.ndarray:
    """Differences [n] of valid neighbours along the rows."""
    both = raw.valid[:, 1:] & raw.valid[:, :-1]
    return np.abs(np.diff(raw.data[0].astype(np.float64)))[both]
