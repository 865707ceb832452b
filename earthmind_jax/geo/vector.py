"""Masks as polygons, and back: GeoJSON as RFC 7946 wants it, in WGS84 longitude and latitude, or the image's own CRS.

Outer rings run counter-clockwise, holes clockwise; nothing crosses the antimeridian. Long straight pixel edges get
extra points in WGS84, since a straight line of the image's CRS is not one in longitude and latitude. Areas are measured
in an equal-area projection, never in degrees.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.errors import UserError
from earthmind_jax.geo.antimeridian import geographic, geometry, signed_area
from earthmind_jax.geo.burn import burn
from earthmind_jax.geo.grid import (
    EARTH_RADIUS,
    WGS84,
    Grid,
    full_turn,
    ground_sample_distance,
    project,
    require_map,
    require_on_earth,
    to_map,
    to_pixel,
)
from earthmind_jax.geo.regions import Region, Ring, trace
from earthmind_jax.geo.write import written_beside

CHORD_ERROR = 0.02  # pixels that a polygon edge may leave the true line
SEAM = 1e-6  # pixels
SCORE = "score"


@dataclass(frozen=True, eq=False)
class Polygons:
    """Regions traced once, as features in both coordinate systems.

    Attributes:
      regions: outlines in pixel coordinates of ``grid``.
      attributes: of every feature, beside ``area_m2`` and the means over the region of the layers ``means``.
    """

    regions: Sequence[Region]
    grid: Grid
    attributes: Mapping[str, Any]
    means: tuple[str, ...] = ()

    def features(self) -> list[dict[str, Any]]:
        """Features in the grid's own CRS, their corners exactly the pixels' (for ``geopackage``)."""
        on_map = [
            geometry([[np.stack(to_map(self.grid.transform, *ring.T), -1) for ring in rings] for rings in region.parts])
            for region in self.regions
        ]
        return self._described(on_map)

    def geojson(self) -> dict[str, Any]:
        """A FeatureCollection in WGS84."""
        dense = self._dense
        longitudes, latitudes = project(self.grid.crs, WGS84, *_points(dense))
        if not (np.isfinite(longitudes).all() and np.isfinite(latitudes).all()):
            raise UserError(f"{self.grid.name}: the mask reaches places that are not on Earth in its CRS.")
        placed = _regrouped(np.stack([longitudes, latitudes.clip(-90, 90)], -1), dense)
        return {"type": "FeatureCollection", "features": self._described([geographic(parts) for parts in placed])}

    @cached_property
    def _dense(self) -> list[list[list[Ring]]]:
        """Map coordinates of every ring, with points as close as a curved edge needs."""
        step = _edge_length(self.grid)

        def placed(ring: Ring) -> Ring:
            return np.stack(to_map(self.grid.transform, *_densify(ring, step).T), -1)

        return [[[placed(ring) for ring in rings] for rings in region.parts] for region in self.regions]

    def _described(self, geometries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        features = []
        for region, area, shape in zip(self.regions, self._areas, geometries, strict=True):
            means = {name: round(region.mean(name), 6) for name in self.means}
            attributes = {**self.attributes, **means, "area_m2": round(area, 2)}
            features.append({"type": "Feature", "properties": attributes, "geometry": shape})
        return features

    @cached_property
    def _areas(self) -> list[float]:
        """Square metres of every region."""
        dense = self._dense
        around, whole = _equal_area(self.grid)
        flat = project(self.grid.crs, around, *_points(dense))
        if not np.isfinite(flat).all():  # the other side of the Earth
            flat = project(self.grid.crs, whole, *_points(dense))
        flat = _regrouped(np.stack(flat, -1), dense)
        sizes = ([[abs(signed_area(ring)) for ring in rings] for rings in parts] for parts in flat)
        return [sum(outer - sum(holes) for outer, *holes in rings) for rings in sizes]


def trace_polygons(
    mask: np.ndarray,
    transform: Affine,
    crs: CRS | str | None,
    *,
    prompt: str = "",
    score: float | None = None,
    model: str = "",
    probability: np.ndarray | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
    min_pixels: int = 1,
    properties: Mapping[str, Any] | None = None,
    name: str = "The image",
) -> Polygons:
    """One polygon for each 8-connected region of a mask [H W] (non-zero, not 255).

    Args:
      score: of every region; where ``probability`` [H W] is given, its mean over the region instead.
      layers: further attributes by name, each the mean of an array [H W] over the region (the weight of a sensor).
      min_pixels: smaller regions are left out.
      properties: further attributes of every feature, beside prompt, score, area_m2 and model.

    Raises:
      UserError: the image has no georeference, or none on Earth.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or 0 in mask.shape or np.issubdtype(mask.dtype, np.floating):
        raise UserError(f"Polygons are made from a mask [H W] of bool or classes, not from {mask.shape} {mask.dtype}.")
    grid = Grid(transform, require_map(transform, crs, name, "a polygon map"), *mask.shape, name)
    require_on_earth(grid)
    means = dict(layers or {})
    if probability is not None:
        means = {SCORE: probability, **means}
    for layer, values in means.items():
        if np.shape(values) != mask.shape:
            raise UserError(f"The layer {layer!r} is {np.shape(values)} but the mask is {mask.shape}; give one grid.")
    regions = trace(inside(mask), means, min_pixels)
    return Polygons(regions, grid, described(prompt, score, model, properties), tuple(means))


