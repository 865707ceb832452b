"""Two sensors on one grid. The optical image is the reference; the SAR image is brought onto it.

Speckle multiplies power: SAR is resampled in linear power and then turned back into dB, since an average of dB is
biased (-0.5 dB at four looks). Validity travels along, and how much of the reference is covered is told.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import Grid, project, require_map, to_pixel
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

KINDS = ("sar_linear", "reflectance", "label")
AVERAGE_FROM = 1.5  # pixels of the source in one of the reference, from which on they are averaged
WARP_TOLERANCE = 0.01  # pixels; GDAL's own 0.125 would show in polygons
MIN_OVERLAP = 0.1


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
    **options: Any,
) -> Aligned:
    """Brings ``source`` onto the reference grid.

    Args:
      source: a raster, or a path, of which only the part that covers the reference is read.
      kind: "sar_linear" (to dB, resampled as power), "reflectance" (calibrated where the sensor is known; bilinear, or
        the average where pixels shrink in number) or "label" (nearest).
      sensor, bands, options: for reading a path and calibrating a raw raster (see ``radiometry.calibrate``).
      min_overlap: part of the reference's valid pixels to be covered, 0..1; with 0, none need be.

    Raises:
      UserError: no georeference, or less than ``min_overlap`` of the reference is covered; both images are named.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of alignment {kind!r}; it is one of {', '.join(KINDS)}.")
    if isinstance(reference, Grid):
        grid, expected = reference, np.ones(reference.shape, bool)
        require_map(grid.transform, grid.crs, grid.name, "bringing two images onto one grid")
    else:
        grid, expected = reference.grid, reference.valid
        require_georeference(reference, "bringing two images onto one grid")
    if not isinstance(source, Raster):
        source = _read_covering(source, grid, kind, sensor, bands, needed=min_overlap > 0)
    require_georeference(source, "bringing two images onto one grid")
    if kind == "sar_linear":
        source = calibrate(source, _sar_sensor(source, sensor), **options)
    elif kind == "reflectance" and source.unit == "raw" and (sensor or source.sensor):
        source = calibrate(source, sensor, **options)
    ratio = (source.gsd or 1.0) / (grid.gsd or 1.0)
    if source.grid.matches(grid):
        data, valid, how = source.data, source.valid, "same grid, nothing resampled"
    else:
        data, valid, how = _warp(source, grid, kind, ratio)
    overlap = float((valid & expected).sum() / max(1, expected.sum()))
    if overlap == 0 < min_overlap:
        raise _apart(source.grid, grid)
    if overlap < min_overlap:
        raise UserError(
            f"{source.path or source.name} covers only {overlap:.1%} of {grid.name} and {min_overlap:.0%} is needed: "
            f"the first covers {source.grid.extent()}, the second {grid.extent()}."
        )
    notes = [*source.notes, f"{how}; covers {overlap:.1%} of the reference, pixel size ratio {ratio:.2f}"]
    aligned = replace(source, data=data, valid=valid, transform=grid.transform, crs=grid.crs, notes=notes, window=None)
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
) -> Pair:
    """Reads, calibrates and aligns a pair; the optical image (or its ``window``) is the reference.

    Two pictures without georeference are a pair where they have the same size. ``offset``, ``sar_scale`` and
    ``calibration`` override what is detected.
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
            return _pair(optical, sar_path, sensor, sar_bands, min_overlap, sar_options)
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
) -> Pair:
    with open_raster(sar_path) as dataset:
        placed = dataset.crs is not None
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
        sar = calibrate(read_raster(sar_path, bands, optical.window, sensor=sensor), sensor, **options)
        note = "no georeference in both files: taken as aligned pixel by pixel, since they have the same size"
        sar = replace(sar, transform=optical.transform, crs=optical.crs, notes=[*sar.notes, note])
        overlap, ratio = float((sar.valid & optical.valid).sum() / max(1, optical.valid.sum())), 1.0
    days = _days_between(optical, sar)
    notes = [f"optical: {note}" for note in optical.notes] + [f"SAR: {note}" for note in sar.notes]
    if days is not None:
        notes.append(f"acquired {days:.1f} days apart")
    return Pair(optical, sar, optical.transform, optical.crs, overlap, ratio, days, notes)


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


def _read_covering(
    path: str | os.PathLike[str],
    grid: Grid,
    kind: str,
    sensor: str | None,
    bands: Sequence[str] | None,
    *,
    needed: bool,
) -> Raster:
    """Reads the window of a file that covers ``grid``, with a margin for the resampling kernel; where there is none and
    none is ``needed``, its first pixel."""
    labels = kind == "label"
    with open_raster(path, labels) as dataset:
        there = Grid(dataset.transform, dataset.crs, dataset.height, dataset.width, dataset.name)
    if there.crs is None or grid.crs is None:
        return read_raster(path, bands, sensor=sensor, labels=labels)
    columns, rows = to_pixel(there.transform, *project(grid.crs, there.crs, *grid.outline()))
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return read_raster(path, bands, sensor=sensor, labels=labels)
    margin = 2 + int(np.ceil(2 * max(1.0, (grid.gsd or 1.0) / (there.gsd or 1.0))))
    left, top = max(0, int(columns.min()) - margin), max(0, int(rows.min()) - margin)
    right, bottom = min(there.width, int(columns.max()) + margin), min(there.height, int(rows.max()) + margin)
    if left >= right or top >= bottom:
        if needed:
            raise _apart(there, grid)
        left, top, right, bottom = 0, 0, 1, 1
    whole = (left, top, right, bottom) == (0, 0, there.width, there.height)
    window = None if whole else Window(left, top, right - left, bottom - top)
    return read_raster(path, bands, window, sensor=sensor, labels=labels)


def _warp(source: Raster, grid: Grid, kind: str, ratio: float) -> tuple[np.ndarray, np.ndarray, str]:
    """(data, valid, what was done). Invalid pixels take no part in the resampling."""
    nearest = _reproject(source.valid[None].astype(np.uint8), source, grid, Resampling.nearest, None)[0] > 0
    if kind == "label":
        data = _reproject(source.data, source, grid, Resampling.nearest, None)
        return np.where(nearest, data, 0).astype(data.dtype), nearest, "labels taken from the nearest pixel"
    average = ratio * AVERAGE_FROM <= 1
    method = Resampling.average if average else Resampling.bilinear
    power = source.unit == "dB"
    values = np.asarray(source.data, np.float32)
    values = np.where(source.valid, 10 ** (values / 10) if power else values, np.nan).astype(np.float32)
    data = _reproject(values, source, grid, method, np.nan)
    valid = nearest & np.isfinite(data).all(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        data = 10 * np.log10(data) if power else data
    valid &= np.isfinite(data).all(0)
    data = np.where(valid, data, FILL.get(source.unit, 0.0)).astype(np.float32)
    return data, valid, f"resampled by {method.name}" + (" in linear power" if power else "")


def _reproject(values: np.ndarray, source: Raster, grid: Grid, method: Resampling, nodata: float | None) -> np.ndarray:
    out = np.full((len(values), *grid.shape), 0 if nodata is None else nodata, values.dtype)
    try:
        reproject(
            values,
            out,
            src_transform=source.transform,
            src_crs=source.crs,
            src_nodata=nodata,
            dst_transform=grid.transform,
            dst_crs=grid.crs,
            dst_nodata=nodata,
            resampling=method,
            tolerance=WARP_TOLERANCE,
        )
    except (RasterioError, ValueError) as error:
        raise _apart(source.grid, grid) from error
    return out


def _apart(source: Grid, reference: Grid) -> UserError:
    return UserError(
        f"{source.name} and {reference.name} do not overlap: the first covers {source.extent()}, "
        f"the second {reference.extent()}."
    )


def _days_between(first: Raster, second: Raster) -> float | None:
    times = []
    for raster in (first, second):
        tags = {key.lower(): str(value) for key, value in raster.tags.items()}
        for key in ("datetime", "acquired", "acquisition_time", "sensing_time", "product_start_time"):
            try:
                times.append(np.datetime64(tags[key].rstrip("Zz").strip().replace(" ", "T"), "s"))
                break
            except (KeyError, ValueError):
                continue
    return None if len(times) < 2 else float(abs(times[0] - times[1]) / np.timedelta64(1, "D"))
