"""Quality bands to validity: Sentinel-2's scene classification (SCL), Landsat's QA_PIXEL, and HLS's Fmask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthmind_jax.errors import UserError

# Sentinel-2 Level-2A product specification, scene classification: no data, saturated or defective, cloud shadow,
# cloud of medium and of high probability, thin cirrus. Snow (11) and dark areas (2) are measurements.
SCL_INVALID = (0, 1, 3, 8, 9, 10)
SCL_LAST = 11
# Landsat Collection 2 QA_PIXEL: fill, dilated cloud, cirrus, cloud, cloud shadow. Snow (bit 5) is a measurement.
QA_INVALID_BITS = (0, 1, 2, 3, 4)
# HLS v2.0 Fmask: cirrus, cloud, next to one of them, shadow. Snow (bit 4) and water (5) are measurements, 255 is fill.
FMASK_INVALID_BITS = (0, 1, 2, 3)
QUALITY_BANDS = ("SCL", "QA_PIXEL", "Fmask")
BITS = {"QA_PIXEL": QA_INVALID_BITS, "Fmask": FMASK_INVALID_BITS}
CLOUD_CLASSES = (3, 8, 9, 10)  # of SCL: shadow, cloud of medium and high probability, thin cirrus
CLOUD_BITS = {"QA_PIXEL": (1, 2, 3, 4), "Fmask": FMASK_INVALID_BITS}  # all that is invalid but fill


def quality_of(sensor: str | None) -> str:
    """The quality band of a sensor's products."""
    return "QA_PIXEL" if str(sensor).startswith("landsat") else "Fmask" if sensor == "reflectance" else "SCL"


def cloudy(name: str, values: np.ndarray) -> np.ndarray:
    """bool: pixels that a quality band calls cloud, its shadow or cirrus; fill is none of them."""
    if name == "SCL":
        return np.isin(values, CLOUD_CLASSES)
    codes = np.nan_to_num(values, nan=0.0).astype(np.int64)
    fill = codes == 255 if name == "Fmask" else (codes & 1) != 0
    return ((codes & _mask(CLOUD_BITS[name])) != 0) & ~fill


def quality_valid(name: str, values: np.ndarray, path: str) -> np.ndarray:
    """bool: pixels that a quality band (``SCL``, ``QA_PIXEL`` or ``Fmask``) calls a clear view of the ground.

    Raises:
      UserError: values that the band cannot have.
    """
    values = np.nan_to_num(values, nan=0.0)
    if name in BITS:
        return (values.astype(np.int64) & _mask(BITS[name])) == 0
    if values.size and (values.min() < 0 or values.max() > SCL_LAST or (values % 1 != 0).any()):
        raise UserError(f"{path} is no scene classification: SCL values are whole numbers from 0 to {SCL_LAST}.")
    return ~np.isin(values, SCL_INVALID)


def _mask(bits: Sequence[int]) -> int:
    return sum(1 << bit for bit in bits)


def quality_note(name: str, valid: np.ndarray) -> str:
    """What the band took away, in words."""
    return f"{name} calls {1 - valid.mean():.1%} cloud, shadow or no data: invalid there"
