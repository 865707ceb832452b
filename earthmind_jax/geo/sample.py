"""The whole scene in a few pixels: what every decision about a scene rests on, the same for each window of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Interleaving
from rasterio.windows import Window

from earthmind_jax.geo.opening import open_raster, read_masks, read_values
from earthmind_jax.geo.quality import quality_valid

LARGEST = 1e6  # beyond it a stored number is a fill value (NetCDF's is 9.97e36) and no measurement
SAMPLE_SIDE = 512  # rows and columns at most
SPARSE = 0.001  # of what it declares, below which a file may lack most of its blocks: the best compression leaves more
CACHED_VALUES = 2**26  # of one row of blocks that GDAL is to keep while it is sampled


@dataclass(frozen=True, eq=False)
class SceneSample:
    """A scene decimated to at most ``SAMPLE_SIDE`` rows and columns. Equal only to itself, so that what is worked out
    from it can be remembered.

    Attributes:
      values: float32 [C h w], as stored.
      valid: bool [h w], true where every band that has data at all holds a measurement.
      bands: C names.
      empty: those that hold nothing but zeros and nodata, where others hold something.
    """

    values: np.ndarray
    valid: np.ndarray
    bands: tuple[str, ...]
    empty: tuple[str, ...] = ()

    @cached_property
    def known(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Valid values that are zero in no band [C n], and their bands (without those that hold nothing)."""
        some = [i for i, band in enumerate(self.values) if (np.isfinite(band) & (band != 0)).any()]
        values = self.values[some or slice(None)]
        return values[:, self.valid & (values != 0).all(0)], tuple(np.take(self.bands, some)) if some else self.bands

    def __iter__(self) -> Iterator[Any]:
        """Unpacks into values, validity and band names."""
        return iter((self.values, self.valid, self.bands))

    def band(self, name: str) -> np.ndarray:
        """Valid values of one band [n], zeros among them."""
        return self.values[self.bands.index(name)][self.valid]


def sample_of(values: np.ndarray, valid: np.ndarray, bands: tuple[str, ...]) -> SceneSample:
    """A sample of decimated values [C h w] with a validity for each band [C h w]; bands without any data do not count
    for ``valid``."""
    finite = valid & np.isfinite(values)
    some = finite.any((1, 2))
    every = finite[some].all(0) if some.any() else np.zeros(values.shape[1:], bool)
    something = (finite & (values != 0)).any((1, 2))
    empty = tuple(np.array(bands)[~something].tolist()) if something.any() else ()
    return SceneSample(values, every, bands, empty)


@lru_cache(maxsize=16)
def sample_between(sample: SceneSample, low: float, high: float) -> SceneSample:
    """The sample less the pixels with a stored value that nothing measured has: fill values that no tag declares."""
    with np.errstate(invalid="ignore"):
        some = ((sample.values > low) & (sample.values < high)).any((1, 2))
        inside = ((sample.values > low) & (sample.values < high))[some].all(0)
    return SceneSample(sample.values, sample.valid & inside, sample.bands)


@lru_cache(maxsize=64)
def percentiles(
    sample: SceneSample, band: str, low: float, high: float, above: float = -np.inf, keep_zero: bool = False
) -> tuple[float, float]:
    """Two percentiles of a band's valid values over ``above``, without zeros unless kept; (0, 1) of none."""
    values = sample.band(band)
    values = values[np.isfinite(values) & (values > above) & (keep_zero | (values != 0))]
    if values.size == 0:
        return 0.0, 1.0
    first, second = np.percentile(values.astype(np.float64), (low, high))
    return float(first), float(second)


@lru_cache(maxsize=16)  # the files of a series, each of which is asked for in every strip
def file_sample(
    path: str, indexes: tuple[int, ...], bands: tuple[str, ...], quality: tuple[int, str] | None, stamp: Any
) -> SceneSample:
    """Every n-th pixel of a whole file; ``stamp`` (time, size) renews it when the file changes."""
    with open_raster(path, labels=True) as dataset:
        shape = min(dataset.height, SAMPLE_SIDE), min(dataset.width, SAMPLE_SIDE)
        values, valid = _decimated(dataset, list(indexes), shape)
        if quality is not None:
            valid &= quality_valid(quality[1], _decimated(dataset, [quality[0]], shape)[0][0], path)
        return sample_of(values, valid, bands)


def _decimated(
    dataset: rasterio.DatasetReader, indexes: list[int], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(values float32 [C h w], bool [C h w] where they are data) of the pixels nearest to an even grid."""
    size, options = (len(indexes), *shape), {}
    if dataset.height * dataset.width <= 4 * SAMPLE_SIDE**2 or dataset.overviews(indexes[0]):
        options["out_shape"] = size
        values = read_values(dataset, indexes, "float32", **options)
        return values, read_masks(dataset, indexes, indexes, **options)
    # One row of blocks after the other: GDAL would decode each block once for every band.
    values, valid = np.empty(size, np.float32), np.empty(size, bool)
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(shape, dataset.shape, strict=True)
    )
    block = dataset.block_shapes[0]
    chunk = block[1] * max(1, CACHED_VALUES // (block[0] * block[1] * len(indexes)))
    sparse = _is_sparse(dataset, len(indexes))
    for first, last in _runs(rows // block[0]):
        row = rows[first] // block[0]
        written = _written(dataset, indexes, row)[columns // block[1]] if sparse else np.ones(len(columns), bool)
        values[:, first:last], valid[:, first:last] = 0, False
        for left in range(0, dataset.width, chunk):
            inside = slice(*np.searchsorted(columns, (left, left + chunk)))
            if not written[inside].any():
                continue
            for i in range(first, last):
                window = Window(left, rows[i], min(chunk, dataset.width - left), 1)
                picked = columns[inside] - left
                values[:, i, inside] = read_values(dataset, indexes, "float32", window=window)[:, 0, picked]
                seen = read_masks(dataset, indexes, indexes, window=window)[:, 0, picked]
                valid[:, i, inside] = seen & written[inside]
    return values, valid


def _is_sparse(dataset: rasterio.DatasetReader, count: int) -> bool:
    """Whether a GeoTIFF is so much smaller than what it declares that most of it can never have been written."""
    try:
        size = os.stat(dataset.name).st_size
    except OSError:  # within an archive
        return False
    declared = dataset.height * dataset.width * count * np.dtype(dataset.dtypes[0]).itemsize
    return dataset.driver == "GTiff" and size < SPARSE * declared


def _written(dataset: rasterio.DatasetReader, indexes: list[int], row: int) -> np.ndarray:
    """bool for each block in a row of blocks: whether the file has it. What it lacks GDAL fills, which takes long."""
    count = -(-dataset.width // dataset.block_shapes[0][1])
    indexes = indexes[:1] if dataset.interleaving is Interleaving.pixel else indexes  # which has blocks for all bands
    names = [f"BLOCK_OFFSET_{block}_{row}" for block in range(count)]
    return np.array([any(dataset.get_tag_item(name, "TIFF", bidx=index) for index in indexes) for name in names])


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) position of each run of equal numbers."""
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return list(itertools.pairwise(starts))
