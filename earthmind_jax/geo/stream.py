"""Polygons of a mask on disk, read in strips: for scenes that do not fit into memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.geopackage import geopackage_writer
from earthmind_jax.geo.grid import Grid, require_map, require_on_earth
from earthmind_jax.geo.raster import open_raster
from earthmind_jax.geo.regions import trace_strips
from earthmind_jax.geo.vector import SCORE, Polygons, described, geojson_writer, inside

STRIP = 512  # rows read at once: those of a block of our files
BATCH = 1000  # regions handed out at once

Path = str | os.PathLike[str]


def trace_file(
    path: Path,
    *,
    probability: Path | None = None,
    layers: Mapping[str, Path] | None = None,
    prompt: str | None = None,
    score: float | None = None,
    model: str | None = None,
    min_pixels: int = 1,
    properties: Mapping[str, Any] | None = None,
    strip: int = STRIP,
) -> Iterator[Polygons]:
    """The regions of a mask file (its first band: neither 0 nor nodata), some at a time; whole across strips.

    Memory holds one strip and the outlines of the regions that reach its lower edge.

    Args:
      probability, layers: files on the same grid, whose mean over each region is an attribute (see
        ``vector.trace_polygons``).
      prompt, score, model: as there; by default what the tags of the file say.

    Raises:
      UserError: a file that is missing, has no place on Earth, holds no classes, or lies on another grid.
    """
    names = {**({SCORE: probability} if probability is not None else {}), **(layers or {})}
    with contextlib.ExitStack() as files:
        mask = files.enter_context(open_raster(path, labels=True))
        crs = require_map(mask.transform, mask.crs, mask.name, "a polygon map")
        grid = Grid(mask.transform, crs, mask.height, mask.width, mask.name)
        require_on_earth(grid)
        if np.dtype(mask.dtypes[0]).kind == "f":
            raise UserError(f"{mask.name} holds {mask.dtypes[0]}; polygons are made from a mask of whole numbers.")
        means = {name: files.enter_context(open_raster(file)) for name, file in names.items()}
        for dataset in means.values():
            other = Grid(dataset.transform, dataset.crs, dataset.height, dataset.width, dataset.name)
            if not other.matches(grid):
                raise UserError(f"{dataset.name} lies on another grid than {mask.name}; bring it onto that first.")
        tags = mask.tags()
        attributes = described(
            tags.get("prompt", "") if prompt is None else prompt,
            _number(tags.get("score")) if score is None else score,
            tags.get("model", "") if model is None else model,
            properties,
        )
        regions = trace_strips(_strips(mask, means, strip), min_pixels)
        while batch := list(islice(regions, BATCH)):
            yield Polygons(batch, grid, attributes, tuple(means))


def polygons_of_file(path: Path, **options: Any) -> dict[str, Any]:
    """:func:`trace_file` as one GeoJSON FeatureCollection in WGS84: the features of ``vector.polygons``."""
    features = [feature for part in trace_file(path, **options) for feature in part.geojson()["features"]]
    return {"type": "FeatureCollection", "features": features}


def write_polygons_of_file(
    path: Path, *, geojson: Path | None = None, geopackage: Path | None = None, layer: str = "masks", **options: Any
) -> int:
    """Writes the polygons of a mask file as GeoJSON (WGS84) and GeoPackage (the file's CRS) in one pass.

    Returns:
      The number of regions. Errors as :func:`trace_file`, ``write_geojson`` and ``write_geopackage``.
    """
    with open_raster(path, labels=True) as dataset:
        crs = require_map(dataset.transform, dataset.crs, dataset.name, "a polygon map")
    count = 0
    with contextlib.ExitStack() as files:
        in_degrees = files.enter_context(geojson_writer(geojson)) if geojson is not None else None
        on_map = files.enter_context(geopackage_writer(geopackage, crs, layer)) if geopackage is not None else None
        for part in trace_file(path, **options):
            count += len(part.regions)
            if in_degrees is not None:
                in_degrees(part.geojson()["features"])
            if on_map is not None:
                on_map(part.features())
    return count


def _strips(
    mask: rasterio.DatasetReader, means: Mapping[str, rasterio.DatasetReader], strip: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    for top in range(0, mask.height, strip):
        window = Window(0, top, mask.width, min(strip, mask.height - top))
        drawn = inside(mask.read(1, window=window)) & (mask.read_masks(1, window=window) > 0)
        yield drawn, {name: _values(dataset, window) for name, dataset in means.items()}


def _values(dataset: rasterio.DatasetReader, window: Window) -> np.ndarray:
    """Shares as numbers between 0 and 1, however they are stored."""
    return np.nan_to_num(dataset.read(1, window=window)) * np.float32(dataset.scales[0])


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
