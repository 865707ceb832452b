"""A calibrated raster of whatever sensor as the bands that a model asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.config import SensorConfig

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster


def model_bands(raster: Raster, name: str, sensors: SensorConfig) -> dict[str, np.ndarray]:
    """The bands of a calibrated raster as the model asks for them."""
    there = dict(zip(raster.bands, raster.data, strict=True))
    if name == "optical":
        ranges = dict.fromkeys(sensors.optical_bands, sensors.optical_range)
        if len(there) == 1 and not set(there) <= set(ranges):  # a grey picture
            there = dict.fromkeys(ranges, next(iter(there.values())))
    else:
        ranges = dict(zip(sensors.sar_bands, sensors.sar_ranges, strict=True))
    if raster.unit == "display":
        there = {band: low + there[band] * np.float32((high - low) / 255) for band, (low, high) in ranges.items()
                 if band in there}  # fmt: skip
    for band, (low, high) in ranges.items():
        if band not in there:  # no cross-polarised band
            first = next(iter(there))
            bottom, top = ranges[first]
            share = (there[first] - bottom) / (top - bottom) if sensors.sar_channels == "replicate" else 0.0
            there[band] = (low + share * (high - low)) * np.ones_like(there[first])
    return there


def of_other_colours(pictures: Mapping[str, Any], bands: Mapping[str, Any], sensors: SensorConfig) -> tuple[str, ...]:
    """A note where a finished picture meets a model that was made for other bands than red, green and blue."""
    finished = isinstance(pictures.get("optical", (None,))[0], np.ndarray) or bands.get("optical", ()) is None
    if not finished or sensors.optical_bands == ("B04", "B03", "B02"):
        return ()
    made_for = " ".join(sensors.optical_bands)
    return (f"the optical image is a finished picture, used as it is; the model was made for {made_for}",)
