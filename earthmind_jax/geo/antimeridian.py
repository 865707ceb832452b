"""Polygons in longitude and latitude as RFC 7946 wants them: cut at the antimeridian, outer rings counter-clockwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import shapely

Ring = np.ndarray  # [n 2] closed
DECIMALS = 9  # of a degree: 0.1 mm
EXACT = 2.0**36  # steps in a degree: 1.6 micrometres
WORLD = shapely.box(-180, -90, 180, 90)


def signed_area(ring: Ring) -> float:
    """Positive where the ring runs counter-clockwise; measured from its first point, to keep digits."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def geometry(parts: Sequence[Sequence[Ring]], decimals: int | None = None) -> dict[str, Any]:
    """GeoJSON Polygon or MultiPolygon of parts (outer ring, holes): outer rings counter-clockwise, holes clockwise."""
    coordinates = []
    for rings in parts:
        turned = []
        for i, ring in enumerate(rings):
            ring = ring if (signed_area(ring) > 0) == (i == 0) else ring[::-1]
            turned.append((ring if decimals is None else ring.round(decimals)).tolist())
        coordinates.append(turned)
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def geographic(parts: Iterable[Sequence[Ring]]) -> dict[str, Any]:
    """The geometry of parts in degrees, however their longitudes count: within -180..180, in pieces where they cross
    the antimeridian; a pole inside gets its own edge."""
    cut = [piece for rings in parts for piece in cut_at_antimeridian(rings)]
    return geometry(cut, DECIMALS)


def cut_at_antimeridian(rings: Sequence[Ring]) -> list[list[Ring]]:
    """The polygon (outer ring, holes) in pieces with longitudes -180..180."""
    unwrapped = [_unwrap(ring) for ring in rings]
    west, east = unwrapped[0][:, 0].min(), unwrapped[0][:, 0].max()
    turn = 360 * np.floor((west + 180) / 360)
    if east - turn <= 180 and not any(np.ptp(ring[:, 0]) > 180 for ring in unwrapped):
        # holes may have been counted from another turn
        centre = (west + east) / 2
        return [[ring - [turn + 360 * np.round((ring[:, 0].mean() - centre) / 360), 0] for ring in unwrapped]]
    outer, *holes = (shapely.union_all([_shifted(ring, 360 * k) for k in range(-2, 3)]) for ring in unwrapped)
    left = shapely.intersection(shapely.difference(outer, shapely.union_all(holes)), WORLD)
    pieces = [part for part in shapely.get_parts(left) if part.geom_type == "Polygon" and part.area > 0]
    return [[np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)] for part in pieces]


def bounding_box(shape: dict[str, Any]) -> list[float]:
    """[west, south, east, north] of a geometry of :func:`geographic`; west > east where it crosses the antimeridian."""
    polygons = [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]
    spans = [np.asarray(polygon[0]) for polygon in polygons]
    south, north = min(s[:, 1].min() for s in spans), max(s[:, 1].max() for s in spans)
    west, east = min(s[:, 0].min() for s in spans), max(s[:, 0].max() for s in spans)
    if west == -180 and east == 180:
        eastern = [s for s in spans if s[:, 0].max() == 180]
        western = [s for s in spans if s[:, 0].min() == -180]
        if not any(np.ptp(s[:, 0]) == 360 for s in spans):
            first, last = min(s[:, 0].min() for s in eastern), max(s[:, 0].max() for s in western)
            west, east = (first, last) if first > last else (west, east)  # unless both meet: all the way round
    return [round(float(value), DECIMALS) for value in (west, south, east, north)]


def _shifted(ring: Ring, degrees: float) -> shapely.Geometry:
    return shapely.make_valid(shapely.Polygon(ring + np.array([degrees, 0])))


def _unwrap(ring: Ring) -> Ring:
    """Continuous longitudes; a ring around a pole is closed over it."""
    # in steps of a power of two, so that whole turns are added without rounding and copies fit together
    longitude = np.round(np.unwrap(ring[:, 0], period=360) * EXACT) / EXACT
    out = np.stack([longitude, ring[:, 1]], -1)
    if abs(longitude[-1] - longitude[0]) > 180:
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        out = np.concatenate([out, [[longitude[-1], pole], [longitude[0], pole], out[0]]])
    return out
