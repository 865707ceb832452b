"""Two sensors on one grid. The optical image is the reference; the SAR image is brought onto it.

Speckle multiplies power: SAR is resampled in linear power and then turned back into dB, since an average of dB is
biased (-0.5 dB at four looks). Validity travels along, and how much of the reference is covered is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.acquired import acquisition_time
from earthmind_jax.geo.control import Control, place_of
from earthmind_jax.geo.cover import covering, pieces
from earthmind_jax.geo.grid import Grid, require_map, require_on_earth
from earthmind_jax.geo.radiometry import SENSORS, calibrate
from earthmind_jax.geo.raster import (
    FILL,
    Raster,
    open_raster,
    peek_bands,
    peek_sensor,
    read_raster,
    require_georeference,
)
from earthmind_jax.geo.resample import classes, continuous, pixel_ratio
from earthmind_jax.geo.shift import residual_shift

PURPOSE = "bringing two images onto one grid"
KINDS = ("sar_linear", "reflectance", "label")
AVERAGE_FROM = 1.5  # pixels of the source in one of the reference, from which on they are averaged
SOURCE_VALUES = 2**23  # read from a file at once
MIN_OVERLAP = 0.1
FINE_BANDS = ("B02", "B03", "B04", "B08")  # of Sentinel-2: 10 m; in the others its blocks have edges of their own


@dataclass(frozen=True, eq=False)
class Aligned:
    """``raster`` on the reference grid; ``overlap``, the part of the reference's valid pixels that it covers (0..1);
    ``gsd_ratio``, the source's pixel size over the reference's."""

    raster: Raster
    overlap: float
    gsd_ratio: float


@dataclass(frozen=True, eq=False)
class Pair:
    """An optical and a SAR image on one grid, calibrated; either may be None.

    ``overlap`` is the part of the optical image's valid pixels with valid SAR (1 with one sensor), ``gsd_ratio`` the
    SAR pixel size over the optical, ``days_apart`` the time between them where both files tell it.
    """

    optical: Raster | None
    sar: Raster | None
    transform: Affine
    crs: CRS | None
    overlap: float
    gsd_ratio: float | None = None
    days_apart: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return next(raster.shape for raster in (self.optical, self.sar) if raster is not None)

    @property
    def grid(self) -> Grid:
        return next(raster.grid for raster in (self.optical, self.sar) if raster is not None)


def align(
    source: Raster | str | os.PathLike[str],
    reference: Raster | Grid,
    kind: str,
    *,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
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
        data, valid, how = _onto(whole, place, grid, kind, split)
        aligned, seen = replace(whole, data=data, valid=valid), covering(grid, place) is not None
    else:
        place = _place(source, kind, height, dem)
        split = _split(scene or grid, place)
        aligned, how, seen = _from_file(source, place, grid, kind, split, sensor, bands, prepare)
    covered = expected & aligned.valid
    overlap = float(covered.sum() / max(1, expected.sum()))
    if min_overlap > 0 and not seen:
        raise _apart(place, grid)
    if min_overlap > 0 and overlap == 0:
        raise UserError(f"{place.name} has no valid pixel where {grid.name} has one: nodata lies on the whole overlap.")
    if overlap < min_overlap:
        raise UserError(
            f"{place.name} covers only {overlap:.1%} of {grid.name} and {min_overlap:.0%} is needed: "
            f"the first covers {place.extent()}, the second {grid.extent()}."
        )
    ratio = _size_ratio(place, grid)
    notes = [*aligned.notes, f"{how}; covers {overlap:.1%} of the reference, pixel size ratio {ratio:.2f}"]
    aligned = replace(aligned, transform=grid.transform, crs=grid.crs, notes=notes, window=None)
    return Aligned(aligned, overlap, ratio)


def load_pair(
    optical_path: str | os.PathLike[str] | None = None,
    sar_path: str | os.PathLike[str] | None = None,
    *,
    optical_sensor: str | None = None,
    sar_sensor: str | None = None,
    optical_bands: Sequence[str] | None = None,
    sar_bands: Sequence[str] | None = None,
    window: Window | None = None,
    offset: float | None = None,
    sar_scale: str | None = None,
    calibration: float | None = None,
    min_overlap: float = MIN_OVERLAP,
    height: float | None = None,
    dem: str | os.PathLike[str] | None = None,
    report_shift: bool = True,
) -> Pair:
    """Reads, calibrates and aligns a pair; the optical image (or its ``window``) is the reference.

    Two pictures without georeference are a pair where they have the same size. ``offset``, ``sar_scale`` and
    ``calibration`` override what is detected; ``height`` and ``dem`` are of the ground, for a SAR image placed by RPCs.
    With ``report_shift`` the notes tell how far the two still lie apart, where that can be seen; nothing is moved.
    """
    if optical_path is None and sar_path is None:
        raise UserError("Give an optical image, a SAR image, or both.")
    sar_options = {"scale": sar_scale, "calibration": calibration}
    optical = sar = None
    if optical_path is not None:
        sensor = _expected_sensor(optical_path, "optical", optical_sensor)
        raw = read_raster(optical_path, optical_bands, window, sensor=sensor)
        optical = calibrate(raw, sensor, offset=offset)
    if sar_path is not None:
        sensor = _expected_sensor(sar_path, "sar", sar_sensor)
        if optical is None:
            sar = calibrate(read_raster(sar_path, sar_bands, window, sensor=sensor), sensor, **sar_options)
        else:
            sar_options |= {"height": height, "dem": dem}
            return _pair(optical, sar_path, sensor, sar_bands, min_overlap, sar_options, report_shift)
    only = optical if optical is not None else sar
    return Pair(optical, sar, only.transform, only.crs, 1.0, notes=list(only.notes))


def check_header(path: str | os.PathLike[str], kind: str, bands: Sequence[str] | None) -> None:
    """What :func:`load_pair` would refuse about an ``optical`` or ``sar`` file by its header: UserError."""
    sensor = _expected_sensor(path, kind, None)
    if bands is not None:
        peek_bands(path, bands, sensor)


def _pair(
    optical: Raster,
    sar_path: str | os.PathLike[str],
    sensor: str | None,
    bands: Sequence[str] | None,
    min_overlap: float,
    options: dict[str, Any],
    report_shift: bool,
) -> Pair:
    with open_raster(sar_path) as dataset:
        placed = dataset.crs is not None or bool(dataset.gcps[0]) or dataset.rpcs is not None
        size = dataset.height, dataset.width
    if optical.georeferenced and placed:
        aligned = align(sar_path, optical, "sar_linear", sensor=sensor, bands=bands, min_overlap=min_overlap, **options)
        sar, overlap, ratio = aligned.raster, aligned.overlap, aligned.gsd_ratio
    else:
        scene = optical.scene_shape or optical.shape
        if size != scene:
            raise UserError(
                f"{optical.path} ({scene[0]} x {scene[1]}) and {os.fspath(sar_path)} ({size[0]} x {size[1]}) cannot be "
                "brought together: without a georeference in both they must have the same size."
            )
        options = {key: value for key, value in options.items() if key not in ("height", "dem")}
        sar = calibrate(read_raster(sar_path, bands, optical.window, sensor=sensor), sensor, **options)
        note = "no georeference in both files: taken as aligned pixel by pixel, since they have the same size"
        sar = replace(sar, transform=optical.transform, crs=optical.crs, notes=[*sar.notes, note])
        overlap, ratio = float((sar.valid & optical.valid).sum() / max(1, optical.valid.sum())), 1.0
    days = _days_between(optical, sar)
    notes = [f"optical: {note}" for note in optical.notes] + [f"SAR: {note}" for note in sar.notes]
    if days is not None:
        notes.append(f"acquired {days:.1f} days apart")
    if report_shift:
        notes.append(_shift_note(optical, sar))
    return Pair(optical, sar, optical.transform, optical.crs, overlap, ratio, days, notes)


def _shift_note(optical: Raster, sar: Raster) -> str:
    """What phase correlation says about the rest of the way between the two."""
    fine = [i for i, name in enumerate(optical.bands) if name in FINE_BANDS] or list(range(len(optical.bands)))
    shift = residual_shift(optical.data[fine], optical.valid, sar.data, sar.valid)
    if shift is None:
        return "residual shift: cannot be told with confidence"
    return (
        f"residual shift: the SAR image lies {shift.rows:+.1f} rows and {shift.columns:+.1f} columns off the optical "
        f"one (confidence {shift.confidence:.2f}); not corrected"
    )


def _expected_sensor(path: str | os.PathLike[str], kind: str, told: str | None) -> str | None:
    """The sensor to read ``path`` as, None where its own guess will do; UserError where the two look swapped."""
    guess, dtype = peek_sensor(path, told)
    if told is not None:
        return told
    if guess is not None and SENSORS[guess].kind == kind:
        return None
    rendering = dtype == "uint8"
    if guess is not None and not (kind == "sar" and rendering):
        other = "SAR" if kind == "optical" else "optical"
        here = "optical" if kind == "optical" else "SAR"
        raise UserError(
            f"{os.fspath(path)} was given as the {here} image but looks {other} ({SENSORS[guess].title}); "
            "swap the two or name its sensor."
        )
    return "s1" if kind == "sar" else "rgb8" if rendering else None


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
    return tuple(int(np.ceil(n - 1e-6)) if n >= AVERAGE_FROM else 1 for n in pixel_ratio(scene, place))


def _from_file(
    path: str | os.PathLike[str],
    place: Grid | Control,
    grid: Grid,
    kind: str,
    split: tuple[int, int],
    sensor: str | None,
    bands: Sequence[str] | None,
    prepare: Callable[[Raster], Raster],
) -> tuple[Raster, str, bool]:
    """(the file on ``grid``, what was done, whether any of it lies there), read in pieces that fit into memory."""
    labels, first, how, count = kind == "label", None, "", 0
    with open_raster(path, labels) as dataset:
        limit = SOURCE_VALUES // (len(bands) if bands else dataset.count)
    for rows, columns, window in pieces(grid, place, limit):
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
        return replace(first, data=data, valid=np.zeros(grid.shape, bool)), "nothing of it lies here", False
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
    if isinstance(place, Grid) and place.matches(grid):
        return source.data, source.valid, "same grid, nothing resampled"
    shrinks = split != (1, 1)
    if kind == "label":
        data, valid = classes(source.data, source.valid, place, grid, split)
        return data, valid, f"labels taken from the {'most frequent' if shrinks else 'nearest'} pixel"
    power = source.unit == "dB"
    values = np.asarray(source.data, np.float32)
    data, valid = continuous(10 ** (values / 10) if power else values, source.valid, place, grid, split)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = 10 * np.log10(data) if power else data
    valid &= np.isfinite(data).all(0)
    data = np.where(valid, data, FILL.get(source.unit, 0.0)).astype(np.float32)
    return data, valid, f"resampled by {'average' if shrinks else 'bilinear'}" + (" in linear power" if power else "")


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


def _days_between(first: Raster, second: Raster) -> float | None:
    times = [acquisition_time(raster.tags, raster.path) for raster in (first, second)]
    return None if None in times else float(abs(times[0] - times[1]) / np.timedelta64(1, "D"))