def polygons(mask: np.ndarray, transform: Affine, crs: CRS | str | None, **options: Any) -> dict[str, Any]:
    """:func:`trace_polygons` as a GeoJSON FeatureCollection in WGS84."""
    return trace_polygons(mask, transform, crs, **options).geojson()


def described(prompt: str, score: float | None, model: str, properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes that every feature of a mask has."""
    return {"prompt": prompt, SCORE: score, "area_m2": None, "model": model, **(properties or {})}


def inside(mask: np.ndarray) -> np.ndarray:
    """bool [H W] of a mask as it is stored: 255 is no image."""
    return (mask != 0) & (mask != 255) if mask.dtype == np.uint8 else mask.astype(bool)


def rasterise(geojson: Mapping[str, Any], grid: Grid) -> np.ndarray:
    """uint8 [H W]: 1 at the pixels whose centre lies in a polygon of ``geojson`` (WGS84): ``polygons`` backwards.

    UserError where it is no GeoJSON of areas in degrees.
    """
    crs = require_map(grid.transform, grid.crs, grid.name, "drawing polygons")
    require_on_earth(grid)
    centre = to_map(grid.transform, np.array([grid.width / 2]), np.array([grid.height / 2]))[0]
    turn = full_turn(crs)
    burnt = []
    for rings in _polygons_of(geojson):
        pixels, cut = [], False
        for ring in rings:
            degrees = _degrees(ring)
            cut |= bool((np.abs(degrees[:, 0]) == 180).any())
            x, y = project(WGS84, crs, *degrees.T)
            if not (np.isfinite(x).any() or pixels):
                break  # far from here
            if not np.isfinite(x).all():
                raise UserError(f"A polygon reaches places that the CRS of {grid.name} cannot show; cut it first.")
            if turn is not None:  # the grid may count its longitudes beyond 180
                x = x + turn * np.round((centre - x.mean()) / turn)
            pixels.append(np.stack(to_pixel(grid.transform, x, y), -1).tolist())
        if pixels:
            shape = shapely.Polygon(pixels[0], pixels[1:])
            # a pixel whose centre lies on the cut along the antimeridian belongs to what was cut
            burnt.append((shapely.buffer(shapely.make_valid(shape), SEAM, quad_segs=1) if cut else shape, 1))
    if not burnt:
        return np.zeros(grid.shape, np.uint8)
    return burn(burnt, grid.shape)


def write_geojson(path: str | os.PathLike[str], collection: Mapping[str, Any]) -> None:
    """Writes a FeatureCollection beside and renames it; WorkError where that fails."""
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(collection, file, ensure_ascii=False)


@contextlib.contextmanager
def geojson_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """Yields ``add(features)``: a FeatureCollection that need not fit into memory. Errors as :func:`write_geojson`."""
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8") as file:
        separator = '{"type": "FeatureCollection", "features": ['

        def add(features: Iterable[Mapping[str, Any]]) -> None:
            nonlocal separator
            for feature in features:
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ", "

        yield add
        file.write(("" if separator == ", " else separator) + "]}")


def _polygons_of(geojson: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    kind = geojson.get("type") if isinstance(geojson, Mapping) else type(geojson).__name__
    inner = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
    try:
        if kind in inner:
            for one in geojson[inner[kind]]:
                yield from _polygons_of(one)
        elif kind == "Feature":
            if geojson["geometry"]:
                yield from _polygons_of(geojson["geometry"])
        elif kind == "Polygon":
            yield geojson["coordinates"]
        elif kind == "MultiPolygon":
            yield from geojson["coordinates"]
        else:
            raise UserError(f"A mask is drawn from Polygon and MultiPolygon, not from {kind!r}.")
    except (KeyError, TypeError) as error:
        raise UserError(f"The GeoJSON is broken: a {kind} lacks what belongs to it ({error}); correct it.") from error


def _degrees(ring: Any) -> Ring:
    """A ring of GeoJSON as longitude and latitude [n 2]; UserError where it is none."""
    try:
        points = np.asarray(ring, float)[:, :2]
    except (ValueError, TypeError, IndexError) as error:
        raise UserError("The GeoJSON is broken: a ring is no list of [longitude, latitude]; correct it.") from error
    if len(points) < 4 or points.shape[1] < 2:
        raise UserError("The GeoJSON is broken: a ring needs at least four points, the last one the first; correct it.")
    if not (np.abs(points) <= [540, 90]).all():
        worst = points[(np.abs(points) > [540, 90]).any(1) | ~np.isfinite(points).all(1)][0]
        raise UserError(
            f"({worst[0]:g}, {worst[1]:g}) is no longitude and latitude; GeoJSON is in degrees of WGS 84 (RFC 7946)."
        )
    return points


def _edge_length(grid: Grid) -> float:
    """Pixels of the longest edge that, as a straight line in longitude and latitude, stays within ``CHORD_ERROR``."""
    columns, rows = np.meshgrid(np.linspace(0, grid.width, 9), np.linspace(0, grid.height, 9))
    latitude = np.abs(project(grid.crs, WGS84, *to_map(grid.transform, columns.ravel(), rows.ravel()))[1])
    gsd = ground_sample_distance(grid.transform, grid.crs, grid.shape)
    between = np.degrees(max(grid.shape) / 16 * gsd / EARTH_RADIUS)  # from a place to the nearest one looked at
    highest = min(float(latitude[np.isfinite(latitude)].max(initial=0)) + between, 89.99)
    bend = max(1.0, np.tan(np.radians(highest)))  # meridians converge: sagitta = length^2 tan(latitude) / 8 R
    return float(max(1.0, np.sqrt(8 * EARTH_RADIUS * CHORD_ERROR / (gsd * bend))))


def _densify(ring: Ring, step: float) -> Ring:
    """The ring with points between, so that no edge is longer than ``step``."""
    edges = np.diff(ring, axis=0)
    counts = np.maximum(np.ceil(np.abs(edges).max(1) / step).astype(int), 1)
    if counts.max() == 1:
        return ring
    first = np.repeat(np.cumsum(counts) - counts, counts)
    share = (np.arange(counts.sum()) - first) / np.repeat(counts, counts)
    between = np.repeat(ring[:-1], counts, axis=0) + np.repeat(edges, counts, axis=0) * share[:, None]
    return np.concatenate([between, ring[:1]])


def _equal_area(grid: Grid) -> list[CRS]:
    """Equal-area projections: Lambert's azimuthal one around the image's centre, a cylindrical one for all of it."""
    middle = to_map(grid.transform, np.array([grid.width / 2]), np.array([grid.height / 2]))
    longitude, latitude = (float(value[0]) for value in project(grid.crs, WGS84, *middle))
    at = f"+lon_0={longitude:.6f} +datum=WGS84 +units=m"
    return [CRS.from_proj4(f"+proj={kind} {at}") for kind in (f"laea +lat_0={latitude:.6f}", "cea")]


def _points(regions: Iterable[Iterable[Iterable[Ring]]]) -> np.ndarray:
    """All points of all rings, [2 n]: to be projected at once."""
    rings = [ring for parts in regions for part in parts for ring in part]
    return np.concatenate(rings).T if rings else np.zeros((2, 0))


def _regrouped(points: np.ndarray, regions: Sequence[Sequence[Sequence[Ring]]]) -> list[list[list[Ring]]]:
    """``points`` [n 2] in the order of :func:`_points`, as rings of parts of regions again."""
    start = 0
    grouped = []
    for parts in regions:
        grouped.append([])
        for rings in parts:
            grouped[-1].append([])
            for ring in rings:
                grouped[-1][-1].append(points[start : start + len(ring)])
                start += len(ring)
    return grouped
