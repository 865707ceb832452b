"""Geometries of any CRS in the pixels of a grid: edges that are straight there are seldom straight here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from shapely.geometry.base import BaseGeometry

from earthmind_jax.geo.grid import WGS84, Grid, project, to_pixel

BEND = 0.05  # pixels that an edge may leave the true line
MOST_HALVINGS = 14
MOST_CORNERS = 200_000


class Misplaced(ValueError):
    """The geometry has no place on the grid, or is none."""


def to_pixels(geometry: BaseGeometry, crs: CRS, grid: Grid) -> tuple[BaseGeometry, bool]:
    """A geometry in ``crs`` as (column, row) of a grid that has a CRS, as far as it lies near the grid (empty where
    nothing does), and whether that is all of it.

    Edges are halved until they stay within a twentieth of a pixel of the true line. Of longitudes the turn that meets
    the grid is taken, and an edge of more than 180 degrees goes the short way round, across the antimeridian. Heights
    are dropped.

    Raises:
      Misplaced: coordinates that its CRS does not have, or a polygon that crosses itself.
    """
    geometry = shapely.force_2d(geometry)
    assert grid.crs is not None
    target = grid.crs
    if crs.is_geographic:
        _check_degrees(geometry)
        geometry = _unwrapped(geometry)
    check_valid(geometry)
    near = _near(crs, grid)

    def place(positions: np.ndarray) -> np.ndarray:
        x, y = _projected(crs, target, *positions.T)
        if target.is_geographic:  # the grid may count its longitudes beyond 180
            centre = grid.transform @ (grid.width / 2, grid.height / 2)
            x = x + 360 * np.round((centre[0] - x) / 360)
        return np.stack(to_pixel(grid.transform, x, y), -1)

    parts, left = [], 0.0
    for turn in (-360.0, 0.0, 360.0) if crs.is_geographic else (0.0,):
        moved = shapely.transform(geometry, lambda positions, turn=turn: positions + np.array([turn, 0.0]))
        kept = moved if near is None else shapely.intersection(moved, near)
        if kept.is_empty:
            continue
        left += _size(kept)
        parts += [_bent(part, place) for part in shapely.get_parts(kept)]
    whole = left > 0.999 * _size(geometry)
    if not parts:
        return type(geometry)(), False
    if "Point" in geometry.geom_type:
        positions = np.concatenate([shapely.get_coordinates(p) for p in parts])
        return shapely.MultiPoint(np.unique(positions, axis=0)), whole
    if "Line" in geometry.geom_type:
        return shapely.MultiLineString([p for p in parts if p.geom_type == "LineString"]), whole
    return shapely.union_all([shapely.make_valid(p) for p in parts if p.geom_type == "Polygon"]), whole


def check_valid(geometry: BaseGeometry) -> None:
    """Raises :class:`Misplaced` where a polygon crosses itself; which part of it is meant is not guessed."""
    if "Polygon" in geometry.geom_type and not geometry.is_valid:
        raise Misplaced(f"is no valid polygon ({shapely.is_valid_reason(geometry)}); it is not repaired: redraw it.")


def _projected(source: CRS, target: CRS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`project`, infinite where GDAL refuses the whole lot for one point outside the projection's domain."""
    try:
        return project(source, target, x, y)
    except (CRSError, CPLE_BaseError):
        return np.full(len(x), np.inf), np.full(len(x), np.inf)


def _size(geometry: BaseGeometry) -> float:
    if "Point" in geometry.geom_type:
        return float(shapely.get_num_coordinates(geometry))
    return float(geometry.area if "Polygon" in geometry.geom_type else geometry.length)


def _check_degrees(geometry: BaseGeometry) -> None:
    longitude, latitude = shapely.get_coordinates(geometry).T
    if np.abs(latitude).max() > 90 or np.abs(longitude).max() > 540:
        worst = int(np.argmax(np.maximum(np.abs(latitude) - 90, np.abs(longitude) - 540)))
        raise Misplaced(
            f"has the longitude {longitude[worst]:g} and latitude {latitude[worst]:g}, which are no degrees: say which "
            "CRS it is in, or that it is in pixels."
        )


