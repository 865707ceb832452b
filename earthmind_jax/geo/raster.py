"""One raster in: named bands, validity, georeference and every guess that was made on the way.

Nothing here changes a value: ``radiometry`` turns a raw raster into reflectance or decibels, ``align`` brings it onto a
grid.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.bands import name_bands, select
from earthmind_jax.geo.grid import Grid, require_map

SAMPLE_SIDE = 512  # scene statistics come from a decimated read of at most this many rows and columns
FILL = {"reflectance": 0.0, "dB": -50.0, "display": 0.0}  # finite stand-in at invalid pixels of calibrated rasters
BAND_NAME_TAGS = ("bandname", "band_name", "name", "common_name", "polarization", "polarisation")


@dataclass(frozen=True, eq=False)
class Raster:
    """Bands on one grid.

    Attributes:
      data: [C H W], float32 unless read as ``native`` or ``labels``; where invalid, calibrated ones hold a finite fill.
      valid: bool [H W], true where every band holds a measurement.
      transform, crs: pixel corner -> map; ``crs`` is None for a plain picture.
      bands: C names.
      dtype, tags, nodata: as stored in the file.
      notes: what was guessed or decided, and why.
      unit: "raw", "reflectance", "dB" or "display" (8-bit rendering, 0..255).
      sensor: an entry of ``radiometry.SENSORS``, or None.
      window, scene_shape, scene_bands: the part read, and the size and bands of the whole file.
    """

    data: np.ndarray
    valid: np.ndarray
    transform: Affine
    crs: CRS | None
    bands: tuple[str, ...]
    dtype: str = "float32"
    tags: dict[str, str] = field(default_factory=dict)
    nodata: float | None = None
    notes: list[str] = field(default_factory=list)
    unit: str = "raw"
    sensor: str | None = None
    path: str = ""
    descriptions: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    window: Window | None = None
    scene_shape: tuple[int, int] | None = None
    scene_bands: tuple[str, ...] = ()
    gcps: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[-2], self.data.shape[-1]

    @property
    def name(self) -> str:
        return os.path.basename(self.path) or "the image"

    @property
    def georeferenced(self) -> bool:
        return self.crs is not None and not self.transform.almost_equals(Affine.identity())

    @property
    def gsd(self) -> float | None:
        """Ground sample distance in metres at the image centre, whatever the CRS; None without a georeference."""
        return self.grid.gsd if self.georeferenced else None

    @property
    def grid(self) -> Grid:
        return Grid(self.transform, self.crs, *self.shape, name=self.path or self.name)

    def band(self, name: str) -> np.ndarray:
        """One band [H W] by name."""
        return self.data[select([name], self.bands, self.name)[0]]

    def scene_sample(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """(values [C h w], valid [h w], band names) of the whole scene, decimated: what scene-level decisions rest on,
        the same for every window of a file and for every choice of bands."""
        if self.unit == "raw" and self.path and (self.window is not None or self.bands != self.scene_bands):
            stat = os.stat(self.path) if os.path.exists(self.path) else None
            return _file_sample(self.path, self.sensor, (stat.st_mtime_ns, stat.st_size) if stat else None)
        step_y, step_x = (max(1, side // SAMPLE_SIDE) for side in self.shape)
        return self.data[:, ::step_y, ::step_x], self.valid[::step_y, ::step_x], self.bands

    def scene_values(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Valid, non-zero values [C n] of the scene sample, and its band names."""
        values, valid, bands = self.scene_sample()
        return values[:, valid & (values != 0).all(0)].astype(np.float32), bands

    def calibrated(self, data: np.ndarray, valid: np.ndarray, unit: str, notes: Sequence[str]) -> Raster:
        """This raster with its values in a physical unit; UserError where no valid pixel of the scene is left."""
        if self.window is None and not valid.any():
            raise UserError(f"{self.path or self.name} has no valid pixel left ({'; '.join(notes)}).")
        data = np.where(valid, data, np.float32(FILL[unit])).astype(np.float32, copy=False)
        return replace(self, data=data, valid=valid, unit=unit, notes=[*self.notes, *notes])


