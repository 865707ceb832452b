"""How a record names an image: a path, or an object that also tells what the file does not.

=========================================  ==========================================================================
``"x.tif"``                                a picture, a raster or a product as it is downloaded (``"S2A_....SAFE"``),
                                           taken for what its header, metadata and values say
``{"file": "x.tif", ...}``                 the same, with more told; ``bands``: a list of the names of its channels,
                                           null for a channel that is not used
``{"bands": {"B02": "b2.tif", ...}, ...}`` one single-channel file for each band; those that are used are brought onto
                                           the finest of their grids
``{"array": "x.h5", "dataset": "sen2",``   one row of an array [N H W C] of an HDF5 file (``axes`` "CHW": [N C H W]);
``"row": 7, "bands": [...], ...}``         ``bands`` as above; ``unit`` reflectance, dB, linear (power) or display
=========================================  ==========================================================================

Told with files: ``sensor`` (a name of :data:`earthmind_jax.geo.radiometry.SENSORS`), and what that sensor's calibration
may be told: ``scale``, ``offset``, ``calibration``. Told with any of them: ``nodata``, a stored number that means
nothing was measured; and ``stretch`` [low, high] in place of a sensor or a unit, for numbers without a published
calibration: they become a picture, ``low`` black and ``high`` white, of the one to three channels that are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthmind_jax.config import nearest

UNITS = ("reflectance", "dB", "linear", "display")
AXES = ("HWC", "CHW")
CALIBRATION = ("scale", "offset", "calibration")
_ANY = ("stretch", "nodata")
_FIELDS = {
    "file": ("file", "bands", "sensor", *CALIBRATION, *_ANY),
    "bands": ("bands", "sensor", *CALIBRATION, *_ANY),
    "array": ("array", "dataset", "row", "bands", "axes", "unit", *_ANY),
}

_HALVES = re.compile("[\ud800-\udfff]")

Written = str | Mapping[str, Any]
"""An image as it stands in a record."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image as it is described. Exactly one of ``file``, ``files`` and ``array`` is given.

    Attributes:
      file: a picture or raster.
      files: band name and file of each band.
      array: HDF5 file, with the ``dataset`` in it, the ``row`` and the order of its ``axes``.
      bands: names of the channels of ``file`` or ``array``, None for one that is not used; None where the file tells.
      sensor: what it was made by, None where the file tells.
      told: options of the sensor's calibration, name and value.
      unit: of ``array``.
      stretch: stored numbers that become black and white.
      nodata: stored number of a pixel without a measurement.
    """

    file: Path | None = None
    files: tuple[tuple[str, Path], ...] = ()
    array: Path | None = None
    dataset: str = ""
    row: int = 0
    axes: str = "HWC"
    bands: tuple[str | None, ...] | None = None
    sensor: str | None = None
    told: tuple[tuple[str, Any], ...] = ()
    unit: str | None = None
    stretch: tuple[float, float] | None = None
    nodata: float | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a path and nothing else."""
        return self == Image(file=self.file)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that it is made of."""
        return tuple(path for path in (self.file, *(path for _, path in self.files), self.array) if path is not None)

    @property
    def name(self) -> str:
        """What messages call it."""
        where = f" {self.dataset}[{self.row}]" if self.array else ""
        return f"{self.paths[0]}{where}"


def parse(written: Written, root: Path) -> Image:
    """The image that :func:`problems` finds nothing wrong with; its paths start from ``root``."""
    if isinstance(written, str):
        return Image(file=root / written)
    bands, stretch = written.get("bands"), written.get("stretch")
    several = isinstance(bands, Mapping)
    return Image(
        file=root / written["file"] if "file" in written else None,
        files=tuple((name, root / path) for name, path in bands.items()) if several else (),
        array=root / written["array"] if "array" in written else None,
        dataset=written.get("dataset", ""),
        row=written.get("row", 0),
        axes=written.get("axes", AXES[0]),
        bands=None if several or bands is None else tuple(bands),
        sensor=written.get("sensor"),
        told=tuple((key, written[key]) for key in CALIBRATION if written.get(key) is not None),
        unit=written.get("unit"),
        stretch=None if stretch is None else (float(stretch[0]), float(stretch[1])),
        nodata=written.get("nodata"),
    )


def problems(written: Any, name: str) -> Iterator[str]:
    """What is wrong with an image as it stands in a record, one sentence for each field; ``name`` is the image's."""
    if is_text(written):
        yield from path_problems(written, name)
        return
    if not isinstance(written, Mapping):
        yield (
            f"field '{name}' must be text (a path), an object that describes an image, or a list of these, one for "
            f"each date, not {written!r}."
        )
        return
    form = next((key for key in ("array", "file", "bands") if key in written), None)
    if form is None:
        yield f"field '{name}' needs 'file', 'array' or 'bands' (a file for each), not {dict(written)!r}."
        return
    for key in written:
        if key not in _FIELDS[form]:
            yield f"field '{name}' has the unknown field '{key}' beside '{form}'.{nearest(str(key), _FIELDS[form])}"
    yield from _file_problems(written, name, form)
    yield from _band_problems(written, name, form)
    yield from _radiometry_problems(written, name, form)