def _unwrapped(geometry: BaseGeometry) -> BaseGeometry:
    """Lines and rings whose longitudes jump by more than 180 degrees (less than a whole turn), continued instead."""

    def unwrap(positions: np.ndarray) -> np.ndarray:
        steps = np.abs(np.diff(positions[:, 0]))
        if not ((steps > 180) & (steps < 360)).any():
            return positions
        return np.stack([np.unwrap(positions[:, 0], period=360), positions[:, 1]], -1)

    if "Line" in geometry.geom_type:
        lines = [shapely.LineString(unwrap(shapely.get_coordinates(p))) for p in shapely.get_parts(geometry)]
        return shapely.MultiLineString(lines)
    if "Polygon" in geometry.geom_type:
        made = []
        for part in shapely.get_parts(geometry):
            outer = unwrap(shapely.get_coordinates(part.exterior))
            middle = outer[:, 0].mean()
            holes = [unwrap(shapely.get_coordinates(hole)) for hole in part.interiors]
            for hole in holes:
                hole[:, 0] += 360 * np.round((middle - hole[:, 0].mean()) / 360)
            made.append(shapely.Polygon(outer, holes))
        return shapely.MultiPolygon(made)
    return geometry


def _near(crs: CRS, grid: Grid) -> BaseGeometry | None:
    """The surroundings of the grid in another CRS, as wide again on each side; None where they cannot be told."""
    assert grid.crs is not None
    x, y = _projected(grid.crs, crs, *grid.outline())
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    if crs.is_geographic:
        x = np.unwrap(x, period=360)
    if pole := _pole_inside(grid):
        # All longitudes meet here, so only a parallel bounds the grid.
        if not crs.is_geographic:
            return None
        return shapely.box(-180, y.min(), 180, 90) if pole > 0 else shapely.box(-180, -90, 180, y.max())
    width, height = np.ptp(x), np.ptp(y)
    low, high = y.min() - height, y.max() + height
    if crs.is_geographic:
        low, high = max(low, -90.0), min(high, 90.0)
    return shapely.box(x.min() - width, low, x.max() + width, high)


def _pole_inside(grid: Grid) -> int:
    """1 or -1 where the north or south pole lies on the grid, else 0."""
    assert grid.crs is not None
    if grid.crs.is_geographic:
        return 0
    for pole in (1, -1):
        x, y = _projected(WGS84, grid.crs, np.zeros(1), np.array([90.0 * pole]))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            continue
        column, row = (float(v[0]) for v in to_pixel(grid.transform, x, y))
        if 0 <= column <= grid.width and 0 <= row <= grid.height:
            return pole
    return 0


def _bent(geometry: BaseGeometry, place: Callable[[np.ndarray], np.ndarray]) -> BaseGeometry:
    """A point, line or polygon with ``place`` applied to its corners and, where edges bend, to points between them."""
    if geometry.geom_type == "Point":
        return shapely.Point(_finite(place(shapely.get_coordinates(geometry)))[0])
    if geometry.geom_type == "Polygon":
        rings = [_bent_line(shapely.get_coordinates(r), place) for r in (geometry.exterior, *geometry.interiors)]
        return shapely.Polygon(rings[0], rings[1:])
    return shapely.LineString(_bent_line(shapely.get_coordinates(geometry), place))


def _bent_line(corners: np.ndarray, place: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    # Thirds first: an edge that bends both ways passes its own middle.
    steps = np.arange(3)[:, None] / 3
    pieces = [start + (end - start) * steps for start, end in pairwise(corners)]
    given = np.concatenate([*pieces, corners[-1:]])
    pixels = _finite(place(given))
    for _ in range(MOST_HALVINGS):
        middle = (given[:-1] + given[1:]) / 2
        placed = _finite(place(middle))
        bends = np.linalg.norm(placed - (pixels[:-1] + pixels[1:]) / 2, axis=-1) > BEND
        if not bends.any() or len(given) > MOST_CORNERS:
            break
        where = np.flatnonzero(bends) + 1
        given, pixels = np.insert(given, where, middle[bends], axis=0), np.insert(pixels, where, placed[bends], axis=0)
    return pixels


def _finite(pixels: np.ndarray) -> np.ndarray:
    if not np.isfinite(pixels).all():
        raise Misplaced("reaches where the image's CRS has no coordinates; draw it near the image.")
    return pixels
