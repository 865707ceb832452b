"""Prompts from GeoJSON, or from any other vector file that GDAL reads.

GeoJSON is in longitude and latitude (RFC 7946: WGS84), unless it names another CRS in the ``crs`` member of the 2008
form, or the caller says what it is in. Of a feature's properties ``name`` (parts of one name are one object), ``label``
(1 or "object", 0 or "background") and ``box`` (true: the bounds of the polygon are meant) are read. Heights are
dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import known_crs
from earthmind_jax.geo.marks import MOST_OBJECTS, MOST_POINTS
from earthmind_jax.geo.prompts import KINDS, Prompt

PIXELS = "pixels"
MOST_BYTES = 64 * 2**20
LABELS = {"object": 1, "background": 0, "foreground": 1}
GEOJSON = (".geojson", ".json")
OTHER_FILES = (".gpkg", ".fgb", ".shp", ".kml", ".gml")


def read_prompts(path: str | Path, crs: str | None = None) -> tuple[Prompt, ...]:
    """The prompts of a vector file.

    Args:
      crs: what the coordinates are in, "pixels" for (column, row); None: what the file says, for GeoJSON that says
        nothing longitude and latitude.

    Raises:
      UserError: naming the file, the feature and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no prompt file '{path}'.")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"The prompt file '{path}' is larger than {MOST_BYTES // 2**20} MB; keep what you point at.")
    if path.suffix.lower() in OTHER_FILES:
        return _read_other(path, crs)
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"The prompt file '{path}' cannot be read: {error}.") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"'{path}' is no GeoJSON: it is no JSON text; give GeoJSON or GeoPackage.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is no GeoJSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    return parse_prompts(values, crs, f"'{path}'")


def parse_prompts(geojson: Any, crs: str | None = None, where: str = "the GeoJSON") -> tuple[Prompt, ...]:
    """The prompts of a GeoJSON object; arguments and errors as of :func:`read_prompts`."""
    if not isinstance(geojson, Mapping):
        raise UserError(f"{where} is no GeoJSON: it must be an object with a 'type', not {_shown(geojson)}.")
    found = _agreed(crs, _named_crs(geojson, where), where)
    features = list(_features(geojson, where))
    if not features:
        raise UserError(f"{where} has no features; there is nothing to point at.")
    prompts: list[Prompt] = []
    for number, feature in enumerate(features, 1):
        name = f"feature {number} of {where}" if geojson.get("type") == "FeatureCollection" else where
        prompts += _of_feature(feature, None if found == PIXELS else found or "OGC:CRS84", name)
        if len(prompts) > MOST_OBJECTS * MOST_POINTS:
            raise UserError(f"{where} has too many parts to point at; {MOST_OBJECTS} objects are the most.")
    return tuple(prompts)


def _read_other(path: Path, crs: str | None) -> tuple[Prompt, ...]:
    import pyogrio

    try:
        # Tables without geometry, such as the styles that QGIS keeps, are no layers to choose from.
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(layers) > 1:
            raise UserError(
                f"'{path}' holds {len(layers)} layers ({', '.join(layers[:5])}), and which is meant is not said; give "
                f"a file of one (ogr2ogr one.gpkg {path} {layers[0]})."
            )
        meta, _, shapes, columns = pyogrio.raw.read(path, layer=layers[0] if layers else None)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as vector data ({error}).") from error
    given = _agreed(crs, meta["crs"], f"'{path}'")
    if given is None:
        raise UserError(f"'{path}' does not say its coordinate reference system; say which it is (--prompt-crs).")
    if shapes is None or not len(shapes):
        raise UserError(f"'{path}' has no features; there is nothing to point at.")
    fields = {name.lower(): values for name, values in zip(meta["fields"], columns, strict=True)}
    prompts: list[Prompt] = []
    for i, encoded in enumerate(shapes):
        where = f"feature {i + 1} of '{path}'"
        if encoded is None:
            raise UserError(f"{where} has no geometry.")
        own = {key: _plain(values[i]) for key, values in fields.items() if key in ("name", "label", "box")}
        geometry = shapely.force_2d(shapely.from_wkb(encoded))
        prompts.append(_prompt(geometry, own, None if given == PIXELS else given, where))
    return tuple(prompts)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _agreed(told: str | None, written: str | None, where: str) -> str | None:
    """The CRS of a file, from what the caller and the file say."""
    for crs in (told, written):
        if crs is not None and crs != PIXELS:
            known_crs(crs, where)
    if told and written and (told == PIXELS or CRS.from_user_input(told) != CRS.from_user_input(written)):
        raise UserError(f"{where} is in {written} as it says itself, not in {told}; leave one of the two out.")
    return told or written


def _named_crs(geojson: Mapping[str, Any], where: str) -> str | None:
    """The ``crs`` member of GeoJSON 2008."""
    crs = geojson.get("crs")
    if crs is None:
        return None
    name = crs.get("properties", {}).get("name") if isinstance(crs, Mapping) and crs.get("type") == "name" else None
    if not isinstance(name, str):
        raise UserError(
            f'{where} has a \'crs\' without a name; write {{"type": "name", "properties": {{"name": "EPSG:..."}}}}.'
        )
    return name


