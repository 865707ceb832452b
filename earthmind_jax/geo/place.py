"""A part of an image, named in pixels or on the map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import Grid, known_crs, project, require_map, to_pixel

Window = tuple[int, int, int, int]
"""First row, first column, rows and columns, in pixels."""


def window_of(place: Sequence[float], shape: tuple[int, int]) -> Window:
    """Row, column, height and width, checked against an image of ``shape``.

    Raises:
      UserError: not four whole numbers, or not inside the image.
    """
    numbers = _numbers(place)
    if numbers is None or any(v != int(v) for v in numbers):
        raise UserError(f"A window is four whole numbers, row column height width, not {_shown(place)}.")
    row, column, height, width = (int(v) for v in numbers)
    inside = row >= 0 and column >= 0 and row + height <= shape[0] and column + width <= shape[1]
    if height < 1 or width < 1 or not inside:
        raise UserError(
            f"The window of {height} x {width} pixels at row {row}, column {column} is not inside the image of "
            f"{shape[0]} x {shape[1]} pixels."
        )
    return row, column, height, width


def window_of_box(box: Sequence[float], crs: CRS | str, grid: Grid) -> Window:
    """The pixels of ``grid`` that a box (west, south, east, north) in ``crs`` touches, cut at the grid's edge.

    Raises:
      UserError: no box, an unknown CRS, a grid without georeference, or a box outside it.
    """
    numbers = _numbers(box)
    if numbers is None or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise UserError(f"A box is west south east north, each below its opposite, not {_shown(box)}.")
    there = require_map(grid.transform, grid.crs, grid.name, "a box in map coordinates")
    source = known_crs(crs, "the box")
    west, south, east, north = numbers
    # Straight edges of the box bend on another map.
    outline = Grid(Affine(east - west, 0, west, 0, south - north, north), source, 1, 1).outline()
    columns, rows = to_pixel(grid.transform, *project(source, there, *outline))
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        raise UserError(f"The box {_shown(box)} has no place on the image's map; check its coordinate system, {crs}.")
    exact = 1e-6  # pixels: a box along pixel edges touches no further pixel
    top, left = max(0, int(np.floor(rows.min() + exact))), max(0, int(np.floor(columns.min() + exact)))
    bottom = min(grid.height, int(np.ceil(rows.max() - exact)))
    right = min(grid.width, int(np.ceil(columns.max() - exact)))
    if top >= bottom or left >= right:
        raise UserError(f"The box {_shown(box)} in {crs} is not on the image, which covers {grid.extent()}.")
    return top, left, bottom - top, right - left


def _numbers(values: Sequence[float]) -> list[float] | None:
    """Four finite numbers, or None."""
    real = [float(v) for v in values if isinstance(v, int | float | np.number) and not isinstance(v, bool)]
    return real if len(real) == len(values) == 4 and np.isfinite(real).all() else None


def _shown(values: Sequence[float]) -> str:
    return " ".join(map(str, values))
