"""From stored numbers to physical ones: one entry per sensor in ``SENSORS``.

Whatever the file does not say is decided once for the whole scene (never for a tile), and every decision is written
into the raster's ``notes`` with its reason. A calibrated raster has a finite number at every pixel; ``valid`` says
which to believe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.backscatter import PALSAR, border_noise, to_db
from earthmind_jax.geo.landsat import to_surface, to_top_of_atmosphere
from earthmind_jax.geo.reflectance import DOUBTFUL, decide_offset, detect_offset, to_reflectance
from earthmind_jax.geo.stretch import to_infrared, to_picture
from earthmind_jax.geo.surface import to_scaled_reflectance

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


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """What a sensor's files look like and how they become physical.

    ``layouts`` may be guessed from the band count, ``told_layouts`` only hold where the caller names the sensor;
    ``aliases`` map common names (lower case) to the sensor's own. ``wavelengths`` are band centres in micrometres:
    what a model wants of another sensor is found by them.
    """

    title: str
    kind: str  # "optical" or "sar"
    bands: tuple[str, ...]
    calibrate: Callable[..., Raster]
    options: tuple[str, ...] = ()
    layouts: tuple[tuple[str, ...], ...] = ()
    told_layouts: tuple[tuple[str, ...], ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    wavelengths: dict[str, float] = field(default_factory=dict)
    is_8bit: bool = False


def calibrate(raster: Raster, sensor: str | None = None, **options: Any) -> Raster:
    """The raster in its sensor's physical unit (see ``SENSORS``); already calibrated rasters pass unchanged."""
    name = sensor or raster.sensor
    if name not in SENSORS:
        what = f"{raster.name} ({len(raster.bands)} bands {' '.join(raster.bands)}, {raster.dtype})"
        raise UserError(f"{what} is {unknown(raster.bands, raster.notes)}")
    entry = SENSORS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in entry.options:
            raise UserError(f"{raster.name}: the option {key!r} means nothing for {entry.title}.")
    return entry.calibrate(raster, **given)


def unknown(bands: Sequence[str], notes: Sequence[str]) -> str:
    """The end of a sentence that asks what a file is: it begins with "from no known sensor"."""
    listed = {kind: [key for key, entry in SENSORS.items() if entry.kind == kind] for kind in ("optical", "sar")}
    doubt = next((f" ({note})" for note in notes if DOUBTFUL in note), "")
    nameless = all(name.startswith("band_") for name in bands)
    order = ", and its bands in their order with --bands (such as red green blue nir) or --sar-bands"
    return (
        f"from no known sensor{doubt}; name it: --sensor {', '.join(listed['optical'])} (reflectance where its numbers "
        "are surface reflectance, or 10000 times it; vhr where they are mere brightness), or --sar-sensor "
        f"{', '.join(listed['sar'])}{order if nameless else ''}."
    )


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
_S2_COMMON = {**dict(zip(_COMMON_NAMES.split(), _L1C, strict=True)), "swir1": "B11", "swir2": "B12"}
_S2_WAVES = (0.4427, 0.4927, 0.5598, 0.6646, 0.7041, 0.7405, 0.7828, 0.8328, 0.8647, 0.9451, 1.3735, 1.6137, 2.2024)
_S2_MICROMETRES = dict(zip(_L1C, _S2_WAVES, strict=True))
_L2A_COMMON = {name: band for name, band in _S2_COMMON.items() if band in _L2A}
_L2A_MICROMETRES = {band: _S2_MICROMETRES[band] for band in _L2A}

# Operational Land Imager, bands 1 to 9; 10 and 11 are the thermal sensor's.
_OLI_COMMON = ["coastal", "blue", "green", "red", "nir08", "swir16", "swir22", "pan", "cirrus"]
_OLI_WAVES = (0.4430, 0.4826, 0.5613, 0.6546, 0.8647, 1.6089, 2.2007, 0.5917, 1.3734)
_SR = tuple(f"SR_B{i}" for i in range(1, 8))
_SR_MICROMETRES = dict(zip(_SR, _OLI_WAVES, strict=False))
_SR_COMMON = {
    **dict(zip(_OLI_COMMON, _SR, strict=False)),
    "nir": "SR_B5",
    "swir1": "SR_B6",
    "swir2": "SR_B7",
    "lwir11": "ST_B10",
    "temperature": "ST_B10",
}
_TOA = tuple(f"TOA_B{i}" for i in range(1, 10))
_TOA_MICROMETRES = {name: wave for name, wave in zip(_TOA, _OLI_WAVES, strict=True) if name != "TOA_B8"}
_TOA_COMMON = {
    **dict(zip(_OLI_COMMON, _TOA, strict=True)), "nir": "TOA_B5", "swir1": "TOA_B6", "swir2": "TOA_B7",
    "lwir11": "BT_B10", "lwir12": "BT_B11",
    **{f"b{i}": f"TOA_B{i}" for i in range(1, 10)}, "b10": "BT_B10", "b11": "BT_B11",
}  # fmt: skip

