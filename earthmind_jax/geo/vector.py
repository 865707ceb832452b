"""Masks as polygons, and back: GeoJSON as RFC 7946 wants it, in WGS84 longitude and latitude.

Outer rings run counter-clockwise, holes clockwise; nothing crosses the antimeridian. Long straight pixel edges get
extra points, since a straight line of the image's CRS is not one in longitude and latitude. Areas are measured in an
equal-area projection, never in degrees.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import (
    EARTH_RADIUS,
    WGS84,
    Grid,
    ground_sample_distance,
    project,
    require_map,
    to_map,
    to_pixel,
)
from earthmind_jax.geo.regions import label_regions
from earthmind_jax.geo.write import written_beside

CHORD_ERROR = 0.02  # pixels that a polygon edge may leave the true line
DECIMALS = 9  # of a degree: 0.1 mm

Ring = np.ndarray  # [n 2] closed


def polygons(
    mask: np.ndarray,
    transform: Affine,
    crs: CRS | str | None,
    *,
    prompt: str = "",
    score: float | None = None,
    model: str = "",
    probability: np.ndarray | None = None,
    min_pixels: int = 1,
    properties: Mapping[str, Any] | None = None,
    name: str = "The image",
) -> dict[str, Any]:
    """One feature for each 8-connected region of a mask [H W] (non-zero, not 255): a GeoJSON FeatureCollection.

    Args:
      score: of every region; where ``probability`` [H W] is given, its mean over the region instead.
      min_pixels: smaller regions are left out.
      properties: further attributes of every feature, beside prompt, score, area_m2 and model.

    Raises:
      UserError: the image has no georeference.
    """
    crs = require_map(transform, crs, name, "a polygon map")
    mask = np.asarray(mask)
    if mask.ndim != 2 or np.issubdtype(mask.dtype, np.floating):
        raise UserError(f"Polygons are made from a mask [H W] of bool or classes, not from {mask.shape} {mask.dtype}.")
    inside = (mask != 0) & (mask != 255) if mask.dtype == np.uint8 else mask.astype(bool)
    label = label_regions(inside)
    count = np.bincount(label.ravel())
    scores = None
    if probability is not None:
        scores = np.bincount(label.ravel(), np.asarray(probability, float).ravel()) / np.maximum(count, 1)
    step, equal_area = _edge_length(transform, crs, mask.shape), _equal_area(transform, crs, mask.shape)
    parts: dict[int, list[list[Ring]]] = {}
    # 4-connected parts of an 8-connected region touch in points only: a valid MultiPolygon, never a ring through itself
    for shape, value in shapes(label, mask=label > 0, connectivity=4):
        if count[int(value)] >= min_pixels:
            rings = [_densify(np.asarray(ring, float), step) for ring in shape["coordinates"]]
            parts.setdefault(int(value), []).append([np.stack(to_map(transform, *ring.T), -1) for ring in rings])
    features = []
    for value in sorted(parts):
        area = sum(_area(crs, equal_area, rings) for rings in parts[value])
        attributes = {
            "prompt": prompt,
            "score": score if scores is None else round(float(scores[value]), 6),
            "area_m2": round(area, 2),
            "model": model,
            **(properties or {}),
        }
        geographic = [
            part
            for rings in parts[value]
            for part in _cut_at_antimeridian([np.stack(project(crs, WGS84, *ring.T), -1) for ring in rings])
        ]
        features.append({"type": "Feature", "properties": attributes, "geometry": _geometry(geographic)})
    return {"type": "FeatureCollection", "features": features}


def rasterise(geojson: Mapping[str, Any], grid: Grid) -> np.ndarray:
    """uint8 [H W]: 1 at the pixels whose centre lies in a polygon of ``geojson`` (WGS84): ``polygons`` backwards."""
    crs = require_map(grid.transform, grid.crs, grid.name, "drawing polygons")
    centre = to_map(grid.transform, np.array([grid.width / 2]), np.array([grid.height / 2]))[0]
    burnt = []
    for rings in _polygons_of(geojson):
        pixels = []
        for ring in rings:
            x, y = project(WGS84, crs, *np.asarray(ring, float)[:, :2].T)
            if crs.is_geographic:  # the grid may count its longitudes beyond 180
                x = x + 360 * np.round((centre - x.mean()) / 360)
            pixels.append(np.stack(to_pixel(grid.transform, x, y), -1).tolist())
        burnt.append(({"type": "Polygon", "coordinates": pixels}, 1))
    if not burnt:
        return np.zeros(grid.shape, np.uint8)
    return rasterize(burnt, out_shape=grid.shape, fill=0, dtype="uint8")


def write_geojson(path: str | os.PathLike[str], collection: Mapping[str, Any]) -> None:
    """Writes a FeatureCollection beside and renames it; WorkError where that fails."""
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(collection, file, ensure_ascii=False)


def _polygons_of(geojson: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    kind = geojson.get("type")
    if kind == "FeatureCollection":
        for feature in geojson["features"]:
            yield from _polygons_of(feature)
    elif kind == "Feature":
        if geojson.get("geometry"):
            yield from _polygons_of(geojson["geometry"])
    elif kind == "GeometryCollection":
        for geometry in geojson["geometries"]:
            yield from _polygons_of(geometry)
    elif kind == "Polygon":
        yield geojson["coordinates"]
    elif kind == "MultiPolygon":
        yield from geojson["coordinates"]
    else:
        raise UserError(f"A mask is drawn from Polygon and MultiPolygon, not from {kind!r}.")


def _edge_length(transform: Affine, crs: CRS, shape: tuple[int, int]) -> float:
    """Pixels of the longest edge that, as a straight line in longitude and latitude, stays within ``CHORD_ERROR``."""
    x, y = to_map(transform, np.array([0, shape[1]]), np.array([0, shape[0]]))
    latitude = np.abs(project(crs, WGS84, x, y)[1]).clip(0, 89).max()
    bend = max(1.0, np.tan(np.radians(latitude)))  # meridians converge: sagitta = length^2 tan(latitude) / 8 R
    return float(
        max(1.0, np.sqrt(8 * EARTH_RADIUS * CHORD_ERROR / (ground_sample_distance(transform, crs, shape) * bend)))
    )


def _densify(ring: Ring, step: float) -> Ring:
    pieces = []
    for start, end in pairwise(ring):
        count = int(np.ceil(np.abs(end - start).max() / step)) or 1
        pieces.append(start + (end - start) * (np.arange(count) / count)[:, None])
    return np.concatenate([*pieces, ring[:1]])


def _equal_area(transform: Affine, crs: CRS, shape: tuple[int, int]) -> CRS:
    """Lambert azimuthal equal-area around the image's centre."""
    x, y = to_map(transform, np.array([shape[1] / 2]), np.array([shape[0] / 2]))
    longitude, latitude = (float(value[0]) for value in project(crs, WGS84, x, y))
    return CRS.from_proj4(f"+proj=laea +lat_0={latitude:.6f} +lon_0={longitude:.6f} +datum=WGS84 +units=m")


