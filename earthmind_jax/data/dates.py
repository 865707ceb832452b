"""Several dates of one scene: every image is brought onto the grid of the first date."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.model_bands import model_bands
from earthmind_jax.data.read import MOST_PIXELS, Images, is_raster, load_images, picture_header, read_header
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

if TYPE_CHECKING:
    from earthmind_jax.geo.grid import Grid


def load_dates(
    sources: Mapping[str, Sequence[Any]],
    sensors: SensorConfig,
    told: Told = NOTHING,
    *,
    scene: Grid | None = None,
    **options: Any,
) -> Images:
    """The images of ``optical`` and/or ``sar``, one source for each date (see :func:`load_images`).

    The first date is read as it is alone; rasters of later dates are resampled onto its grid (SAR in linear power),
    and pictures must have its size. A sensor with a single image shows it on the first date only.

    Args:
      scene: the grid of the whole first date, where ``options`` name a ``window`` of it; later dates need not reach it.
      options: for reading the first date, as of :func:`load_images`.

    Raises:
      UserError: the sensors have different numbers of dates (other than one), or a file cannot be used.
    """
    most = count_dates(sources)
    if most > 1 and (told.scl or told.mtl):
        raise UserError(f"'{told.scl or told.mtl}' belongs to one image, but there are {most} dates; ask date by date.")
    if most > 1 and "window" not in options:
        _require_sizes(sources, most)
    first = load_images({name: given[0] for name, given in sources.items()}, sensors, told, **options)
    if most == 1:
        return first
    several = {name: given for name, given in sources.items() if len(given) > 1}
    names = _names([next(iter(several.values()))[i] for i in range(most)])
    later, notes = [], [*first.notes, f"{most} dates ({', '.join(names)}), all on the grid of the first"]
    for i, name in enumerate(names[1:], 1):
        images = _onto(first, {s: g[i] for s, g in several.items()}, sensors, told, scene)
        later.append(dataclasses.replace(images, date=name))
        notes += [f"{name}: {note}" for note in images.notes]
    return dataclasses.replace(first, date=names[0], later=tuple(later), notes=tuple(notes))


def _require_sizes(sources: Mapping[str, Sequence[Any]], dates: int) -> None:
    """UserError where all dates together, each with the pixels of the first, do not fit into memory."""
    first = next(iter(sources.values()))[0]
    if not isinstance(first, str | Path):
        return
    rows, columns = read_header(first).shape
    if rows * columns * dates > MOST_PIXELS:
        raise UserError(
            f"{first} has {rows} x {columns} pixels, too many to hold {dates} dates in memory at once (at most "
            f"{MOST_PIXELS / 1e6:.0f} million of all together); name a part (--crop, --area, window) or draw on all of "
            "them from file to file (earthmind segment TARGET --out DIR, infer.scene.segment_scene)."
        )


def count_dates(sources: Mapping[str, Sequence[Any]]) -> int:
    """How many dates there are; UserError where the sensors have different numbers of them, other than one."""
    counts = {name: len(given) for name, given in sources.items()}
    most = max(counts.values())
    for name, count in counts.items():
        if count not in (1, most):
            raise UserError(f"There are {count} {name} images but {most} of the other sensor; give as many, or one.")
    return most


def _onto(
    first: Images, sources: Mapping[str, Any], sensors: SensorConfig, told: Told, scene: Grid | None = None
) -> Images:
    """The images of a later date on the grid of the first."""
    if first.crs is None or not all(_is_raster(source, name) for name, source in sources.items()):
        known = NOTHING if any(told.about(kind) for kind in {"optical", "sar"} - set(sources)) else told
        images = load_images(sources, sensors, known)
        for name, source in sources.items():
            found = Images({name: images.pictures[name]}).shape
            wanted = Images({name: first.pictures[name]}).shape
            if found != wanted:
                shown = " x ".join(map(str, found)), " x ".join(map(str, wanted))
                label = "An array" if isinstance(source, np.ndarray) else f"'{source}'"
                raise UserError(
                    f"{label} has {shown[0]} pixels but the first date {shown[1]}; without a georeference in all of "
                    "them, every date must have one size."
                )
        return images
    from earthmind_jax.geo.align import MIN_OVERLAP, load_onto
    from earthmind_jax.geo.grid import Grid

    grid = Grid(first.transform, first.crs, *first.shape, name="the first date")
    where = {"scene": scene, "min_overlap": MIN_OVERLAP if scene is None else 0.0}
    pictures: dict[str, Any] = {}
    notes: list[str] = []
    for name, source in sources.items():
        finished = picture_header(str(source)).finished and told.is_picture(name)
        wanted = sensors.optical_bands if name == "optical" else sensors.sar_bands
        bands = None if finished else tuple(dict.fromkeys(wanted))
        raster = load_onto(source, grid, name, bands=bands, **told.image_options(name), **where)
        if finished and raster.unit == "display":
            picture: Any = np.moveaxis(np.clip(np.rint(raster.data), 0, 255).astype(np.uint8), 0, -1)
        else:
            picture = model_bands(raster, name, sensors)
        pictures[name] = picture, raster.valid
        notes.append(f"{name}: {raster.notes[-1]}")
    files = {name: str(source) for name, source in sources.items()}
    return Images(pictures, first.transform, first.crs, tuple(notes), files)


def _is_raster(source: Any, name: str) -> bool:
    if not isinstance(source, str | Path) or not is_raster(source):
        return False
    return picture_header(str(source)).is_raster(name)


def _names(sources: Sequence[Any]) -> list[str]:
    """A name for each date: the day that a file's tags or name tells, else its number; no two are the same."""
    names = [_day(source) or f"date_{i}" for i, source in enumerate(sources, 1)]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names, 1)]


def _day(source: Any) -> str:
    """The day of acquisition (tags, product name), else any date in the file's name; empty where there is none."""
    from earthmind_jax.geo.acquired import acquisition_time, day_in_name

    if not isinstance(source, str | Path):
        return ""
    if is_raster(source):
        from earthmind_jax.geo.raster import open_raster

        with open_raster(source) as dataset:
            time = acquisition_time(dataset.tags(), str(source))
        if time is not None:
            return str(time)[:10]
    day = day_in_name(str(source))
    return "" if day is None else str(day)
