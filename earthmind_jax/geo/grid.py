"""Where pixels lie: a grid is a transform, a coordinate reference system and a size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as transform_points

from earthmind_jax.errors import UserError

WGS84 = CRS.from_epsg(4326)
EARTH_RADIUS = 6371008.8  # metres, mean
WEB_MERCATOR_TURN = 2 * np.pi * 6378137.0  # metres around the world


@dataclass(frozen=True)
class Grid:
    """Rows and columns on a map; ``name`` is what messages call it."""

    transform: Affine
    crs: CRS | None
    height: int
    width: int
    name: str = "the image"

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def gsd(self) -> float | None:
        """Ground sample distance in metres at the centre; None where the grid has no CRS."""
        return None if self.crs is None else ground_sample_distance(self.transform, self.crs, self.shape)

    def part(self, row: int, column: int, height: int, width: int) -> Grid:
        """The grid of a window of this one; it may reach beyond the edge."""
        return replace(self, transform=self.transform @ Affine.translation(column, row), height=height, width=width)

    def finer(self, rows: int, columns: int) -> Grid:
        """The same ground with every pixel split into ``rows`` x ``columns``."""
        transform = self.transform @ Affine.scale(1 / columns, 1 / rows)
        return replace(self, transform=transform, height=self.height * rows, width=self.width * columns)

    def to_pixel(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (column, row) of map coordinates; where the map is the whole way around the world, those
        nearest to the grid's centre: longitudes may count from -180, from 0, or across the antimeridian."""
        turn = full_turn(self.crs)
        if turn is not None:
            x, y = np.asarray(x, float), np.asarray(y, float)
            middle = to_map(self.transform, np.array(self.width / 2), np.array(self.height / 2))[0]
            with np.errstate(invalid="ignore"):
                x = x + turn * np.round((middle - x) / turn)
        return to_pixel(self.transform, x, y)

    @property
    def turn(self) -> int:
        """Columns of a full turn where the grid runs around the whole world, else 0: its edges are neighbours."""
        turn = full_turn(self.crs)
        if turn is None or self.transform.b or self.transform.d:
            return 0
        columns = turn / abs(self.transform.a)
        return self.width if abs(columns - self.width) < 0.01 else 0

    def decimated(self, most: int) -> Grid:
        """The same ground in at most ``most`` rows and columns."""
        height, width = (min(side, most) for side in self.shape)
        transform = self.transform @ Affine.scale(self.width / width, self.height / height)
        return replace(self, transform=transform, height=height, width=width)

    def outline(self, per_side: int = 33) -> tuple[np.ndarray, np.ndarray]:
        """Map coordinates (x, y) of points along the outer edge."""
        step = np.linspace(0, 1, per_side)
        columns = np.concatenate([step, np.ones(per_side), step[::-1], np.zeros(per_side)]) * self.width
        rows = np.concatenate([np.zeros(per_side), step, np.ones(per_side), step[::-1]]) * self.height
        return to_map(self.transform, columns, rows)

    def extent(self) -> str:
        """What it covers, in words for a message."""
        if self.crs is None:
            return f"{self.height} x {self.width} pixels without a georeference"
        try:
            longitudes, latitudes = project(self.crs, WGS84, *self.outline())
        except CRSError:
            longitudes = latitudes = np.array([np.inf])
        if not (np.isfinite(longitudes).all() and np.isfinite(latitudes).all()):
            x, y = self.outline()
            return f"x {x.min():.0f} to {x.max():.0f}, y {y.min():.0f} to {y.max():.0f} in {self.crs.to_string()}"
        longitudes = np.unwrap(longitudes, period=360)
        west, east, south, north = longitudes.min(), longitudes.max(), latitudes.min(), latitudes.max()
        return f"longitude {west:.4f} to {east:.4f}, latitude {south:.4f} to {north:.4f}"

    def matches(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Same CRS and size, and every corner within ``tolerance`` pixels: nothing needs resampling."""
        if self.crs != other.crs or self.shape != other.shape:
            return False
        columns, rows = np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height])
        there = to_pixel(self.transform, *to_map(other.transform, columns, rows))
        return bool(np.abs(np.stack(there) - np.stack([columns, rows])).max() <= tolerance)


def full_turn(crs: CRS | None) -> float | None:
    """How far x runs once around the world, where the CRS is one whose x does: degrees, or Web Mercator."""
    if crs is None:
        return None
    if crs.is_geographic:
        return 2 * np.pi / crs.units_factor[1]
    return WEB_MERCATOR_TURN if crs.to_epsg() == 3857 else None


def to_map(transform: Affine, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates (x, y) of pixel coordinates; (0, 0) is the outer corner of the first pixel."""
    t = transform
    return t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f


def to_pixel(transform: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (column, row) of map coordinates."""
    t = transform
    x, y = np.asarray(x) - t.c, np.asarray(y) - t.f  # before the division: large offsets would cost digits
    determinant = t.a * t.e - t.b * t.d
    return (t.e * x - t.b * y) / determinant, (t.a * y - t.d * x) / determinant


def project(source: CRS, target: CRS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of points [n] in another CRS; infinite where there is none."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    try:
        there = transform_points(source, target, x, y)
    except CPLE_BaseError:  # one point without a place fails them all: look for it
        if x.size <= 1:
            return np.full(x.shape, np.inf), np.full(x.shape, np.inf)
        halves = [
            project(source, target, *part) for part in zip(np.array_split(x, 2), np.array_split(y, 2), strict=True)
        ]
        return np.concatenate([half[0] for half in halves]), np.concatenate([half[1] for half in halves])
    return np.asarray(there[0], float), np.asarray(there[1], float)


def ground_sample_distance(transform: Affine, crs: CRS, shape: tuple[int, int]) -> float:
    """Metres per pixel at the grid's centre, geometric mean of both directions, measured on the ground: degrees, feet
    and the stretch of Web Mercator are accounted for."""
    columns = shape[1] / 2 + np.array([-0.5, 0.5, 0, 0])
    rows = shape[0] / 2 + np.array([0, 0, -0.5, 0.5])
    lon, lat = np.radians(project(crs, WGS84, *to_map(transform, columns, rows)))
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)
    steps = np.linalg.norm(unit[[1, 3]] - unit[[0, 2]], axis=-1) * EARTH_RADIUS
    return float(np.sqrt(np.prod(steps)))


def known_crs(crs: CRS | str, where: str) -> CRS:
    """``crs`` as a CRS; UserError naming ``where`` it stands if it is none."""
    try:
        with rasterio.Env():  # without which PROJ writes a line of its own to standard error
            return CRS.from_user_input(crs)
    except CRSError as error:
        raise UserError(f"{where}: {crs!r} is no known coordinate reference system.") from error


def require_map(transform: Affine, crs: CRS | str | None, name: str, purpose: str) -> CRS:
    """``crs`` as a CRS; UserError where the image has no place on Earth."""
    if crs is None or not crs or transform.almost_equals(Affine.identity()):
        raise UserError(
            f"{name} has no georeference (CRS and transform); {purpose} needs one: give a GeoTIFF that has it."
        )
    if not np.isfinite(transform[:6]).all() or transform.determinant == 0:
        raise UserError(f"{name}: its transform {tuple(transform[:6])} gives pixels no size; correct the georeference.")
    known = known_crs(crs, name)
    if not (known.is_geographic or known.is_projected):
        raise UserError(
            f"{name}: its CRS {known.to_string()[:60]} is no map of the Earth; use a geographic or projected one."
        )
    return known


def require_on_earth(grid: Grid) -> None:
    """UserError where the middle of a grid is no place on Earth (coordinates out of range, or of another CRS)."""
    x, y = to_map(grid.transform, np.array([grid.width / 2]), np.array([grid.height / 2]))
    try:
        longitude, latitude = (float(value[0]) for value in project(grid.crs, WGS84, x, y))
    except CRSError:
        longitude = latitude = np.inf
    if not (np.isfinite(longitude) and abs(longitude) <= 540 and abs(latitude) <= 90):
        raise UserError(
            f"{grid.name}: its centre, x {x[0]:.6g}, y {y[0]:.6g}, is no place on Earth in its CRS "
            f"{grid.crs.to_string()[:60]}; correct its transform or its CRS."
        )
