"""Rasters out. A file appears whole under its name or not at all: it is written beside, read back, and renamed. Files
that belong together appear together."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.grid import require_map

BLOCK = 512  # pixels, side of a tile
ROUNDING = 1e-4  # by which a probability may leave 0..1


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name in the folder of ``path``, renamed to it at the end; on any failure nothing is left.

    Raises:
      UserError: the folder is missing, or ``path`` is a folder or a device.
      WorkError: the writing failed (full disk, no permission).
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target} is a folder; give the name of the file to write.")
    if target.exists() and not target.is_file():  # a device would be gone, with the file in its place
        raise UserError(f"{target} is no regular file (a pipe or a device); give the name of the file to write.")
    if not target.parent.is_dir():
        raise UserError(f"The folder {target.parent} of {target.name} does not exist; create it first.")
    beside = target.parent / f".{target.stem}.{uuid.uuid4().hex[:12]}{target.suffix}"
    try:
        yield str(beside)
        os.replace(beside, target)
    except (OSError, RasterioError, CPLE_BaseError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise WorkError(
            f"{target} could not be written ({reason}); check the free space and the permissions."
        ) from error
    finally:
        for leftover in target.parent.glob(f"{glob.escape(beside.name)}*"):  # with what GDAL and we put next to it
            leftover.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what a killed process left of ``path``; nobody may be writing it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.{'[0-9a-f]' * 12}{glob.escape(path.suffix)}*"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def written_together(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder within ``directory``, whose files all move there at the end; on any failure nothing of it is left, and
    ``directory`` is as it was.

    Raises:
      UserError: a folder has the name of one of the files.
      WorkError: the writing failed.
    """
    directory = Path(directory)
    new = [place for place in (directory, *directory.parents) if not place.exists()]
    staging = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=directory, prefix=".unfinished."))
        yield staging
        files = sorted(staging.iterdir())
        for file in files:
            if (directory / file.name).is_dir():
                raise UserError(f"{directory / file.name} is a folder, where a file of this name is to be written.")
        for file in files:
            os.replace(file, directory / file.name)
        new = []
    except WorkError as error:
        raise WorkError(str(error).replace(str(staging), str(directory))) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()


@contextlib.contextmanager
def cog_writer(
    path: str | os.PathLike[str],
    shape: tuple[int, int],
    transform: Affine,
    crs: CRS | str | None,
    *,
    dtype: str = "uint8",
    nodata: float = 255,
    tags: Mapping[str, object] | None = None,
    band_name: str = "mask",
    scale: float = 1.0,
    average: bool | None = None,
) -> Iterator[Callable[[np.ndarray, int, int], None]]:
    """Writes one band block by block, then makes it a Cloud-Optimized GeoTIFF: for scenes that do not fit into memory.

    Yields ``write(block [h w], row, column)``. Pixels never written hold ``nodata``. Class values are brought into the
    overviews by majority, probabilities by averaging (``average``; of floating point by default). ``scale`` is what a
    stored number is to be multiplied by. Errors as ``written_beside``; UserError without a georeference.
    """
    crs = require_map(transform, crs, os.fspath(path), "a mask on the map")
    if len(shape) != 2 or min(shape) < 1:
        raise UserError(f"{os.fspath(path)}: a map of {' x '.join(map(str, shape))} pixels cannot be written.")
    if average is None:
        average = np.issubdtype(np.dtype(dtype), np.floating)
    with written_beside(path) as beside:
        plain = f"{beside}.plain.tif"
        with _created(plain, _profile(shape, 1, dtype, transform, crs, nodata) | {"SPARSE_OK": True}) as dataset:

            def write(block: np.ndarray, row: int, column: int) -> None:
                height, width = block.shape
                if row < 0 or column < 0 or row + height > shape[0] or column + width > shape[1]:
                    raise UserError(f"The block {height} x {width} at ({row}, {column}) does not fit into {shape}.")
                dataset.write(block.astype(dtype, copy=False), 1, window=Window(column, row, width, height))

            yield write
            dataset.set_band_description(1, band_name)
            if scale != 1:
                dataset.scales = (scale,)
            dataset.update_tags(**{key: str(value) for key, value in (tags or {}).items()})
        rasterio.shutil.copy(
            plain,
            beside,
            driver="COG",
            compress="DEFLATE",
            predictor="YES",
            blocksize=BLOCK,
            bigtiff="IF_SAFER",
            overview_resampling="AVERAGE" if average else "MODE",
        )
        with _opened(plain) as dataset:
            _verify(beside, lambda window: dataset.read(window=window))


