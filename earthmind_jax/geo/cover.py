"""Which part of one image covers which part of another: what to read, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rasterio.windows import Window

from earthmind_jax.geo.control import Control
from earthmind_jax.geo.grid import Grid, to_map
from earthmind_jax.geo.resample import BLOCK, locate

NODES = 32  # along each side of a piece, at which its place in the source is looked up
SAME = 1e-3  # pixels


def pieces(
    grid: Grid, place: Grid | Control, limit: float, split: int = 1, row: int = 0, column: int = 0
) -> Iterator[tuple[slice, slice, Window | None]]:
    """(rows, columns of ``grid``, the window of the source that covers them), halved until the window has at most
    ``limit`` pixels, and, with ``split`` > 1 positions in each pixel of ``grid``, those are as many as are held at
    once. A window of None is the whole source. Parts that the source does not reach are left out."""
    window = covering(grid, place)
    if window is None:
        return
    many = split > 1 and grid.height * grid.width * split > BLOCK
    if (many or window.width * window.height > limit) and max(grid.shape) > 1:
        height, width = grid.shape
        halves = (
            [(0, 0, height // 2, width), (height // 2, 0, height - height // 2, width)]
            if height >= width
            else [(0, 0, height, width // 2), (0, width // 2, height, width - width // 2)]
        )
        for down, across, h, w in halves:
            yield from pieces(grid.part(down, across, h, w), place, limit, split, row + down, column + across)
        return
    whole = (window.col_off, window.row_off, window.width, window.height) == (0, 0, place.width, place.height)
    yield slice(row, row + grid.height), slice(column, column + grid.width), None if whole else window


def covering(grid: Grid, place: Grid | Control) -> Window | None:
    """The window of the source on which ``grid`` lies, with a margin for the resampling kernel; exactly the grid's
    pixels (which may reach beyond the source) where no resampling is needed. None where they do not meet."""
    same = _same_pixels(grid, place)
    if same is not None:
        top, left = same
        apart = top >= place.height or left >= place.width or top + grid.height <= 0 or left + grid.width <= 0
        return None if apart else Window(left, top, grid.width, grid.height)
    down, across = (np.linspace(0, side, min(side, NODES) + 1) for side in grid.shape)
    nodes = locate(grid, place, across, down)
    spans = []
    for axis, size in ((nodes[1], place.height), (nodes[0], place.width)):
        known = axis[np.isfinite(axis)]
        if known.size == 0:
            return None
        steps = np.concatenate([np.abs(np.diff(axis, axis=side)).ravel() for side in (0, 1)])
        steps = steps[np.isfinite(steps)]
        margin = 2 + (float(steps.max()) if steps.size else size)  # as far as it bends between two nodes, at most
        start, stop = max(0.0, np.floor(known.min() - margin)), min(float(size), np.ceil(known.max() + margin))
        if start >= stop:
            return None
        spans.append((int(start), int(stop)))
    if place.turn and (spans[1][0] == 0 or spans[1][1] == place.width):
        spans[1] = 0, place.width  # the neighbours of the first column are at the other end
    (top, bottom), (left, right) = spans
    return Window(left, top, right - left, bottom - top)


def _same_pixels(grid: Grid, place: Grid | Control) -> tuple[int, int] | None:
    """(row, column) of the source at which ``grid`` begins where both have the same pixels."""
    if not isinstance(place, Grid) or place.crs != grid.crs:
        return None
    corners = np.array([0, grid.width, 0]), np.array([0, 0, grid.height])
    columns, rows = place.to_pixel(*to_map(grid.transform, *corners))
    start = np.rint([columns[0], rows[0]])
    off = np.stack([columns - corners[0] - start[0], rows - corners[1] - start[1]])
    return (int(start[1]), int(start[0])) if np.abs(off).max() <= SAME else None