# Any optical sensor's bands by the common names of catalogues (STAC's eo extension), green_i as PlanetScope has it.
_COMMON_MICROMETRES = {
    "coastal": 0.443, "blue": 0.485, "green_i": 0.531, "green": 0.56, "yellow": 0.605, "red": 0.66, "rededge": 0.705,
    "rededge1": 0.704, "rededge2": 0.74, "rededge3": 0.783, "nir": 0.84, "nir08": 0.865, "nir09": 0.945,
    "cirrus": 1.374, "swir16": 1.61, "swir22": 2.2,
}  # fmt: skip
_COMMON_NAMES = dict(zip(_COMMON_MICROMETRES, _COMMON_MICROMETRES, strict=True)) | {
    "r": "red", "g": "green", "b": "blue", "n": "nir", "nearinfrared": "nir08", "near infrared": "nir",
}  # fmt: skip

_COLOUR_COMMON = {"red": "R", "green": "G", "blue": "B", "nir": "N", "nir08": "N", "near infrared": "N", "pan": "PAN"}
_COLOUR_MICROMETRES = {"R": 0.66, "G": 0.56, "B": 0.48, "N": 0.83}

_SAR_OPTIONS = ("scale", "calibration", "border_db")
_relative_db = partial(to_db, nominal=None)

SENSORS: dict[str, Sensor] = {
    "s2_l2a": Sensor(
        title="Sentinel-2 Level-2A", kind="optical", bands=_L2A, layouts=(_L2A,), calibrate=to_reflectance,
        options=("offset",), aliases=_L2A_COMMON, wavelengths=_L2A_MICROMETRES,
    ),
    "s2_l1c": Sensor(
        title="Sentinel-2 Level-1C", kind="optical", bands=_L1C, layouts=(_L1C,), calibrate=to_reflectance,
        options=("offset",), aliases=_S2_COMMON, wavelengths=_S2_MICROMETRES,
    ),
    "s1": Sensor(
        title="Sentinel-1", kind="sar", bands=("VV", "VH", "HH", "HV"), layouts=(("VV", "VH"),),
        told_layouts=(("VV",),), calibrate=to_db, options=_SAR_OPTIONS,
    ),
    "rgb8": Sensor(
        title="8-bit RGB rendering", kind="optical", bands=("R", "G", "B"), layouts=(("R", "G", "B"),),
        calibrate=to_display, is_8bit=True,
    ),
    "landsat_l2": Sensor(
        title="Landsat Collection 2 Level-2 (bands as Landsat 8/9 number them)", kind="optical",
        bands=(*_SR, "ST_B10"), calibrate=to_surface,
        told_layouts=(_SR, (*_SR, "ST_B10")), aliases=_SR_COMMON, wavelengths=_SR_MICROMETRES,
    ),
    "landsat_l1": Sensor(
        title="Landsat 8/9 Level-1", kind="optical", bands=(*_TOA, "BT_B10", "BT_B11"),
        calibrate=to_top_of_atmosphere, options=("mtl",), told_layouts=((*_TOA, "BT_B10", "BT_B11"),),
        aliases=_TOA_COMMON, wavelengths=_TOA_MICROMETRES,
    ),
    "reflectance": Sensor(
        title="surface reflectance of any optical sensor", kind="optical", bands=tuple(_COMMON_MICROMETRES),
        calibrate=to_scaled_reflectance, aliases=_COMMON_NAMES, wavelengths=_COMMON_MICROMETRES,
    ),
    "vhr": Sensor(
        title="very-high-resolution colour", kind="optical", bands=("R", "G", "B", "N", "PAN"), calibrate=to_picture,
        told_layouts=(("R", "G", "B"), ("PAN",)), aliases=_COLOUR_COMMON, wavelengths=_COLOUR_MICROMETRES,
    ),
    "infrared": Sensor(
        title="single-band infrared or thermal", kind="optical", bands=("IR",), calibrate=to_infrared,
        options=("scale",), told_layouts=(("IR",),),
    ),
    "sar_x": Sensor(
        title="SAR of another sensor (TerraSAR-X, Capella, Umbra, ICEYE, RADARSAT)", kind="sar",
        bands=("HH", "HV", "VH", "VV", "CO"), told_layouts=(("HH", "HV", "VH", "VV"), ("CO",)),
        calibrate=_relative_db, options=_SAR_OPTIONS,
    ),
    "sar_l": Sensor(
        title="L-band SAR (ALOS PALSAR, ALOS-2, NISAR)", kind="sar", bands=("HH", "HV", "VH", "VV"),
        told_layouts=(("HH", "HV"), ("HH",)), calibrate=partial(to_db, nominal=PALSAR), options=_SAR_OPTIONS,
    ),
    "gf3": Sensor(
        title="GaoFen-3 SAR", kind="sar", bands=("HH", "HV", "VH", "VV", "CO"),
        told_layouts=(("HH", "HV", "VH", "VV"), ("CO",)), calibrate=_relative_db, options=_SAR_OPTIONS,
    ),
}  # fmt: skip
