"""A pair too large for memory: how it is cut for reading, and how much of it both images see.

The parts lie on one lattice that follows the file's own blocks, whatever they are read for, so every pixel is decoded
once and has one value.
"""

from __future__ import annotations

import os

import numpy as np
from affine import Affine
from rasterio.windows import Window

from earthmind_jax.geo.grid import project, to_map, to_pixel
from earthmind_jax.geo.raster import Raster, open_raster

PART = 1 << 20  # pixels read at once, about
STRIP = 512  # rows read at once, about
MOST_ROWS = 1024


def strips(path: str | os.PathLike[str]) -> list[list[Window]]:
    """The parts in which to read a raster: rows of them, each as wide as the image, top to bottom."""
    with open_raster(path) as dataset:
        height, width = dataset.shape
        block_rows, block_columns = dataset.block_shapes[0]
    if 2 * block_columns > width:  # stored in rows of the whole image
        rows, columns = _multiple(block_rows, max(32, PART // width)), width
    else:
        rows, columns = _multiple(block_rows, STRIP), _multiple(block_columns, PART // STRIP)
    rows = min(rows, MOST_ROWS)
    return [
        [
            Window(left, top, min(columns, width - left), min(rows, height - top))
            for left in range(0, width, columns)
        ]
        for top in range(0, height, rows)
    ]  # fmt: skip


def _multiple(block: int, least: int) -> int:
    return -(-least // block) * block


def sampled_overlap(reference: Raster, other: Raster) -> float:
    """The part (0..1) of the reference's valid pixels where ``other`` is valid, from a decimated look at both files.

    Both need a georeference; each may have been read by any window.
    """
    valid, there = _sampled_valid(reference), _sampled_valid(other)
    rows, columns = np.nonzero(valid)
    if not len(rows):
        return 0.0
    assert reference.scene_shape is not None
    assert other.scene_shape is not None
    height, width = reference.scene_shape
    transform, other_transform = (_scene_transform(r) for r in (reference, other))
    x, y = to_map(transform, (columns + 0.5) * width / valid.shape[1], (rows + 0.5) * height / valid.shape[0])
    column, row = to_pixel(other_transform, *project(reference.crs, other.crs, x, y))
    height, width = other.scene_shape
    inside = np.isfinite(column) & np.isfinite(row) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
    row, column = (np.where(inside, v, 0) for v in (row, column))
    seen = there[(row * there.shape[0] / height).astype(int), (column * there.shape[1] / width).astype(int)]
    return float((seen & inside).mean())


def has_data(raster: Raster) -> bool:
    """Whether a decimated look at the whole file finds any measurement."""
    return bool(_sampled_valid(raster).any())


def _sampled_valid(raster: Raster) -> np.ndarray:
    values, valid, _ = raster.scene_sample()
    return valid & (values != 0).any(0)  # zero in every band is nodata that no tag names


def _scene_transform(raster: Raster) -> Affine:
    """Of the whole file, where a window of it was read."""
    window = raster.window
    if window is None:
        return raster.transform
    return raster.transform @ type(raster.transform).translation(-window.col_off, -window.row_off)