def write_mask_cog(
    path: str | os.PathLike[str],
    mask: np.ndarray,
    transform: Affine,
    crs: CRS | str | None,
    *,
    valid: np.ndarray | None = None,
    nodata: float = 255,
    tags: Mapping[str, object] | None = None,
    band_name: str = "mask",
) -> None:
    """Writes a mask [H W] as a Cloud-Optimized GeoTIFF: bool or uint8 classes as uint8, a probability as float32.

    ``valid`` (bool [H W]) is false where there was no image, and NaN is no probability: both become ``nodata``.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not (mask.dtype in (np.bool_, np.uint8) or np.issubdtype(mask.dtype, np.floating)):
        raise UserError(f"A mask is [H W] of bool, uint8 or a probability; this one is {mask.shape} of {mask.dtype}.")
    floating = np.issubdtype(mask.dtype, np.floating)
    pixels = mask.astype(np.float32 if floating else np.uint8)
    absent = np.isnan(pixels) if floating else np.zeros(mask.shape, bool)
    if valid is not None:
        absent |= ~_same_shape(path, mask, valid)
    pixels[absent] = nodata
    with cog_writer(
        path, mask.shape, transform, crs, dtype=str(pixels.dtype), nodata=nodata, tags=tags, band_name=band_name
    ) as write:
        for window in _blocks(mask.shape):
            write(pixels[window.toslices()], window.row_off, window.col_off)


def write_probability_cog(
    path: str | os.PathLike[str],
    probability: np.ndarray,
    transform: Affine,
    crs: CRS | str | None,
    *,
    valid: np.ndarray | None = None,
    percent: bool = False,
    tags: Mapping[str, object] | None = None,
    band_name: str = "probability",
) -> None:
    """Writes a probability [H W] (0..1, NaN or not ``valid``: no image) as a Cloud-Optimized GeoTIFF.

    float32, or with ``percent`` whole percent in uint8 with the scale 0.01; nodata 255, overviews averaged.
    """
    probability = np.asarray(probability, np.float32)
    seen = np.isfinite(probability)
    if valid is not None:
        seen &= _same_shape(path, probability, valid)
    if probability.ndim != 2 or (np.abs(probability[seen] - 0.5) > 0.5 + ROUNDING).any():
        raise UserError(f"{os.fspath(path)}: a probability is [H W] of 0 to 1.")
    pixels = np.where(seen, probability.clip(0, 1), np.float32(255))
    dtype, scale = "float32", 1.0
    if percent:
        pixels, dtype, scale = np.where(seen, np.rint(100 * pixels), 255).astype(np.uint8), "uint8", 0.01
    with cog_writer(
        path, pixels.shape, transform, crs, dtype=dtype, tags=tags, band_name=band_name, scale=scale, average=True
    ) as write:
        for window in _blocks(pixels.shape):
            write(pixels[window.toslices()], window.row_off, window.col_off)


def _same_shape(path: str | os.PathLike[str], mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    valid = np.asarray(valid, bool)
    if valid.shape != mask.shape:
        raise UserError(f"{os.fspath(path)}: the mask is {mask.shape} but its validity {valid.shape}; give one size.")
    return valid


def write_geotiff(
    path: str | os.PathLike[str],
    array: np.ndarray,
    transform: Affine,
    crs: CRS | str | None,
    band_names: Sequence[str],
    tags: Mapping[str, object] | None = None,
    nodata: float | None = None,
) -> None:
    """Writes [C H W] (or [H W]) as a tiled, compressed GeoTIFF with named bands; ``crs`` None makes a plain picture."""
    array = np.asarray(array)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[0] != len(band_names) or 0 in array.shape:
        raise UserError(
            f"{os.fspath(path)}: an array of shape {array.shape} cannot have the bands {' '.join(band_names)}."
        )
    array = array.astype(np.uint8) if array.dtype == np.bool_ else array
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    crs = None if crs is None else CRS.from_user_input(crs)
    profile = _profile(array.shape[1:], len(array), str(array.dtype), transform, crs, nodata)
    with written_beside(path) as beside:
        with _created(beside, profile) as dataset:
            dataset.write(array)
            dataset.update_tags(**{key: str(value) for key, value in (tags or {}).items()})
            for i, name in enumerate(band_names, 1):
                dataset.set_band_description(i, name)
        _verify(beside, lambda window: array[:, *window.toslices()])


def _profile(
    shape: Sequence[int], count: int, dtype: str, transform: Affine, crs: CRS | None, nodata: float | None
) -> dict[str, object]:
    predictor = 3 if np.issubdtype(np.dtype(dtype), np.floating) else 2
    return {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": count,
        "dtype": dtype,
        "transform": transform,
        "crs": crs,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "DEFLATE",
        "predictor": predictor,
        "BIGTIFF": "IF_SAFER",
    }


def _blocks(shape: Sequence[int]) -> Iterator[Window]:
    for row in range(0, shape[0], BLOCK):
        for column in range(0, shape[1], BLOCK):
            yield Window(column, row, min(BLOCK, shape[1] - column), min(BLOCK, shape[0] - row))


def _created(path: str, profile: Mapping[str, object]) -> rasterio.io.DatasetWriter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, "w", **profile)


def _opened(path: str) -> rasterio.DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _verify(path: str, expected: Callable[[Window], np.ndarray]) -> None:
    """OSError unless every block reads back as expected: a full disk is not always reported when it happens."""
    with _opened(path) as dataset:
        for window in _blocks(dataset.shape):
            pixels = dataset.read(window=window)
            if not np.array_equal(pixels, expected(window), equal_nan=pixels.dtype.kind == "f"):
                raise OSError("what was read back is not what was written")
