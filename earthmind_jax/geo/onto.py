"""One image onto the grid of another: any two CRSs, resolutions, extents and orientations.

Speckle multiplies power: SAR is resampled in linear power and then turned back into dB, since an average of dB is
biased (-0.5 dB at four looks). Validity travels along, and how much of the reference is covered is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.contents import Wanted
from earthmind_jax.geo.control import Control, place_of
from earthmind_jax.geo.cover import pieces
from earthmind_jax.geo.grid import Grid, require_map, require_on_earth
from earthmind_jax.geo.radiometry import SENSORS, calibrate
from earthmind_jax.geo.raster import FILL, Raster, open_raster, read_raster, require_georeference
from earthmind_jax.geo.resample import classes, continuous, pixel_ratio

PURPOSE = "bringing two images onto one grid"
KINDS = ("sar_linear", "reflectance", "label")
AVERAGE_FROM = 1.5  # pixels of the source in one of the reference, from which on they are averaged
MOST_POSITIONS = 256  # in each direction: more do not change a mean
SOURCE_VALUES = 2**23  # read from a file at once
MIN_OVERLAP = 0.1
NOWHERE = "nothing of it lies here"
UNCHANGED = "same grid, nothing resampled"


@dataclass(frozen=True, eq=False)
class Aligned:
    """``raster`` on the reference grid; ``overlap``, the part of the reference's valid pixels that it covers (0..1);
    ``gsd_ratio``, the source's pixel size over the reference's."""

    raster: Raster
    overlap: float
    gsd_ratio: float


def align(
    source: Raster | str | os.PathLike[str],
    reference: Raster | Grid,
    kind: str,
    *,
    sensor: str | None = None,
    bands: Sequence[str] | Wanted | None = None,
    min_overlap: float = MIN_OVERLAP,
    scene: Grid | None = None,
    height: float | None = None,
    dem: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Aligned:
    """Brings ``source`` onto the reference grid: any CRS, resolution, orientation and way of counting longitudes.

    A window of a reference gives the same values as the same part of the whole.

    Args:
      source: a raster, or a path, of which only the part that covers the reference is read, piece by piece. A file
        without map grid is placed by its ground control points or RPCs (see ``control.place_of``).
      kind: "sar_linear" (to dB, resampled as power), "reflectance" (calibrated where the sensor is known) or "label"
        (classes and masks, never mixed). Where pixels shrink the first two are averaged over the reference's pixel
        and the most frequent label is taken; else bilinear, and the nearest label.
      sensor, bands, options: for reading a path and calibrating a raw raster (see ``radiometry.calibrate``).
      min_overlap: part of the reference's valid pixels to be covered, 0..1; with 0, none need be.
      scene: the whole of which ``reference`` is a window, on which the way of resampling is decided; known of a raster.
      height, dem: of the ground, for a source placed by RPCs.

    Raises:
      UserError: no georeference, or less than ``min_overlap`` of the reference is covered; both images are named.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of alignment {kind!r}; it is one of {', '.join(KINDS)}.")
    if isinstance(reference, Grid):
        grid, expected = reference, np.ones(reference.shape, bool)
        require_map(grid.transform, grid.crs, grid.name, PURPOSE)
    else:
        grid, expected = reference.grid, reference.valid
        require_georeference(reference, PURPOSE)
        scene = scene or _scene(reference)
    require_on_earth(scene or grid)

    def prepare(raster: Raster) -> Raster:
        if kind == "sar_linear":
            return calibrate(raster, _sar_sensor(raster, sensor), **options)
        if kind == "reflectance" and raster.unit == "raw" and (sensor or raster.sensor):
            return calibrate(raster, sensor, **options)
        return raster

    if isinstance(source, Raster):
        require_georeference(source, PURPOSE)
        place: Grid | Control = source.grid
        require_on_earth(source.grid)
        split = _split(scene or grid, place)
        whole = prepare(source)
        aligned, how, seen = _from_memory(whole, place, grid, kind, split)
    else:
        place = _place(source, kind, height, dem)
        split = _split(scene or grid, place)
        aligned, how, seen = _from_file(source, place, grid, kind, split, sensor, bands, prepare)
    covered = expected & aligned.valid
    overlap = float(covered.sum() / max(1, expected.sum()))
    if min_overlap > 0 and not seen:
        raise _apart(place, grid)
    if min_overlap > 0 and overlap == 0:
        raise UserError(
            f"{place.name} has no valid pixel where {grid.name} has one: they hardly meet, or in nodata only."
        )
    if overlap < min_overlap:
        raise UserError(
            f"{place.name} covers only {overlap:.1%} of {grid.name} and {min_overlap:.0%} is needed: "
            f"the first covers {place.extent()}, the second {grid.extent()}."
        )
    ratio = _size_ratio(place, grid)
    notes = [*aligned.notes, _covers(how, overlap, ratio)]
    aligned = replace(aligned, transform=grid.transform, crs=grid.crs, notes=notes, window=None)
    return Aligned(aligned, overlap, ratio)


