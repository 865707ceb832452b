"""Values of one grid at the pixels of another. Every result is a function of the place alone.

So a window gives the same numbers as the same part of the whole. GDAL's warper, as rasterio 1.4 drives it, does not:
it interpolates positions along the scanlines of the window at hand (``reproject`` ignores its ``tolerance``; 0.05
pixels off on a scene of 5 km) and stretches its kernel by the size of the window. PROJ still does the projecting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from earthmind_jax.geo.grid import Grid, project, to_map

STRAY = 4e-5  # source pixels by which an interpolated position may be off
STEPS = (16, 8, 4, 2)  # pixels between positions computed exactly: the largest that strays no more
BLOCK = 2**20  # positions held at once
PROBES = 9  # places along each side at which pixel sizes are compared
HALF = 0.5 - 1e-6  # share of valid weight from which on a pixel is valid


class Place(Protocol):
    """What has pixels and knows where: a :class:`Grid`, or ground control."""

    crs: object
    height: int
    width: int

    @property
    def turn(self) -> int: ...

    def to_pixel(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def positions(grid: Grid, source: Place) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres of ``grid`` lie in ``source``: (columns, rows), float64 [H W], its pixels; (0.5, 0.5) is
    the centre of the first. Not finite where the projection has no value."""
    for step in STEPS:
        across, down = (np.arange(0, side + step, step) for side in (grid.width, grid.height))
        nodes = locate(grid, source, across, down)
        if not np.isfinite(nodes).all():
            break
        # at the edges' middles: at the cell's own, the errors of a conformal map in both directions would cancel
        between_x = locate(grid, source, across[:-1] + step / 2, down)
        between_y = locate(grid, source, across, down[:-1] + step / 2)
        off = [
            np.abs(between_x - (nodes[..., 1:] + nodes[..., :-1]) / 2),
            np.abs(between_y - (nodes[:, 1:] + nodes[:, :-1]) / 2),
        ]
        if all(np.nan_to_num(error, nan=np.inf).max() <= STRAY / 2 for error in off):
            columns, rows = (_between(_between(node.T, grid.height, step).T, grid.width, step) for node in nodes)
            return columns, rows
    columns, rows = locate(grid, source, np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    return columns, rows


def locate(grid: Grid, source: Place, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """float64 [2 n m]: (column, row) in ``source`` of the m columns ``across`` and n rows ``down`` of ``grid``."""
    columns, rows = np.meshgrid(np.asarray(across, float), np.asarray(down, float))
    x, y = to_map(grid.transform, columns.ravel(), rows.ravel())
    with np.errstate(invalid="ignore"):
        there = source.to_pixel(*project(grid.crs, source.crs, x, y))
    return np.reshape(there, (2, *columns.shape))


def pixel_ratio(grid: Grid, source: Place) -> tuple[float, float]:
    """Pixels of ``source`` in one of ``grid``, down its rows and across its columns: the median over the grid, since
    no single place can be trusted (a pole has infinitely many columns)."""
    down, across = (np.linspace(0.5, side - 0.5, PROBES) for side in grid.shape)
    lengths = []
    for rows, columns in ((1, 0), (0, 1)):
        ahead, behind = (locate(grid, source, across + n * columns / 2, down + n * rows / 2) for n in (1, -1))
        length = np.linalg.norm(ahead - behind, axis=0)
        known = length[np.isfinite(length)]
        lengths.append(float(np.median(known)) if known.size else 1.0)
    return lengths[0], lengths[1]


def continuous(
    values: np.ndarray, valid: np.ndarray, source: Place, grid: Grid, split: tuple[int, int] = (1, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Measurements [C h w] at the pixels of ``grid``: (float32 [C H W], bool [H W]).

    Bilinear between the valid pixels around each position; with ``split`` (rows, columns) the mean over so many
    positions in each pixel. A pixel is valid where at least half of the weight falls on valid ones.
    """
    values = np.where(valid, values, np.float32(0)).astype(np.float32, copy=False).reshape(len(values), -1)
    data = np.zeros((len(values), *grid.shape), np.float32)
    there = np.zeros(grid.shape, bool)
    for block, part in _blocks(grid, split):
        total, weight = _bilinear(values, valid, source, part.finer(*split))
        total, weight = _block_mean(total, split), _block_mean(weight, split)
        there[block] = weight >= HALF
        data[:, *block] = total / np.where(weight >= HALF, weight, 1)
    return data, there


def classes(
    values: np.ndarray, valid: np.ndarray, source: Place, grid: Grid, split: tuple[int, int] = (1, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers [C h w] at the pixels of ``grid``, as they are: (dtype of ``values`` [C H W], bool [H W]).

    The nearest; with ``split`` the most frequent of so many positions in each pixel (the smaller number of two).
    """
    flat = values.reshape(len(values), -1)
    data = np.zeros((len(values), *grid.shape), values.dtype)
    there = np.zeros(grid.shape, bool)
    for block, part in _blocks(grid, split):
        columns_at, rows_at = positions(part.finer(*split), source)
        index, inside = _index(_whole(np.floor(columns_at)), _whole(np.floor(rows_at)), source)
        inside &= valid.ravel()[index]
        there[block] = _block_mean(inside.astype(np.float32), split) >= HALF
        for band, picked in zip(data[:, *block], flat, strict=True):
            band[:] = np.where(there[block], _most_frequent(picked[index], inside, split), 0)
    return data, there


def _blocks(grid: Grid, split: tuple[int, int]) -> Iterator[tuple[tuple[slice, slice], Grid]]:
    width = min(grid.width, max(1, BLOCK // (split[0] * split[1])))
    height = max(1, BLOCK // (width * split[0] * split[1]))
    for top in range(0, grid.height, height):
        for left in range(0, grid.width, width):
            bottom, right = min(top + height, grid.height), min(left + width, grid.width)
            yield np.s_[top:bottom, left:right], grid.part(top, left, bottom - top, right - left)


def _bilinear(values: np.ndarray, valid: np.ndarray, source: Place, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(sum of weight times value [C H W], weight of valid pixels [H W]); ``values`` [C n], zero where invalid."""
    columns, rows = positions(grid, source)
    rows = _rim(rows, source.height)
    columns = columns if source.turn else _rim(columns, source.width)
    left, top = np.floor(columns - 0.5), np.floor(rows - 0.5)
    x, y = (columns - 0.5 - left).astype(np.float32), (rows - 0.5 - top).astype(np.float32)
    left, top = _whole(left), _whole(top)
    total = np.zeros((len(values), *grid.shape), np.float32)
    weight = np.zeros(grid.shape, np.float32)
    for down, share_y in ((0, 1 - y), (1, y)):
        for across, share_x in ((0, 1 - x), (1, x)):
            index, inside = _index(left + across, top + down, source)
            share = np.where(inside & valid.ravel()[index], share_x * share_y, np.float32(0))
            weight += share
            for band, picked in zip(total, values, strict=True):
                band += share * picked[index]
    return total, weight


def _rim(places: np.ndarray, size: int) -> np.ndarray:
    """Positions in the outer half of the outermost pixels have no neighbour beyond: there the pixel's value holds."""
    on_it = (places >= 0) & (places <= size)
    return np.where(on_it, places.clip(0.5, size - 0.5), places)


def _whole(values: np.ndarray) -> np.ndarray:
    """int64; far outside where there is no position."""
    return np.nan_to_num(values, nan=-9, posinf=-9, neginf=-9).clip(-(2**40), 2**40).astype(np.int64)


def _index(columns: np.ndarray, rows: np.ndarray, source: Place) -> tuple[np.ndarray, np.ndarray]:
    """(flat index into the source, whether it lies inside; elsewhere the index is 0)."""
    if source.turn:
        columns = columns % source.turn
    inside = (columns >= 0) & (columns < source.width) & (rows >= 0) & (rows < source.height)
    return np.where(inside, rows * source.width + columns, 0), inside


def _between(nodes: np.ndarray, side: int, step: int) -> np.ndarray:
    """Linear interpolation along the last axis, from every ``step`` pixels to each of ``side`` pixel centres."""
    share = (np.arange(step) + 0.5) / step
    values = nodes[:, :-1, None] * (1 - share) + nodes[:, 1:, None] * share
    return values.reshape(len(nodes), -1)[:, :side]


def _block_mean(values: np.ndarray, split: tuple[int, int]) -> np.ndarray:
    rows, columns = values.shape[-2] // split[0], values.shape[-1] // split[1]
    return values.reshape(*values.shape[:-2], rows, split[0], columns, split[1]).mean((-3, -1))


def _most_frequent(values: np.ndarray, counts: np.ndarray, split: tuple[int, int]) -> np.ndarray:
    """[H W] of each block of ``values`` the most frequent where ``counts``."""
    if split == (1, 1):
        return values
    kinds = np.unique(values[counts])
    shape = values.shape[0] // split[0], values.shape[1] // split[1]
    best, found = np.zeros(shape, np.float32), np.zeros(shape, values.dtype)
    for kind in kinds:
        share = _block_mean(((values == kind) & counts).astype(np.float32), split)
        found, best = np.where(share > best, kind, found).astype(values.dtype), np.maximum(share, best)
    return found
