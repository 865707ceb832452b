"""Images that no transform places on the map: ground control points (raw Sentinel-1 GRD), rational polynomials (RPC,
very-high-resolution level 1). From map to pixel; GDAL does the mathematics.

Neither corrects terrain by itself. How far off such an image may lie is told, never hidden.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioError, TransformError
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import WGS84, Grid, project, require_map
from earthmind_jax.geo.opening import open_raster

HOLD_OUT_FROM = 8  # control points, of which every second then tests a fit to the others
NODES = 33  # along each side, at which the image is placed to find its extent
MOST_GROWTH = 8  # times the pixels of the image that a map grid around it may have
LOWEST, HIGHEST = -1000, 10000  # metres above the ellipsoid, of ground
LEAST_COVERED = 0.5  # of an image by its elevation model; at a coast the sea may have no heights
WORST_RESIDUAL = 50.0  # pixels, root mean square: control points that agree no better place nothing


@dataclass(frozen=True, eq=False)
class Control:
    """The pixels of an image placed by control; ``row_off``, ``column_off``: where a window of it begins; ``row_step``,
    ``column_step``: pixels of the file in one of a decimated look at it.

    ``note`` says what the placing rests on and how good it is.
    """

    crs: CRS
    height: int
    width: int
    name: str
    note: str
    gcps: Sequence[GroundControlPoint] = ()
    rpcs: RPC | None = None
    options: dict[str, Any] = field(default_factory=dict)
    row_off: int = 0
    column_off: int = 0
    row_step: float = 1.0
    column_step: float = 1.0
    turn: int = 0

    def to_pixel(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates (column, row) of map coordinates; NaN where there is none."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        columns, rows = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
        known = np.isfinite(x) & np.isfinite(y)
        if known.any():
            there = _transformer(self.gcps, self.rpcs, self.options)
            with there:
                found = there.rowcol(x[known].tolist(), y[known].tolist(), op=_unrounded)
            rows[known], columns[known] = (np.asarray(value, float) for value in found)
        return (columns - self.column_off) / self.column_step, (rows - self.row_off) / self.row_step

    def part(self, row: int, column: int, height: int, width: int) -> Control:
        """A window of it."""
        return replace(
            self, row_off=self.row_off + row, column_off=self.column_off + column, height=height, width=width
        )

    def decimated(self, height: int, width: int) -> Control:
        """The whole of it in fewer pixels."""
        steps = {"row_step": self.height / height, "column_step": self.width / width}
        return replace(self, height=height, width=width, **steps)

    def extent(self) -> str:
        """What it covers, in words for a message."""
        if self.rpcs is not None:
            half = self.rpcs.long_scale, self.rpcs.lat_scale
            west, east = self.rpcs.long_off - half[0], self.rpcs.long_off + half[0]
            south, north = self.rpcs.lat_off - half[1], self.rpcs.lat_off + half[1]
        else:
            x, y = [point.x for point in self.gcps], [point.y for point in self.gcps]
            west, east, south, north = min(x), max(x), min(y), max(y)
        return f"x {west:.4f} to {east:.4f}, y {south:.4f} to {north:.4f} in {self.crs.to_string()[:60]} by its control"

    @property
    def gsd(self) -> None:
        """Unknown without its grid."""
        return None


def place_of(
    dataset: rasterio.DatasetReader,
    *,
    height: float | None = None,
    dem: str | os.PathLike[str] | None = None,
) -> Grid | Control | None:
    """Where an open raster lies: its grid, else its ground control points, else its RPCs; None without all three.

    Args:
      height: of the ground in metres above the ellipsoid, for RPCs; the middle of their range where None.
      dem: a raster of such heights instead (GDAL's RPC_DEM).

    Raises:
      UserError: control that contradicts itself, or a ``dem`` that cannot be opened.
    """
    size = dataset.height, dataset.width
    if dataset.crs is not None and not dataset.transform.almost_equals(Affine.identity()):
        return Grid(dataset.transform, dataset.crs, *size, dataset.name)
    points, crs = dataset.gcps
    if len(points) >= 3 and crs is not None:
        return Control(crs, *size, dataset.name, _check_points(points, dataset.name), gcps=points)
    if dataset.rpcs is not None:
        options, note = _rpc_options(dataset.rpcs, dataset.name, size, height, dem)
        return Control(WGS84, *size, dataset.name, note, rpcs=dataset.rpcs, options=options)
    return None


def check_ground(
    paths: Sequence[str | os.PathLike[str]], *, height: float | None = None, dem: str | os.PathLike[str] | None = None
) -> None:
    """UserError where a ``height`` or ``dem`` is told that is no height, or that none of the files asks for."""
    if height is None and dem is None:
        return
    if height is not None and not LOWEST <= height <= HIGHEST:
        raise UserError(f"The height of the ground must be {LOWEST} to {HIGHEST} metres, not {height:g}.")
    for path in paths:
        with open_raster(path, labels=True) as dataset:
            place = place_of(dataset, height=height, dem=dem)
        if isinstance(place, Control) and place.rpcs is not None:
            return
    what, files = "dem" if height is None else "height", " and ".join(map(os.fspath, paths))
    raise UserError(f"'{what}' is for an image placed by RPCs, and {files} is not placed by them; leave it out.")


def map_grid(place: Control) -> Grid:
    """A north-up grid in the image's UTM zone (near the poles polar stereographic), with pixels of its own size."""
    columns, rows = np.meshgrid(np.linspace(0, place.width, NODES), np.linspace(0, place.height, NODES))
    with _transformer(place.gcps, place.rpcs, place.options) as there:
        x, y = there.xy(
            (rows.ravel() + place.row_off).tolist(), (columns.ravel() + place.column_off).tolist(), offset="ul"
        )
    longitudes, latitudes = project(place.crs, WGS84, np.asarray(x, float), np.asarray(y, float))
    known = np.isfinite(longitudes) & np.isfinite(latitudes)
    if not known.all():
        raise UserError(f"{place.name}: its control places some of its pixels nowhere; {_REMEDY}.")
    east = np.unwrap(longitudes, period=360)
    crs = _zone(float(east.mean()), float(latitudes.mean()))
    x, y = (value.reshape(columns.shape) for value in project(WGS84, crs, longitudes, latitudes))
    across = np.hypot(np.diff(x, axis=1), np.diff(y, axis=1)) / (place.width / (NODES - 1))
    down = np.hypot(np.diff(x, axis=0), np.diff(y, axis=0)) / (place.height / (NODES - 1))
    size = float(np.sqrt(np.median(across) * np.median(down)))
    if not size > 0:
        raise UserError(f"{place.name}: its control gives its pixels no size; {_REMEDY}.")
    left, top = float(x.min()), float(y.max())
    width, height = (int(np.ceil(np.ptp(value) / size)) for value in (x, y))
    if width * height > MOST_GROWTH * place.width * place.height:
        raise UserError(f"{place.name}: its control spreads it over {height} x {width} pixels; {_REMEDY}.")
    return Grid(Affine(size, 0, left, 0, -size, top), crs, height, width, place.name)


def _zone(longitude: float, latitude: float) -> CRS:
    if latitude > 84 or latitude < -80:
        return CRS.from_epsg(3413 if latitude > 0 else 3031)
    zone = int(((longitude + 180) % 360) // 6) + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def _transformer(
    gcps: Sequence[GroundControlPoint], rpcs: RPC | None, options: dict[str, Any]
) -> GCPTransformer | RPCTransformer:
    if rpcs is not None:
        return RPCTransformer(rpcs, **options)
    return GCPTransformer(gcps, tps=len(gcps) >= HOLD_OUT_FROM)


def _check_points(points: Sequence[GroundControlPoint], name: str) -> str:
    """How well the points agree, in words; UserError where they do not."""
    held_out = len(points) >= HOLD_OUT_FROM
    fitted, tested = (points[::2], points[1::2]) if held_out else (points, points)
    try:
        with GCPTransformer(fitted, tps=held_out and len(fitted) >= HOLD_OUT_FROM) as there:
            found = there.rowcol([p.x for p in tested], [p.y for p in tested], op=_unrounded)
    except (RasterioError, CPLE_BaseError, TransformError, ValueError) as error:
        raise UserError(f"{name}: its ground control points place nothing (all on one line?); {_REMEDY}.") from error
    off = np.hypot(np.subtract(found[0], [p.row for p in tested]), np.subtract(found[1], [p.col for p in tested]))
    residual = float(np.sqrt(np.mean(off**2)))
    if not residual <= WORST_RESIDUAL:
        raise UserError(
            f"{name}: its {len(points)} ground control points contradict each other ({residual:.0f} pixels); {_REMEDY}."
        )
    how = "thin-plate spline, every second point left out and found again" if held_out else "polynomial, residual"
    return (
        f"placed by {len(points)} ground control points ({how} to {residual:.2f} pixels); terrain is not corrected, so "
        "hills are displaced"
    )


def _rpc_options(
    rpcs: RPC, name: str, size: tuple[int, int], height: float | None, dem: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], str]:
    if dem is not None:
        missing = rpcs.height_off if height is None else height
        share = _covered(rpcs, name, size, missing, dem)
        if share < LEAST_COVERED:
            raise UserError(
                f"{os.fspath(dem)} covers {share:.0%} of {name} ({LEAST_COVERED:.0%} is needed); give an elevation "
                "model of the same ground, or a --height in its place."
            )
        options = {"RPC_DEM": os.fspath(dem), "RPC_DEM_MISSING_VALUE": missing}
        part = "" if share == 1 else f", which covers {share:.0%} of it"
        note = f"placed by its RPCs on the elevations of {os.fspath(dem)}{part} ({missing:.0f} m where it has none)"
        return options, note
    chosen = float(rpcs.height_off if height is None else height)
    reason = "the middle of their range" if height is None else "as told"
    return (
        {"RPC_HEIGHT": chosen},
        f"placed by its RPCs at a constant height of {chosen:.0f} m ({reason}): ground higher or lower is displaced; "
        "give an elevation model (dem) for better",
    )


