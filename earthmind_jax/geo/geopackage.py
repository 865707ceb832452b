"""Features as a GeoPackage, in the CRS of the scene: what a GIS edits without reprojecting."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from rasterio.crs import CRS
from rasterio.errors import CRSError

from earthmind_jax.errors import UserError
from earthmind_jax.geo.write import written_beside

BATCH = 2000  # features written at once
DTYPES = {bool: "bool", int: "int64", float: "float64"}


def write_geopackage(
    path: str | os.PathLike[str],
    features: Iterable[Mapping[str, Any]],
    crs: CRS | str,
    layer: str = "masks",
) -> None:
    """Writes GeoJSON-like features, whose coordinates are of ``crs``, as one layer of a GeoPackage (OGC 12-128).

    Geometries are MultiPolygons. Attributes: those of the features' properties, which all have the same names; a value
    of None is null. Nothing is left behind on failure, and an older file is replaced as a whole.

    Raises:
      UserError: an unknown CRS, a bad layer name, or features with different attributes.
      WorkError: the writing failed.
    """
    with geopackage_writer(path, crs, layer) as add:
        add(features)


@contextlib.contextmanager
def geopackage_writer(
    path: str | os.PathLike[str], crs: CRS | str, layer: str = "masks"
) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """Yields ``add(features)``: a layer that need not fit into memory. See :func:`write_geopackage`."""
    try:
        known = CRS.from_user_input(crs)
    except CRSError as error:
        raise UserError(f"{os.fspath(path)}: {crs!r} is no known coordinate reference system.") from error
    if not layer or '"' in layer or layer.startswith(("gpkg_", "sqlite_", "rtree_")):
        raise UserError(f"{os.fspath(path)}: {layer!r} cannot be the name of a layer; use letters and digits.")
    with written_beside(path) as beside:
        columns: dict[str, str] = {}
        waiting: list[Mapping[str, Any]] = []
        written = 0

        def flush(last: bool = False) -> None:
            nonlocal written
            if waiting or (last and not written):
                _write(beside, waiting, known, layer, columns, append=written > 0)
                written += len(waiting)
                waiting.clear()

        def add(features: Iterable[Mapping[str, Any]]) -> None:
            for feature in features:
                names = {**feature.get("properties", {})}
                if not (waiting or written):
                    columns.update(dict.fromkeys(names, ""))
                if set(names) != set(columns):
                    odd = ", ".join(sorted(set(names) ^ set(columns)))
                    raise UserError(
                        f"{os.fspath(path)}: features of one layer need equal attributes; not all have {odd}."
                    )
                waiting.append(feature)
                if len(waiting) >= BATCH:
                    flush()

        yield add
        flush(last=True)
        _check(beside, layer, written)


def _write(
    path: str, features: list[Mapping[str, Any]], crs: CRS, layer: str, columns: dict[str, str], append: bool
) -> None:
    """Appends to, or begins, the layer; OSError where GDAL cannot. ``columns`` gets the types at the first time."""
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in features]
    values, masks = [], []
    for name in columns:
        column = [feature["properties"][name] for feature in features]
        columns[name] = columns[name] or _dtype(column)
        masks.append(np.array([value is None for value in column], bool))
        if columns[name] == "object":
            values.append(np.array([None if value is None else str(value) for value in column], object))
        else:
            values.append(np.array([0 if value is None else value for value in column], columns[name]))
    try:
        pyogrio.raw.write(
            path,
            np.array([shapely.to_wkb(shape) for shape in shapes], object),
            values,
            list(columns),
            field_mask=masks,
            layer=layer,
            driver="GPKG",
            geometry_type="MultiPolygon",
            promote_to_multi=True,
            crs=crs.to_wkt(),
            append=append,
        )
    except (RuntimeError, ValueError) as error:  # all of pyogrio's
        raise OSError(str(error)) from error


def _dtype(column: list[Any]) -> str:
    """Of a column of plain values: whole numbers become floats beside floats, anything else text."""
    kinds = {type(value) for value in column if value is not None}
    if not kinds or not kinds <= set(DTYPES):
        return "float64" if not kinds else "object"
    return "bool" if kinds == {bool} else "int64" if kinds == {int} else "float64"


def _check(path: str, layer: str, count: int) -> None:
    """OSError unless the file is whole and holds ``count`` features: a full disk is not always reported at once."""
    with contextlib.closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            sound = database.execute("PRAGMA quick_check").fetchone()[0]
            found = database.execute(f'SELECT count(*) FROM "{layer}"').fetchone()[0]
        except sqlite3.Error as error:
            raise OSError(str(error)) from error
    if sound != "ok" or found != count:
        raise OSError("what was read back is not what was written")