def _features(geojson: Mapping[str, Any], where: str) -> Iterator[Mapping[str, Any]]:
    kind = geojson.get("type")
    if kind == "FeatureCollection":
        features = geojson.get("features")
        if not isinstance(features, list):
            raise UserError(f"{where} is a FeatureCollection whose 'features' is no list.")
        for number, feature in enumerate(features, 1):
            if not isinstance(feature, Mapping) or feature.get("type") != "Feature":
                raise UserError(f"feature {number} of {where} is no GeoJSON Feature but {_shown(feature)}.")
            yield feature
    elif kind == "Feature":
        yield geojson
    elif kind in (*KINDS, "GeometryCollection"):
        yield {"geometry": geojson}
    else:
        raise UserError(f"{where} is no GeoJSON: its 'type' is {_shown(kind)}; FeatureCollection is usual.")


def _of_feature(feature: Mapping[str, Any], crs: str | None, where: str) -> Iterator[Prompt]:
    properties = feature.get("properties") or {}
    if not isinstance(properties, Mapping):
        raise UserError(f"{where} has properties that are no object but {_shown(properties)}.")
    geometry = feature.get("geometry")
    if not isinstance(geometry, Mapping):
        raise UserError(f"{where} has no geometry.")
    parts = [geometry]
    if geometry.get("type") == "GeometryCollection":
        parts = geometry.get("geometries")
        if not isinstance(parts, list) or not parts or not all(isinstance(p, Mapping) for p in parts):
            raise UserError(f"{where} is a GeometryCollection without geometries.")
    for part in parts:
        yield _prompt(_geometry(part, where), properties, crs, where)


def _prompt(geometry: BaseGeometry, properties: Mapping[str, Any], crs: str | None, where: str) -> Prompt:
    label, name, box = properties.get("label"), properties.get("name"), properties.get("box")
    if label is None:
        label = 1
    elif isinstance(label, str) and label.lower() in LABELS:
        label = LABELS[label.lower()]
    if isinstance(label, bool) or label not in (0, 1):
        raise UserError(f"{where} has the label {_shown(label)}; give 1 (object) or 0 (background).")
    if not (name is None or isinstance(name, str | int)) or isinstance(name, bool):
        raise UserError(f"{where} has the name {_shown(name)}; a name is text.")
    if not (box is None or isinstance(box, bool | int)) or (box and "Polygon" not in geometry.geom_type):
        raise UserError(f"{where} has 'box': {_shown(box)}; it is true or false, and of polygons.")
    name = "" if name is None else str(name).strip()
    return Prompt(geometry=geometry, label=int(label), name=name, box=bool(box), crs=crs, where=where)


def _geometry(values: Mapping[str, Any], where: str) -> BaseGeometry:
    kind, coordinates = values.get("type"), values.get("coordinates")
    if kind not in KINDS:
        raise UserError(f"{where} has a geometry of the type {_shown(kind)}; point with {', '.join(KINDS)}.")
    what = f"{where} ({kind})"
    if kind == "Point":
        return shapely.Point(_position(coordinates, what))
    if kind in ("MultiPoint", "LineString"):
        line = _line(coordinates, 1 if kind == "MultiPoint" else 2, what)
        return shapely.MultiPoint(line) if kind == "MultiPoint" else shapely.LineString(line)
    if kind == "MultiLineString":
        return shapely.MultiLineString([_line(part, 2, what) for part in _list(coordinates, what)])
    if kind == "Polygon":
        return _polygon(coordinates, what)
    return shapely.MultiPolygon([_polygon(part, what) for part in _list(coordinates, what)])


def _polygon(rings: Any, where: str) -> BaseGeometry:
    made = []
    for number, ring in enumerate(_list(rings, where), 1):
        line = _line(ring, 4, f"{where}, ring {number},")
        if line[0] != line[-1]:
            raise UserError(f"{where}: ring {number} is not closed; repeat its first position at the end.")
        made.append(line)
    return shapely.Polygon(made[0], made[1:])


def _list(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} has no coordinates where a list of them is needed, but {_shown(values)}.")
    return values


def _line(values: Any, least: int, where: str) -> list[tuple[float, float]]:
    positions = [_position(position, where) for position in _list(values, where)]
    if len(positions) < least:
        raise UserError(f"{where} has {len(positions)} positions but needs at least {least}.")
    return positions


def _position(value: Any, where: str) -> tuple[float, float]:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) not in (2, 3):
        raise UserError(f"{where} has the position {_shown(value)}; a position is two numbers, x and y (and a height).")
    if not np.isfinite(np.asarray(value, float)).all():
        raise UserError(f"{where} has a coordinate that is not a finite number: {_shown(value)}.")
    return float(value[0]), float(value[1])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
