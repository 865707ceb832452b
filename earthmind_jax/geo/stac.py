"""A STAC Item beside the maps: where, when, from what, by what, and what was assumed about the numbers.

SpatioTemporal Asset Catalog 1.1.0 with the projection, processing, raster and file extensions, and the SAR one where
all of its required fields are known.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import rasterio
import shapely

from earthmind_jax.errors import UserError
from earthmind_jax.geo.acquired import acquisition_time, day_in_name
from earthmind_jax.geo.antimeridian import bounding_box, geographic
from earthmind_jax.geo.grid import EARTH_RADIUS, WGS84, Grid, project, require_map, require_on_earth
from earthmind_jax.geo.raster import open_raster
from earthmind_jax.geo.write import written_beside

STAC_VERSION = "1.1.0"
EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "sar": "https://stac-extensions.github.io/sar/v1.0.0/schema.json",
}
GEOTIFF = "image/tiff; application=geotiff"
COG = f"{GEOTIFF}; profile=cloud-optimized"
MEDIA_TYPES = {
    ".tif": COG,
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".json": "application/json",
    ".png": "image/png",
    ".html": "text/html",
}
LONGEST = 90.0  # degrees of an edge: one of more than half a turn would be taken for the other way round
STRAIGHT = 0.05  # pixels by which an edge may leave the footprint's points aside
UNKNOWN_START = "1970-01-01T00:00:00Z"
_SENTINEL1 = re.compile(r"S1[A-D]_(IW|EW|WV|S[1-6])_(GRD|SLC|RTC)\w?_+1?[A-Z]?(SH|SV|DH|DV)")
_POLARISATIONS = {"SH": ["HH"], "SV": ["VV"], "DH": ["HH", "HV"], "DV": ["VV", "VH"]}


def stac_item(
    identifier: str,
    grid: Grid,
    assets: Mapping[str, str | os.PathLike[str]],
    directory: str | os.PathLike[str],
    *,
    software: Mapping[str, str],
    inputs: Mapping[str, str | os.PathLike[str]] | None = None,
    notes: Sequence[str] = (),
    properties: Mapping[str, Any] | None = None,
    staging: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """A STAC Item of files made from images.

    Args:
      identifier: of the Item.
      grid: of the maps; the footprint is its outline, cut at the antimeridian.
      assets: key -> file that exists.
      directory: where the Item will lie; links are relative to it.
      software: name -> version of what made them, beside GDAL.
      inputs: sensor -> file that the result was derived from. Their tags and names give the time, or the day.
      notes: what was decided about the inputs: ``processing:lineage``.
      properties: further ones; names need a prefix such as ``earthmind:``.
      staging: where the assets lie until they move to ``directory``; None: there already.

    Raises:
      UserError: the grid has no place on Earth, or a file is missing.
    """
    crs = require_map(grid.transform, grid.crs, grid.name, "a STAC item")
    require_on_earth(grid)
    geometry = geographic([[_outline(grid)]])
    taken, radar = _sources(inputs or {})
    x, y = grid.outline()
    code = crs.to_epsg()
    described = {
        **_dates(taken),
        "created": _now(),
        "gsd": round(grid.gsd, 6),
        "proj:code": None if code is None else f"EPSG:{code}",
        **({"proj:wkt2": crs.to_wkt(version="WKT2_2019")} if code is None else {}),
        "proj:shape": list(grid.shape),
        "proj:transform": [float(value) for value in grid.transform],
        "proj:bbox": [float(value) for value in (x.min(), y.min(), x.max(), y.max())],
        "processing:software": {"GDAL": rasterio.__gdal_version__, **software},
        **({"processing:lineage": "; ".join(notes)} if notes else {}),
        **radar,
        **(properties or {}),
    }  # fmt: skip
    used = [name for name in EXTENSIONS if name != "sar" or radar]
    links = [
        {"rel": "derived_from", "href": _link(file, directory), **_media_type(file), "title": name}
        for name, file in (inputs or {}).items()
    ]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [EXTENSIONS[name] for name in used],
        "id": identifier,
        "geometry": geometry,
        "bbox": bounding_box(geometry),
        "properties": described,
        "links": links,
        "assets": {key: _asset(Path(file), staging or directory) for key, file in assets.items()},
    }


def write_stac_item(path: str | os.PathLike[str], item: Mapping[str, Any]) -> None:
    """Writes an Item beside and renames it; WorkError where that fails."""
    with written_beside(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(item, file, indent=2, ensure_ascii=False, allow_nan=False)


def _outline(grid: Grid) -> np.ndarray:
    """The edge in longitude and latitude [n 2], as far as the projection has them."""
    longitudes, latitudes = project(grid.crs, WGS84, *grid.outline(65))
    known = np.isfinite(longitudes) & np.isfinite(latitudes)
    if known.sum() < 3:
        raise UserError(f"{grid.name}: its edge is no place on Earth; correct its transform or its CRS.")
    ring = np.stack([longitudes[known], latitudes[known].clip(-90, 90)], -1)
    moved = np.append(True, (np.diff(ring, axis=0) != 0).any(1))  # corners stand twice in an outline
    ring = ring[moved]
    ring = ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)  # which is no longer clear once there are corners only
    degree = np.radians(1) * EARTH_RADIUS
    simple = shapely.simplify(shapely.LineString(ring), STRAIGHT * grid.gsd / degree)
    return np.asarray(shapely.segmentize(simple, LONGEST).coords)


def _sources(inputs: Mapping[str, str | os.PathLike[str]]) -> tuple[list[np.datetime64], dict[str, Any]]:
    """(times of the inputs, of a day its first and last second; fields of the SAR extension) from tags and names; a
    file gone since says nothing."""
    times, radar = [], {}
    for path in inputs.values():
        try:
            with open_raster(path, labels=True) as dataset:
                tags = dataset.tags()
        except UserError:
            tags = {}
        time = acquisition_time(tags, os.fspath(path))
        if time is not None:
            times.append(time)
        elif (day := day_in_name(os.fspath(path))) is not None:
            start, length = day.astype("datetime64[s]"), np.timedelta64(24 * 3600 - 1, "s")
            times += [start, start + length]
        for text in (PurePath(path).name, *tags.values()):
            found = _SENTINEL1.search(str(text))
            if found:
                radar = {
                    "sar:instrument_mode": found.group(1),
                    "sar:frequency_band": "C",
                    "sar:polarizations": _POLARISATIONS[found.group(3)],
                    "sar:product_type": found.group(2),
                }
                break
    return sorted(times), radar


def _dates(times: Sequence[np.datetime64]) -> dict[str, str | None]:
    """One time, or the span of several; where none is known, the span that surely holds it."""
    if len(set(times)) == 1:
        return {"datetime": f"{times[0]}Z"}
    start, end = (f"{times[0]}Z", f"{times[-1]}Z") if times else (UNKNOWN_START, _now())
    return {"datetime": None, "start_datetime": start, "end_datetime": end}


def _media_type(path: str | os.PathLike[str]) -> dict[str, str]:
    """Of an input, which need not be cloud-optimized."""
    suffix = PurePath(path).suffix.lower()
    known = {".tif": GEOTIFF, ".tiff": GEOTIFF, ".jp2": "image/jp2"} | {".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    known |= {".png": "image/png", ".zip": "application/zip", ".tar": "application/x-tar", ".xml": "application/xml"}
    return {"type": known[suffix]} if suffix in known else {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _link(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if "://" in text or text.startswith("/vsi"):
        return text
    return PurePath(os.path.relpath(text, directory)).as_posix()


def _asset(path: Path, directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What a catalogue needs to know of a file: type, size, SHA-256 as a multihash, and the bands of a raster."""
    if not path.is_file():
        raise UserError(f"{path} does not exist, so it cannot be part of a STAC item.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    asset = {
        "href": f"./{_link(path, directory)}",
        "title": path.name,
        "type": MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
        "roles": ["overview"] if path.suffix == ".png" else ["metadata"] if path.suffix == ".json" else ["data"],
        "file:size": path.stat().st_size,
        "file:checksum": f"1220{digest}",
    }
    if asset["type"] == COG:
        with open_raster(path, labels=True) as dataset:
            asset["bands"] = [
                {
                    "name": name or f"band_{i}",
                    "data_type": dataset.dtypes[i - 1],
                    **({} if nodata is None else {"nodata": "nan" if np.isnan(nodata) else nodata}),
                    **({} if scale == 1 else {"raster:scale": scale, "raster:offset": dataset.offsets[i - 1]}),
                    "raster:sampling": "area",
                }
                for i, (name, nodata, scale) in enumerate(
                    zip(dataset.descriptions, dataset.nodatavals, dataset.scales, strict=True), 1
                )
            ]
    return asset