def _file_problems(written: Mapping[str, Any], name: str, form: str) -> Iterator[str]:
    texts = {"file": ("file",), "array": ("array", "dataset")}.get(form, ())
    for key in texts:
        value = written.get(key)
        if not is_text(value):
            yield f"field '{name}.{key}' must be text, not {value!r}."
        elif key == form:
            yield from path_problems(value, f"{name}.{key}")
    row = written.get("row")
    if form == "array" and not (isinstance(row, int) and not isinstance(row, bool) and row >= 0):
        yield f"field '{name}.row' must be a whole number from 0, not {row!r}."
    axes = written.get("axes", AXES[0])
    if axes not in AXES:
        yield f"field '{name}.axes' must be one of {', '.join(AXES)}, not {axes!r}."


def _band_problems(written: Mapping[str, Any], name: str, form: str) -> Iterator[str]:
    bands = written.get("bands")
    if form == "bands":
        files = bands.items() if isinstance(bands, Mapping) else ()
        if not files or not all(is_text(v) and is_text(k) for k, v in files):
            yield f"field '{name}.bands' must be an object of band names and their files, not {bands!r}."
            return
        for band, path in files:
            yield from path_problems(path, f"{name}.bands.{band}")
        return
    if bands is None and form == "file":
        return
    if not isinstance(bands, list) or not all(band is None or is_text(band) for band in bands):
        yield f"field '{name}.bands' must be a list of names, null for a channel that is not used, not {bands!r}."
        return
    used = [band for band in bands if band is not None]
    if not used or len(set(used)) < len(used):
        yield f"field '{name}.bands' must name at least one channel, and none twice, not {bands!r}."


def _radiometry_problems(written: Mapping[str, Any], name: str, form: str) -> Iterator[str]:
    unit, stretch = written.get("unit"), written.get("stretch")
    if form == "array" and (unit is None) == (stretch is None):
        yield f"field '{name}' needs 'unit' ({', '.join(UNITS)}) or 'stretch', and not both."
    if unit is not None and unit not in UNITS:
        yield f"field '{name}.unit' must be one of {', '.join(UNITS)}, not {unit!r}."
    for key in ("offset", "calibration", "nodata"):
        if written.get(key) is not None and not _is_number(written[key]):
            yield f"field '{name}.{key}' must be a number, not {written[key]!r}."
    scale = written.get("scale")
    if scale is not None and not isinstance(scale, str):
        yield f"field '{name}.scale' must be text, not {scale!r}."
    if stretch is not None:
        yield from _stretch_problems(written, name)
    sensor = written.get("sensor")
    if sensor is not None:
        yield from _sensor_problems(written, sensor, name)


def _stretch_problems(written: Mapping[str, Any], name: str) -> Iterator[str]:
    stretch = written["stretch"]
    good = isinstance(stretch, list) and len(stretch) == 2 and all(map(_is_number, stretch))
    if not good or not stretch[0] < stretch[1]:
        yield f"field '{name}.stretch' must be [low, high], two numbers in this order, not {stretch!r}."
    beside = [key for key in ("sensor", *CALIBRATION) if written.get(key) is not None]
    if beside:
        yield f"field '{name}' has both 'stretch' and '{beside[0]}'; a picture is not calibrated, give one of them."
    bands = written.get("bands")
    if isinstance(bands, list) and sum(band is not None for band in bands) > 3:
        yield f"field '{name}.bands' names more than the three channels of a picture; set the others to null."


def _sensor_problems(written: Mapping[str, Any], sensor: Any, name: str) -> Iterator[str]:
    from earthmind_jax.geo.radiometry import SENSORS

    if not isinstance(sensor, str) or sensor not in SENSORS:
        near = nearest(str(sensor), SENSORS)
        yield f"field '{name}.sensor' is unknown: {sensor!r}.{near} Choices: {', '.join(SENSORS)}."
        return
    kind = name.partition("[")[0]
    if kind in ("optical", "sar") and SENSORS[sensor].kind != kind:
        yield f"field '{name}.sensor' is {SENSORS[sensor].title}, which is no {kind} sensor; swap or correct it."
    for key in CALIBRATION:
        if written.get(key) is not None and key not in SENSORS[sensor].options:
            yield f"field '{name}.{key}' means nothing for {SENSORS[sensor].title}."


def path_problems(path: str, name: str) -> Iterator[str]:
    """What makes text a name that no file can have, rather than the name of a file that is not there."""
    if "\0" in path or len(path) > 4000 or any(len(part.encode(errors="replace")) > 255 for part in path.split("/")):
        yield f"field '{name}' is no path that a file can have: {path[:80]!r}{'...' if len(path) > 80 else ''}."


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written: not empty, without the halves of characters that JSON may hold."""
    return isinstance(value, str) and bool(value) and not _HALVES.search(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300