def onto_map(source: Raster, place: Control, grid: Grid) -> Raster:
    """A calibrated raster in memory, whose pixels ``place`` places, on a map grid."""
    kind = "sar_linear" if source.unit == "dB" else "reflectance"
    there = _from_memory(source, place, grid, kind, _split(grid, place))[0]
    return replace(there, transform=grid.transform, crs=grid.crs, gcps=False)


def _sar_sensor(source: Raster, told: str | None) -> str:
    """The SAR sensor of a raster; an 8-bit picture or nameless bands are SAR where they are used as such."""
    name = told or ("s1" if source.sensor in (None, "rgb8") else source.sensor)
    if name not in SENSORS or SENSORS[name].kind != "sar":
        raise UserError(
            f"{source.path or source.name} is from {name}, which is no SAR sensor; align it as reflectance."
        )
    return name


def _scene(raster: Raster) -> Grid:
    """The grid of the whole file that ``raster`` is a window of."""
    if raster.window is None or raster.scene_shape is None:
        return raster.grid
    return raster.grid.part(-int(raster.window.row_off), -int(raster.window.col_off), *raster.scene_shape)


def _place(path: str | os.PathLike[str], kind: str, height: float | None, dem: Any) -> Grid | Control:
    with open_raster(path, kind == "label") as dataset:
        place = place_of(dataset, height=height, dem=dem)
        if place is None:
            require_map(dataset.transform, dataset.crs, dataset.name, PURPOSE)
    if isinstance(place, Grid):
        require_map(place.transform, place.crs, place.name, PURPOSE)
        require_on_earth(place)
    return place


def _split(scene: Grid, place: Grid | Control) -> tuple[int, int]:
    """Positions to average over in one pixel of the reference, (rows, columns)."""
    ratio = pixel_ratio(scene, place)
    return tuple(int(np.ceil(min(n, MOST_POSITIONS) - 1e-6)) if n >= AVERAGE_FROM else 1 for n in ratio)


