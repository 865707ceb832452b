"""Two sensors on one grid. The optical image is the reference; the SAR image is brought onto it (see ``onto``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.acquired import acquisition_time, days_between
from earthmind_jax.geo.contents import Wanted
from earthmind_jax.geo.control import Control, check_ground, map_grid, place_of
from earthmind_jax.geo.cover import covering
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.onto import MIN_OVERLAP, Aligned, align
from earthmind_jax.geo.quality import quality_note, quality_of, quality_valid
from earthmind_jax.geo.radiometry import SENSORS, calibrate
from earthmind_jax.geo.raster import (
    Raster,
    open_raster,
    peek_bands,
    peek_sensor,
    read_raster,
)
from earthmind_jax.geo.shift import Shift, residual_shift

__all__ = ["MIN_OVERLAP", "Aligned", "Pair", "align", "check_header", "load_pair"]

SHARP_BANDS = ("B02", "B03", "B04")  # of Sentinel-2: 10 m, and what nearly every model reads


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


def load_pair(
    optical_path: str | os.PathLike[str] | None = None,
    sar_path: str | os.PathLike[str] | None = None,
    *,
    optical_sensor: str | None = None,
    sar_sensor: str | None = None,
    optical_bands: Sequence[str] | None = None,
    sar_bands: Sequence[str] | None = None,
    optical_names: Sequence[str] | None = None,
    sar_names: Sequence[str] | None = None,
    window: Window | None = None,
    offset: float | None = None,
    mtl: str | os.PathLike[str] | None = None,
    scl: str | os.PathLike[str] | None = None,
    sar_scale: str | None = None,
    calibration: float | None = None,
    min_overlap: float = MIN_OVERLAP,
    height: float | None = None,
    dem: str | os.PathLike[str] | None = None,
    report_shift: bool = True,
    as_stored: bool = False,
) -> Pair:
    """Reads, calibrates and aligns a pair; the optical image (or its ``window``) is the reference.

    Two pictures without georeference are a pair where they have the same size. ``offset``, ``mtl``, ``sar_scale`` and
    ``calibration`` override what is detected, and ``optical_names`` and ``sar_names`` (of all bands of a file, in its
    order) what it says. Bands of another sensor stand for ``optical_bands`` and ``sar_bands`` that a file lacks
    (``counterparts``). ``scl`` is a scene classification or QA_PIXEL file: cloud, shadow and fill are invalid.

    ``height`` and ``dem`` are of the ground, for images placed by RPCs. A reference that only ground control points or
    RPCs place is brought onto a map grid of its own, of which ``window`` is then one; ``as_stored`` leaves its pixels
    where they are, without a map. With ``report_shift`` the notes tell how far the two still lie apart, where that can
    be seen; nothing is moved.
    """
    if optical_path is None and sar_path is None:
        raise UserError("Give an optical image, a SAR image, or both.")
    ground = {"height": height, "dem": dem}
    check_ground([path for path in (optical_path, sar_path) if path is not None], **ground)
    sar_options = {"scale": sar_scale, "calibration": calibration}
    optical = sar = None
    if optical_path is not None:
        wanted = _wanted("optical", optical_bands, optical_names)
        sensor = _expected_sensor(optical_path, "optical", optical_sensor, optical_names)
        options = {"offset": offset, "mtl": mtl}
        optical = _reference(optical_path, "reflectance", sensor, wanted, window, ground, as_stored, options)
        optical = optical if scl is None else _clear(optical, scl)
    if sar_path is not None:
        wanted = _wanted("sar", sar_bands, sar_names)
        sensor = _expected_sensor(sar_path, "sar", sar_sensor, sar_names)
        if optical is None:
            sar = _reference(sar_path, "sar_linear", sensor, wanted, window, ground, as_stored, sar_options)
        else:
            return _pair(optical, sar_path, sensor, wanted, min_overlap, ground, sar_options, report_shift)
    only = optical if optical is not None else sar
    return Pair(optical, sar, only.transform, only.crs, 1.0, notes=list(only.notes))


def _reference(
    path: str | os.PathLike[str],
    kind: str,
    sensor: str | None,
    bands: Wanted,
    window: Window | None,
    ground: dict[str, Any],
    as_stored: bool,
    options: dict[str, Any],
) -> Raster:
    """The image whose grid the other follows, calibrated."""
    with open_raster(path) as dataset:
        place = None if as_stored else place_of(dataset, **ground)
    if not isinstance(place, Control):
        return calibrate(read_raster(path, bands, window, sensor=sensor), sensor, **options)
    whole = grid = map_grid(place)
    if window is not None:
        grid = whole.part(int(window.row_off), int(window.col_off), int(window.height), int(window.width))
        if covering(grid, whole) is None:
            size = f"{whole.height} x {whole.width}"
            raise UserError(
                f"{place.name} has {size} pixels on the map; the window {window} lies wholly outside of it."
            )
    raster = align(
        path, grid, kind, sensor=sensor, bands=bands, min_overlap=0, scene=whole, **ground, **options
    ).raster  # fmt: skip
    note = f"brought onto a map grid of {whole.height} x {whole.width} pixels in {grid.crs.to_string()}"
    return replace(raster, notes=[*raster.notes, note], window=window, scene_shape=whole.shape)


def load_onto(
    path: str | os.PathLike[str],
    grid: Grid,
    kind: str,
    *,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Raster:
    """One more ``optical`` or ``sar`` image (a later date), calibrated and brought onto a grid; errors as of
    :func:`align`. ``names`` and ``options`` as in :func:`load_pair`."""
    sensor = _expected_sensor(path, kind, sensor, names)
    how = "reflectance" if kind == "optical" else "sar_linear"
    return align(path, grid, how, sensor=sensor, bands=_wanted(kind, bands, names), **options).raster


def check_header(path: str | os.PathLike[str], kind: str, bands: Sequence[str] | None) -> None:
    """What :func:`load_pair` would refuse about an ``optical`` or ``sar`` file by its header: UserError."""
    sensor = _expected_sensor(path, kind, None)
    if bands is not None:
        peek_bands(path, bands, sensor, kind)


def _wanted(kind: str, bands: Sequence[str] | None, names: Sequence[str] | None) -> Wanted:
    return Wanted(
        bands=None if bands is None else tuple(bands), names=None if names is None else tuple(names), kind=kind
    )


def _clear(optical: Raster, scl: str | os.PathLike[str]) -> Raster:
    """The optical image without what a quality file on any grid calls cloud, shadow or no data."""
    name = quality_of(optical.sensor)
    codes = align(scl, optical, "label").raster
    clear = quality_valid(name, codes.data[0], os.fspath(scl)) & codes.valid
    return replace(
        optical, valid=optical.valid & clear, notes=[*optical.notes, f"{os.fspath(scl)}: {quality_note(name, clear)}"]
    )


def _pair(
    optical: Raster,
    sar_path: str | os.PathLike[str],
    sensor: str | None,
    bands: Wanted,
    min_overlap: float,
    ground: dict[str, Any],
    options: dict[str, Any],
    report_shift: bool,
) -> Pair:
    with open_raster(sar_path) as dataset:
        placed = place_of(dataset, **ground) is not None
        size = dataset.height, dataset.width
    if optical.georeferenced and placed:
        options = {**options, **ground, "min_overlap": min_overlap}
        aligned = align(sar_path, optical, "sar_linear", sensor=sensor, bands=bands, **options)
        sar, overlap, ratio = aligned.raster, aligned.overlap, aligned.gsd_ratio
    else:
        scene = optical.scene_shape or optical.shape
        if size != scene:
            raise UserError(
                f"{optical.path} ({scene[0]} x {scene[1]}) and {os.fspath(sar_path)} ({size[0]} x {size[1]}) cannot be "
                "brought together: without a georeference in both they must have the same size."
            )
        sar = calibrate(read_raster(sar_path, bands, optical.window, sensor=sensor), sensor, **options)
        note = "no georeference in both files: taken as aligned pixel by pixel, since they have the same size"
        sar = replace(sar, transform=optical.transform, crs=optical.crs, notes=[*sar.notes, note])
        overlap, ratio = float((sar.valid & optical.valid).sum() / max(1, optical.valid.sum())), 1.0
    days = days_between(*(acquisition_time(raster.tags, raster.path) for raster in (optical, sar)))
    notes = [f"optical: {note}" for note in optical.notes] + [f"SAR: {note}" for note in sar.notes]
    if days is not None:
        notes.append(f"acquired {days:.1f} days apart")
    if report_shift:
        notes.append(_shift_note(optical, sar))
    return Pair(optical, sar, optical.transform, optical.crs, overlap, ratio, days, notes)


def pair_shift(optical: Raster, sar: Raster) -> Shift | None:
    """What phase correlation says about the rest of the way between two rasters on one grid (``shift``), by the same
    bands of whatever was read."""
    sharp = [i for i, name in enumerate(optical.bands) if name in SHARP_BANDS] or list(range(len(optical.bands)))
    return residual_shift(optical.data[sharp], optical.valid, sar.data, sar.valid)


def _shift_note(optical: Raster, sar: Raster) -> str:
    shift = pair_shift(optical, sar)
    if shift is None:
        return "residual shift: cannot be told with confidence"
    return (
        f"residual shift: the SAR image lies {shift.rows:+.1f} rows and {shift.columns:+.1f} columns off the optical "
        f"one (confidence {shift.confidence:.2f}); not corrected"
    )


def _expected_sensor(
    path: str | os.PathLike[str], kind: str, told: str | None, names: Sequence[str] | None = None
) -> str | None:
    """The sensor to read ``path`` as, None where its own guess will do; UserError where the two look swapped."""
    guess, dtype = peek_sensor(path, told, names, kind)
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
