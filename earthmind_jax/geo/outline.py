"""A mask's outline in pixels, short enough to be read in an answer."""

from __future__ import annotations

import numpy as np
from affine import Affine
from rasterio.features import shapes

MOST = 100  # polygons of one mask; the vector files hold all

Polygon = list[list[tuple[float, float]]]
"""Closed rings of (x, y), the outer one first."""


def box_of(mask: np.ndarray) -> tuple[float, float, float, float] | None:
    """x0, y0, x1, y1 of the pixels set in a mask [H W], outer edges; None where none is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def polygons_of(mask: np.ndarray, most: int = MOST) -> list[Polygon]:
    """The largest 4-connected parts of a mask [H W], at most ``most``, as polygons along pixel edges (column, row)."""
    found = [s["coordinates"] for s, _ in shapes(mask.astype(np.uint8), mask=mask.astype(bool), connectivity=4)]
    found.sort(key=lambda rings: -_area(rings[0]))
    return [[[(float(x), float(y)) for x, y in ring] for ring in rings] for rings in found[:most]]


def moved(polygons: list[Polygon], transform: Affine) -> list[Polygon]:
    """Polygons with each position (x, y) taken through ``transform``."""
    return [[[transform @ position for position in ring] for ring in rings] for rings in polygons]


def _area(ring: list[tuple[float, float]]) -> float:
    x, y = np.asarray(ring, float).T
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2)