def _from_memory(
    source: Raster, place: Grid, grid: Grid, kind: str, split: tuple[int, int]
) -> tuple[Raster, str, bool]:
    """As :func:`_from_file`, of a raster that is there as a whole."""
    dtype = source.data.dtype if kind == "label" else np.float32
    data, valid = np.full((len(source.data), *grid.shape), FILL.get(source.unit, 0), dtype), np.zeros(grid.shape, bool)
    how = ""
    for rows, columns, _ in pieces(grid, place, np.inf, split[0] * split[1]):
        part = grid.part(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        data[:, rows, columns], valid[rows, columns], how = _onto(source, place, part, kind, split)
    return replace(source, data=data, valid=valid), how or NOWHERE, bool(how)


def _from_file(
    path: str | os.PathLike[str],
    place: Grid | Control,
    grid: Grid,
    kind: str,
    split: tuple[int, int],
    sensor: str | None,
    bands: Sequence[str] | Wanted | None,
    prepare: Callable[[Raster], Raster],
) -> tuple[Raster, str, bool]:
    """(the file on ``grid``, what was done, whether any of it lies there), read in pieces that fit into memory."""
    labels, first, how, count = kind == "label", None, "", 0
    with open_raster(path, labels) as dataset:
        limit = SOURCE_VALUES // (len(bands) if bands else dataset.count)
    for rows, columns, window in pieces(grid, place, limit, split[0] * split[1]):
        raster = prepare(read_raster(path, bands, window, sensor=sensor, labels=labels))
        there = place if window is None else place.part(window.row_off, window.col_off, window.height, window.width)
        part = grid.part(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        values, inside, how = _onto(raster, there, part, kind, split)
        if first is None:
            data = np.full((len(values), *grid.shape), FILL.get(raster.unit, 0), values.dtype)
            valid = np.zeros(grid.shape, bool)
            first = raster
        data[:, rows, columns], valid[rows, columns] = values, inside
        count += 1
    if first is None:  # nothing of it lies there: its first pixel says what it would have been
        first = prepare(read_raster(path, bands, Window(0, 0, 1, 1), sensor=sensor, labels=labels))
        data = np.full((len(first.data), *grid.shape), FILL.get(first.unit, 0), first.data.dtype)
        return replace(first, data=data, valid=np.zeros(grid.shape, bool)), NOWHERE, False
    notes = list(first.notes)
    if isinstance(place, Control):
        notes = [note for note in notes if "only ground control points" not in note] + [place.note]
    if count > 1:
        notes.append(f"read in {count} pieces; pixel counts are of the first")
    return replace(first, data=data, valid=valid, notes=notes, gcps=False), how, True


def _onto(
    source: Raster, place: Grid | Control, grid: Grid, kind: str, split: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, str]:
    """(data, valid, what was done). Invalid pixels take no part in the resampling."""
    power = source.unit == "dB"
    how = _how(place, grid, kind, split, power)
    if how == UNCHANGED:
        return source.data, source.valid, how
    if kind == "label":
        data, valid = classes(source.data, source.valid, place, grid, split)
        return data, valid, how
    values = np.asarray(source.data, np.float32)
    data, valid = continuous(10 ** (values / 10) if power else values, source.valid, place, grid, split)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = 10 * np.log10(data) if power else data
    valid &= np.isfinite(data).all(0)
    data = np.where(valid, data, FILL.get(source.unit, 0.0)).astype(np.float32)
    return data, valid, how


def alignment(place: Grid, grid: Grid, power: bool, overlap: float) -> str:
    """What is done to bring a continuous image onto a grid, in words; both are whole scenes. ``power``: it is in dB."""
    how = _how(place, grid, "reflectance", _split(grid, place), power)
    return _covers(how, overlap, _size_ratio(place, grid))


def _how(place: Grid | Control, grid: Grid, kind: str, split: tuple[int, int], power: bool) -> str:
    if isinstance(place, Grid) and place.matches(grid):
        return UNCHANGED
    shrinks = split != (1, 1)
    if kind == "label":
        return f"labels taken from the {'most frequent' if shrinks else 'nearest'} pixel"
    return f"resampled by {'average' if shrinks else 'bilinear'}" + (" in linear power" if power else "")


def _covers(how: str, overlap: float, ratio: float) -> str:
    return f"{how}; covers {overlap:.1%} of the reference, pixel size ratio {ratio:.2f}"


def _size_ratio(place: Grid | Control, grid: Grid) -> float:
    """The source's pixel size over the reference's, on the ground."""
    if isinstance(place, Grid):
        return (place.gsd or 1.0) / (grid.gsd or 1.0)
    return float(1 / np.sqrt(np.prod(pixel_ratio(grid, place))))


def _apart(source: Grid | Control, reference: Grid) -> UserError:
    return UserError(
        f"{source.name} and {reference.name} do not overlap: the first covers {source.extent()}, "
        f"the second {reference.extent()}."
    )
