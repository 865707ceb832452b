"""From stored numbers to physical ones: one entry per sensor in ``SENSORS``.

Whatever the file does not say is decided once for the whole scene (never for a tile), and every decision is written
into the raster's ``notes`` with its reason. A calibrated raster has a finite number at every pixel; ``valid`` says
which to believe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.backscatter import border_noise, to_db
from earthmind_jax.geo.reflectance import decide_offset, detect_offset, to_reflectance

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

__all__ = [
    "SENSORS",
    "Sensor",
    "border_noise",
    "calibrate",
    "decide_offset",
    "detect_offset",
    "to_db",
    "to_display",
    "to_reflectance",
]


@dataclass(frozen=True)
class Sensor:
    """What a sensor's files look like and how they become physical.

    ``layouts`` may be guessed from the band count, ``told_layouts`` only hold where the caller names the sensor;
    ``aliases`` map common names to the sensor's own.
    """

    title: str
    kind: str  # "optical" or "sar"
    bands: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    calibrate: Callable[..., Raster]
    options: tuple[str, ...] = ()
    told_layouts: tuple[tuple[str, ...], ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    is_8bit: bool = False


def calibrate(raster: Raster, sensor: str | None = None, **options: Any) -> Raster:
    """The raster in its sensor's physical unit (see ``SENSORS``); already calibrated rasters pass unchanged."""
    name = sensor or raster.sensor
    if name not in SENSORS:
        what = f"{raster.name} ({len(raster.bands)} bands {' '.join(raster.bands)}, {raster.dtype})"
        raise UserError(f"{what} is from no known sensor; name it: {', '.join(SENSORS)}.")
    entry = SENSORS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in entry.options:
            raise UserError(f"{raster.name}: the option {key!r} means nothing for {entry.title}.")
    return entry.calibrate(raster, **given)


def to_display(raster: Raster) -> Raster:
    """An 8-bit rendering as float32 0..255; there is nothing to calibrate."""
    if raster.unit == "display":
        return raster
    if raster.dtype != "uint8" or raster.unit != "raw":
        raise UserError(f"{raster.name} is {raster.dtype}, but an 8-bit rendering is uint8; name its sensor instead.")
    note = "8-bit rendering, used as it is"
    return raster.calibrated(np.asarray(raster.data, np.float32), raster.valid, "display", [note])


_L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_L2A = tuple(band for band in _L1C if band != "B10")
_COMMON_NAMES = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 cirrus swir16 swir22"
_COMMON = dict(zip(_COMMON_NAMES.split(), _L1C, strict=True))

SENSORS: dict[str, Sensor] = {
    "s2_l2a": Sensor("Sentinel-2 Level-2A", "optical", _L2A, (_L2A,), to_reflectance, ("offset",), aliases=_COMMON),
    "s2_l1c": Sensor("Sentinel-2 Level-1C", "optical", _L1C, (_L1C,), to_reflectance, ("offset",), aliases=_COMMON),
    "s1": Sensor(
        title="Sentinel-1",
        kind="sar",
        bands=("VV", "VH", "HH", "HV"),
        layouts=(("VV", "VH"),),
        calibrate=to_db,
        options=("scale", "calibration", "border_db"),
        told_layouts=(("VV",),),
    ),
    "rgb8": Sensor("8-bit RGB rendering", "optical", ("R", "G", "B"), (("R", "G", "B"),), to_display, is_8bit=True),
}
