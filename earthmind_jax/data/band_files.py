"""Rasters of single bands, as they come in a file each, to one raster on the finest of their grids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import align
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.raster import Raster, open_raster


@lru_cache(maxsize=2**16)
def file_header(path: Path, single: bool) -> tuple[Grid, str]:
    """Grid and dtype of a file; UserError where it is to be the file of a ``single`` band and is not."""
    with open_raster(path) as dataset:
        if single and dataset.count != 1:
            raise UserError(f"{path} has {dataset.count} channels, but the file of a band has one.")
        return Grid(dataset.transform, dataset.crs, dataset.height, dataset.width, dataset.name), dataset.dtypes[0]


def finest(grids: Iterable[Grid]) -> Grid:
    """The grid with the smallest pixels, the first of those that are alike; without a map the one with most of them."""
    chosen, *others = grids
    for other in others:
        if chosen.crs is None or other.crs is None:
            chosen = other if np.prod(other.shape) > np.prod(chosen.shape) else chosen
        elif (other.gsd or np.inf) < (chosen.gsd or np.inf) * 0.999:
            chosen = other
    return chosen


def stacked(parts: Sequence[Raster], kind: str, name: str) -> Raster:
    """Rasters of one band each as one raster on the finest of their grids; valid where all are.

    Raises:
      UserError: no georeference and different sizes, or no pixel that is valid in all; ``name`` is what it calls them.
    """
    grid = finest(part.grid for part in parts)
    parts = [_onto(part, grid, kind) for part in parts]
    names = tuple(part.bands[0] for part in parts)
    stack = replace(
        parts[0],
        data=np.concatenate([part.data for part in parts]),
        valid=np.logical_and.reduce([part.valid for part in parts]),
        bands=names,
        stored=names,
        scene_bands=names,
        scales=tuple(scale for part in parts for scale in part.scales),
        offsets=tuple(offset for part in parts for offset in part.offsets),
        units=tuple(unit for part in parts for unit in part.units),
        descriptions=tuple(text for part in parts for text in part.descriptions),
        scene_shape=grid.shape,
        window=None,
    )
    if not stack.valid.any():
        raise UserError(f"{name} and the files of its other bands have no pixel that is valid in all of them.")
    return stack


def _onto(part: Raster, grid: Grid, kind: str) -> Raster:
    if part.grid.matches(grid):
        return part
    if not part.georeferenced or grid.crs is None:
        here, there = (" x ".join(map(str, shape)) for shape in (part.shape, grid.shape))
        raise UserError(f"{part.path} has {here} pixels but {grid.name} {there}; without a georeference give one size.")
    return align(part, grid, "sar_linear" if kind == "sar" else "reflectance").raster
