"""Surface reflectance of any optical sensor: by the file's own scale, as it is, or by the usual factor of 10,000."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.reflectance import (
    ALREADY,
    POSSIBLE,
    QUANTIFICATION,
    file_scaling,
    is_reflectance,
    require_measured,
)
from earthmind_jax.geo.sample import LARGEST, sample_between

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

LIKELY = 0.03, 1.5  # the 99th percentile of a scene's reflectance is above the one, its median below the other


def to_scaled_reflectance(raster: Raster) -> Raster:
    """Reflectance from numbers around 1, numbers with a band scale, or reflectance x 10,000.

    Zero in every band of whole numbers without a sign is no data, and so are numbers that no reflectance has.

    Raises:
      UserError: 8-bit numbers, or such as neither factor makes a reflectance of.
    """
    if raster.unit == "reflectance":
        return raster
    require_measured(raster)
    sample = sample_between(raster.scene_sample(), -LARGEST, LARGEST)
    own, notes = file_scaling(raster), []
    if own is not None:
        scale, offset = own
        notes.append(f"reflectance = DN x {scale:g} {offset:+g} (band scale and offset of the file)")
    elif raster.dtype.startswith("float") and is_reflectance(sample.known[0]):
        scale, offset = 1.0, 0.0
        notes.append(ALREADY)
    else:
        scale, offset = 1 / QUANTIFICATION, 0.0
        notes.append(f"reflectance = DN / {QUANTIFICATION:.0f}, as surface reflectance is stored")
        _require_likely(raster, sample_between(sample, *(bound / scale for bound in POSSIBLE)).known[0] * scale)
    low, high = POSSIBLE
    stored = np.asarray(raster.data, np.float32)
    data = stored * np.float32(scale) + np.float32(offset)
    fill = raster.valid & ~((data > low) & (data < high)).all(0)
    if raster.dtype.startswith("uint"):
        fill |= raster.valid & (stored == 0).all(0)
    if fill.any():
        notes.append(f"{int(fill.sum())} pixels are zero in every band, or hold fill values, and are invalid")
    return raster.calibrated(data, raster.valid & ~fill, "reflectance", notes)


def _require_likely(raster: Raster, values: np.ndarray) -> None:
    """UserError where a scene of numbers / 10,000 would be black or white throughout: they have another factor."""
    if values.size == 0:
        return
    bright, middle = float(np.percentile(values, 99)), float(np.median(values))
    if bright < LIKELY[0] or middle > LIKELY[1]:
        raise UserError(
            f"{raster.path or raster.name} would have a median reflectance of {middle:.3g} and {bright:.3g} at its "
            "brightest: its numbers are no reflectance, nor reflectance x 10000; store the band scale in the file "
            "(gdal_edit.py -scale 0.01 for percent), or, where they are mere brightness, say so (--sensor vhr)."
        )