def _covered(rpcs: RPC, name: str, size: tuple[int, int], height: float, dem: str | os.PathLike[str]) -> float:
    """The share of an image that lies within an elevation model."""
    if not os.path.exists(dem):
        raise UserError(f"{os.fspath(dem)} does not exist; give the elevation model of {name}.")
    try:
        with rasterio.open(dem) as dataset:
            model = Grid(dataset.transform, dataset.crs, dataset.height, dataset.width, os.fspath(dem))
    except RasterioError as error:
        raise UserError(f"{os.fspath(dem)} cannot be opened as an elevation model (a raster).") from error
    require_map(model.transform, model.crs, model.name, "an elevation model")
    rows, columns = np.meshgrid(np.linspace(0, size[0], NODES), np.linspace(0, size[1], NODES))
    with RPCTransformer(rpcs, RPC_HEIGHT=float(height)) as there:
        x, y = there.xy(rows.ravel().tolist(), columns.ravel().tolist(), offset="ul")
    column, row = model.to_pixel(*project(WGS84, model.crs, np.asarray(x, float), np.asarray(y, float)))
    inside = (column >= 0) & (row >= 0) & (column <= model.width) & (row <= model.height)
    return float(inside.mean())


_REMEDY = "terrain-correct the product first"


def _unrounded(value: Any) -> Any:
    return value