@contextlib.contextmanager
def open_raster(path: str | os.PathLike[str], labels: bool = False) -> Iterator[rasterio.DatasetReader]:
    """Opens a raster and turns what can be wrong with a file into one sentence each (UserError)."""
    name = os.fspath(path)
    if "://" not in name and not name.startswith("/vsi"):
        if not os.path.exists(name):
            raise UserError(f"{name} does not exist; check the path.")
        if os.path.isdir(name):
            raise UserError(f"{name} is a directory; give one raster file, such as a GeoTIFF.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(name)
    except (RasterioError, OSError) as error:
        raise UserError(f"{name} cannot be opened as a raster; is it a GeoTIFF, PNG or JPEG, and complete?") from error
    with dataset:
        if dataset.count == 0:
            parts = f" but {len(dataset.subdatasets)} data sets inside it; export one" if dataset.subdatasets else ""
            raise UserError(f"{name} has no image bands{parts}; give a raster with at least one band.")
        if any(dtype.startswith("complex") for dtype in dataset.dtypes):
            raise UserError(f"{name} holds complex numbers (single-look SAR?); give detected, calibrated backscatter.")
        if not labels and ColorInterp.palette in dataset.colorinterp:
            raise UserError(f"{name} is a palette image, its values are colour numbers; convert it to RGB bands first.")
        try:
            yield dataset
        except RasterioIOError as error:
            raise UserError(f"{name} is damaged or cut short, its pixels cannot be read; copy it again.") from error
        except MemoryError as error:
            size = f"{dataset.count} x {dataset.height} x {dataset.width}"
            raise WorkError(f"{name} ({size}) does not fit into memory; read it in windows.") from error


def read_raster(
    path: str | os.PathLike[str],
    bands: Sequence[str] | None = None,
    window: Window | None = None,
    *,
    sensor: str | None = None,
    native: bool = False,
    labels: bool = False,
) -> Raster:
    """Reads a raster, or a window of it (pixels beyond the edge are invalid), with named bands.

    Args:
      bands: names to read, in this order; all where None.
      sensor: what the caller knows about the file (an entry of ``radiometry.SENSORS``); guessed where None.
      native: keep the file's dtype instead of float32.
      labels: class values: native dtype, and a colour table is no error.

    Raises:
      UserError: a missing, damaged or unsuitable file, a band that is not there, no valid pixel in the whole image.
    """
    with open_raster(path, labels) as dataset:
        keep = _data_bands(dataset)
        names, guess, notes = _names(dataset, keep, sensor)
        chosen = list(range(len(names))) if bands is None else select(bands, names, dataset.name)
        indexes = [keep[i] for i in chosen]
        dtype = dataset.dtypes[indexes[0] - 1]
        full = Window(0, 0, dataset.width, dataset.height)
        data, valid = _read(dataset, indexes, window or full, None if native or labels else "float32")
        transform = dataset.transform
        if window is not None:
            transform = window_transform(window, transform)
        gcps = bool(dataset.gcps[0])
        if gcps and dataset.crs is None:
            notes.append("only ground control points tell where it lies: terrain-correct it before making maps")
        raster = Raster(
            data=data,
            valid=valid,
            transform=transform,
            crs=dataset.crs,
            bands=tuple(names[i] for i in chosen),
            dtype=dtype,
            tags=dict(dataset.tags()),
            nodata=dataset.nodatavals[indexes[0] - 1],
            notes=notes,
            sensor=guess,
            path=dataset.name,
            descriptions=tuple(dataset.descriptions[i - 1] or "" for i in indexes),
            units=tuple(dataset.units[i - 1] or "" for i in indexes),
            scales=tuple(dataset.scales[i - 1] for i in indexes),
            offsets=tuple(dataset.offsets[i - 1] for i in indexes),
            window=window,
            scene_shape=(dataset.height, dataset.width),
            scene_bands=names,
            gcps=gcps,
        )
    if window is None and not labels and not raster.valid.any():
        raise UserError(f"{raster.path} has no valid pixel: all are nodata ({raster.nodata}), masked or not a number.")
    return raster


def peek_sensor(path: str | os.PathLike[str], sensor: str | None = None) -> tuple[str | None, str]:
    """(sensor guess, dtype) of a file from its header alone."""
    with open_raster(path) as dataset:
        keep = _data_bands(dataset)
        return _names(dataset, keep, sensor)[1], dataset.dtypes[keep[0] - 1]


def peek_bands(path: str | os.PathLike[str], bands: Sequence[str], sensor: str | None = None) -> None:
    """UserError unless a file's header names all ``bands`` (``sensor``: as what it is read)."""
    with open_raster(path) as dataset:
        select(bands, _names(dataset, _data_bands(dataset), sensor)[0], dataset.name)


def require_georeference(raster: Raster, purpose: str = "a map") -> CRS:
    """The raster's CRS; UserError where it has no place on Earth."""
    name = raster.path or raster.name
    if raster.gcps and not raster.georeferenced:
        raise UserError(f"{name} has ground control points but no map grid; terrain-correct it (RTC) for {purpose}.")
    return require_map(raster.transform, raster.crs, name, purpose)


def _data_bands(dataset: rasterio.DatasetReader) -> list[int]:
    """1-based indexes without alpha, which is validity and not data."""
    keep = [i for i, kind in enumerate(dataset.colorinterp, 1) if kind != ColorInterp.alpha]
    if not keep:
        raise UserError(f"{dataset.name} has an alpha band only and no image bands.")
    return keep


def _names(
    dataset: rasterio.DatasetReader, keep: list[int], sensor: str | None
) -> tuple[tuple[str, ...], str | None, list[str]]:
    texts = []
    for i in keep:
        tags = {key.lower(): value for key, value in dataset.tags(i).items()}
        spoken = [tags[key] for key in BAND_NAME_TAGS if tags.get(key)]
        texts.append(dataset.descriptions[i - 1] or next(iter(spoken), None))
    return name_bands(texts, dataset.dtypes[keep[0] - 1], dataset.name, dataset.tags(), sensor)


def _read(
    dataset: rasterio.DatasetReader, indexes: list[int], window: Window, dtype: str | None
) -> tuple[np.ndarray, np.ndarray]:
    full = Window(0, 0, dataset.width, dataset.height)
    if window.width <= 0 or window.height <= 0:
        raise UserError(f"{dataset.name}: the window {window} is empty.")
    top, left = max(0, int(window.row_off)), max(0, int(window.col_off))
    bottom = min(full.height, int(window.row_off + window.height))
    right = min(full.width, int(window.col_off + window.width))
    if top >= bottom or left >= right:
        size = f"{dataset.height} x {dataset.width}"
        raise UserError(f"{dataset.name} has {size} pixels; the window {window} lies wholly outside of it.")
    inside = Window(left, top, right - left, bottom - top)
    part = dataset.read(indexes, window=inside, **({"out_dtype": dtype} if dtype else {}))
    mask = dataset.read_masks(indexes, window=inside).all(0)
    if np.issubdtype(part.dtype, np.floating):
        mask &= np.isfinite(part).all(0)
    shape = int(window.height), int(window.width)
    if shape == mask.shape:
        return part, mask
    rows = slice(top - int(window.row_off), bottom - int(window.row_off))
    columns = slice(left - int(window.col_off), right - int(window.col_off))
    data, valid = np.zeros((len(indexes), *shape), part.dtype), np.zeros(shape, bool)
    data[:, rows, columns], valid[rows, columns] = part, mask
    return data, valid


@functools.lru_cache(maxsize=16)
def _file_sample(path: str, sensor: str | None, stamp: Any) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decimated read of the whole file; ``stamp`` (time, size) renews it when the file changes."""
    with open_raster(path, labels=True) as dataset:
        keep = _data_bands(dataset)
        out = min(dataset.height, SAMPLE_SIDE), min(dataset.width, SAMPLE_SIDE)
        values = dataset.read(keep, out_shape=(len(keep), *out), out_dtype="float32")
        valid = dataset.read_masks(keep, out_shape=(len(keep), *out)).all(0) & np.isfinite(values).all(0)
        return values, valid, _names(dataset, keep, sensor)[0]
