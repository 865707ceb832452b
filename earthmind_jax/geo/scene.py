"""A pair too large for memory: how it is cut for reading, and how much of it both images see.

The parts lie on one lattice that follows the file's own blocks, whatever they are read for, so every pixel is decoded
once and has one value.
"""

from __future__ import annotations

import os

import numpy as np
from rasterio.windows import Window

from earthmind_jax.geo.grid import Grid, project, to_map
from earthmind_jax.geo.raster import Raster, open_raster
from earthmind_jax.geo.resample import Place

PART = 1 << 20  # pixels read at once, about
STRIP = 512  # rows read at once, about
MOST_ROWS = 1024
MOST_LOOKS = 256  # along each side, at which the overlap is looked up


def strips(path: str | os.PathLike[str], grid: Grid | None = None, dates: int = 1) -> list[list[Window]]:
    """The parts in which to read a raster: rows of them, each as wide as the image, top to bottom.

    ``grid``: the map grid that an image is brought onto, whose pixels are none of the file's own. ``dates``: how many
    images of one size are read together, so that parts are smaller as far as the file's blocks allow.
    """
    with open_raster(path) as dataset:
        height, width = dataset.shape if grid is None else grid.shape
        block_rows, block_columns = dataset.block_shapes[0] if grid is None else (1, STRIP)
    if 2 * block_columns > width:  # stored in rows of the whole image
        rows, columns = _multiple(block_rows, max(32, PART // dates // width)), width
    else:
        rows, columns = _multiple(block_rows, STRIP // dates), _multiple(block_columns, PART // STRIP // dates)
    rows = min(rows, MOST_ROWS)
    return [
        [
            Window(left, top, min(columns, width - left), min(rows, height - top))
            for left in range(0, width, columns)
        ]
        for top in range(0, height, rows)
    ]  # fmt: skip


def _multiple(block: int, least: int) -> int:
    return max(1, -(-least // block)) * block


def sampled_overlap(reference: Raster, other: Raster, grid: Grid, place: Place, other_place: Place) -> float:
    """The part (0..1) of the reference's valid pixels where ``other`` is valid, from a decimated look at both files.

    Args:
      reference, other: read by any window.
      grid: the map grid of the pair.
      place, other_place: where the whole files lie (``control.place_of``).
    """
    down, across = (np.minimum(side, MOST_LOOKS) for side in grid.shape)
    columns, rows = np.meshgrid(
        (np.arange(across) + 0.5) * grid.width / across, (np.arange(down) + 0.5) * grid.height / down
    )
    x, y = to_map(grid.transform, columns.ravel(), rows.ravel())
    valid = _valid_at(reference, place, grid, x, y)
    if not valid.any():
        return 0.0
    return float(_valid_at(other, other_place, grid, x[valid], y[valid]).mean())


def _valid_at(raster: Raster, place: Place, grid: Grid, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool [n]: whether the file has data at map coordinates of ``grid``."""
    valid = _sampled_valid(raster)
    column, row = place.to_pixel(*project(grid.crs, place.crs, x, y))
    inside = np.isfinite(column) & np.isfinite(row)
    inside &= (column >= 0) & (row >= 0) & (column < place.width) & (row < place.height)
    row, column = (np.where(inside, v, 0) for v in (row, column))
    rows, columns = (
        (row * valid.shape[0] / place.height).astype(int),
        (column * valid.shape[1] / place.width).astype(int),
    )
    return inside & valid[rows, columns]


def has_data(raster: Raster) -> bool:
    """Whether a decimated look at the whole file finds any measurement."""
    return bool(_sampled_valid(raster).any())


def _sampled_valid(raster: Raster) -> np.ndarray:
    values, valid, _ = raster.scene_sample()
    return valid & (values != 0).any(0)  # zero in every band is nodata that no tag names
