"""One image out of an array of many in an HDF5 file, read row by row.

A file stays open in the process that reads it (a grain worker opens its own), so that a row costs one seek.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
from affine import Affine

from earthmind_jax.data.images import Image
from earthmind_jax.errors import UserError
from earthmind_jax.geo.backscatter import to_db
from earthmind_jax.geo.raster import Raster

OPEN = 16  # arrays kept open


def dataset(path: str | os.PathLike[str], name: str) -> Any:
    """An array of an HDF5 file (h5py), still on disk; UserError where the file or the array is not there."""
    path = os.fspath(path)
    try:
        stat = os.stat(path)
        return _open(path, name, stat.st_mtime_ns, stat.st_size, os.getpid())
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}'.") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be opened as HDF5, is it complete? ({error})") from error


@lru_cache(maxsize=OPEN)
def _open(path: str, name: str, time: int, size: int, process: int) -> Any:
    """A handle is good for one process and one state of the file, hence the other arguments."""
    import h5py

    file = h5py.File(path, "r", locking=False)
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(sorted(file)) or "none"
        raise UserError(f"'{path}' has no array '{name}'; those there: {there}.")
    return found


def shape(image: Image) -> tuple[int, int]:
    """Rows and columns of a described row; UserError where the array has no such row, or other channels than named."""
    array = dataset(image.array, image.dataset)
    name = f"'{image.array}' array '{image.dataset}'"
    if array.ndim != 4 or array.dtype.kind not in "iuf":
        form = "[N, " + ", ".join(image.axes) + "]"
        raise UserError(f"{name} must be numbers {form}, not {array.dtype} {list(array.shape)}.")
    if image.row >= array.shape[0]:
        raise UserError(f"{name} has {array.shape[0]} rows; there is no row {image.row}.")
    height, width, channels = (array.shape[1 + image.axes.index(axis)] for axis in "HWC")
    if not (height and width):
        raise UserError(f"{name} has images of {height} x {width} pixels.")
    if len(image.bands or ()) != channels:
        raise UserError(f"{name} has {channels} channels but 'bands' names {len(image.bands or ())}; null skips one.")
    return height, width


def read(image: Image) -> Raster:
    """A described row as reflectance, dB or a picture, as its ``unit`` or ``stretch`` tells.

    Raises:
      UserError: naming file, array and row, for one that is missing, damaged or without a valid pixel.
    """
    shape(image)
    try:
        values = dataset(image.array, image.dataset)[image.row]
    except OSError as error:
        raise UserError(f"{image.name} cannot be read, the file is damaged; copy it again ({error}).") from error
    bands = tuple(band for band in image.bands or () if band is not None)
    used = [i for i, band in enumerate(image.bands or ()) if band is not None]
    data = np.take(values, used, axis=image.axes.index("C")).transpose([image.axes.index(axis) for axis in "CHW"])
    data = data.astype(np.float32)
    valid = np.isfinite(data).all(0)
    if image.nodata is not None:
        valid &= (data != np.float32(image.nodata)).all(0)
    raw = Raster(
        data, valid, Affine.identity(), None, bands, dtype=str(values.dtype), path=image.name, scene_bands=bands
    )
    if not valid.any():
        raise UserError(f"{image.name} has no valid pixel.")
    if image.stretch is not None:
        low, high = image.stretch
        return raw.calibrated(np.clip((data - low) / (high - low), 0, 1) * 255, valid, "display", [])
    if image.unit == "linear":
        return to_db(raw, scale="linear", border_db=None)
    if image.unit == "dB":
        return to_db(raw, scale="dB", border_db=None)
    return raw.calibrated(data, valid, image.unit or "display", [])