def _area(crs: CRS, equal_area: CRS, rings: Iterable[Ring]) -> float:
    """Square metres of one polygon: outer ring minus holes."""
    areas = [abs(_signed_area(np.stack(project(crs, equal_area, *ring.T), -1))) for ring in rings]
    return areas[0] - sum(areas[1:])


def _signed_area(ring: Ring) -> float:
    """Positive where the ring runs counter-clockwise; measured from its first point, to keep digits."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _geometry(parts: Sequence[Sequence[Ring]]) -> dict[str, Any]:
    coordinates = []
    for rings in parts:
        turned = []
        for i, ring in enumerate(rings):
            outer = i == 0
            turned.append((ring if (_signed_area(ring) > 0) == outer else ring[::-1]).round(DECIMALS).tolist())
        coordinates.append(turned)
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _cut_at_antimeridian(rings: Sequence[Ring]) -> Iterator[list[Ring]]:
    """The polygon (outer ring, holes) in pieces with longitudes -180..180; a pole inside gets its own edge."""
    unwrapped = [_unwrap(ring) for ring in rings]
    west, east = unwrapped[0][:, 0].min(), unwrapped[0][:, 0].max()
    if len(unwrapped) > 1:
        for ring in unwrapped[1:]:
            ring[:, 0] += 360 * np.round(((west + east) / 2 - ring[:, 0].mean()) / 360)
    first, last = int(np.floor((west + 180) / 360)), int(np.ceil((east + 180) / 360))
    for turn in range(first, max(last, first + 1)):
        low, high = 360 * turn - 180, 360 * turn + 180
        cut = unwrapped
        if west < low or east > high:
            cut = [_clip(_clip(ring, low, 1), high, -1) for ring in unwrapped]
        if len(cut[0]) >= 4:
            yield [ring - [360 * turn, 0] for ring in cut if len(ring) >= 4]


def _unwrap(ring: Ring) -> Ring:
    """Continuous longitudes; a ring around a pole is closed over it."""
    longitude = np.unwrap(ring[:, 0], period=360)
    out = np.stack([longitude, ring[:, 1]], -1)
    if abs(longitude[-1] - longitude[0]) > 180:
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        out = np.concatenate([out, [[longitude[-1], pole], [longitude[0], pole], out[0]]])
    return out


def _clip(ring: Ring, longitude: float, sign: int) -> Ring:
    """The part of a closed ring east (sign 1) or west (-1) of a meridian (Sutherland and Hodgman 1974)."""
    kept: list[np.ndarray] = []
    for start, end in pairwise(ring):
        before, after = sign * (start[0] - longitude), sign * (end[0] - longitude)
        if before >= 0:
            kept.append(start)
        if (before > 0 > after) or (before < 0 < after):
            kept.append(np.array([longitude, start[1] + (end[1] - start[1]) * before / (before - after)]))
    return np.array([*kept, kept[0]]) if kept else np.zeros((0, 2))
