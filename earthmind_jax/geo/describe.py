"""What a raster is taken for and why, in facts: what ``earthmind info`` prints.

Rests on the decimated scene, so that a large file is described as quickly as a small one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp

from earthmind_jax.errors import UserError
from earthmind_jax.geo.acquired import acquisition_time
from earthmind_jax.geo.control import Control, map_grid, place_of
from earthmind_jax.geo.grid import Grid, require_map
from earthmind_jax.geo.no_sensor import no_sensor
from earthmind_jax.geo.onto import onto_map
from earthmind_jax.geo.overview import read_overview
from earthmind_jax.geo.radiometry import SENSORS, calibrate, unknown
from earthmind_jax.geo.raster import Raster, open_raster
from earthmind_jax.geo.reflectance import processing_baseline
from earthmind_jax.geo.sample import SAMPLE_SIDE

PICTURE_DRIVERS = ("PNG", "GIF", "BMP", "WEBP")
POLARISATIONS = ("VV", "VH", "HH", "HV")
# Notes that are worth a warning: the decision could be another.
_DOUBTS = ("not certain", "although", "right to a few dB", "levels are relative", "give the scale", "some of its bands")


@dataclass(frozen=True, kw_only=True)
class Description:
    """``facts`` for printing, and the calibrated overview (None where the file is no sensor's image).

    ``shape`` is that of the grid which maps of it lie on, where it is not the file's own.
    """

    facts: dict[str, Any]
    overview: Raster | None
    kind: str  # optical, sar, labels, heights or unknown
    shape: tuple[int, int] | None = None


def describe(
    path: str | os.PathLike[str],
    *,
    sensor: str | None = None,
    names: Sequence[str] | None = None,
    kind: str | None = None,
    height: float | None = None,
    dem: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Description:
    """What a file is taken for, and its facts.

    Args:
      sensor, names, options: what the caller knows, see ``raster.read_raster`` and ``radiometry.calibrate``.
      kind: "optical" or "sar": as what it is to be used.
      height, dem: of the ground, for an image placed by RPCs, see ``control.place_of``.

    Raises:
      UserError: the file cannot be used, and why.
    """
    told = sensor is not None or names is not None
    with open_raster(path, labels=not told) as dataset:
        palette = ColorInterp.palette in dataset.colorinterp
        size = dataset.height, dataset.width
        place = place_of(dataset, height=height, dem=dem)
        if palette and dataset.driver in PICTURE_DRIVERS:
            facts = {"file": dataset.name, "taken for": "rgb8", "title": "picture shown in the colours of its palette"}
            return Description(facts=facts | {"width": size[1], "height": size[0]}, overview=None, kind="unknown")
    raw = read_overview(path, sensor=sensor, names=names, labels=palette, kind=kind)
    other = None if told else no_sensor(raw, palette)
    if other is not None:
        return Description(facts=_facts(raw, raw, size, *other), overview=None, kind=other[0])
    if raw.sensor is None and raw.dtype == "uint8" and len(raw.bands) == 1:
        found = calibrate(raw, "rgb8")
        return _described(raw, found, size, "rgb8", "8-bit grey picture", place)
    if raw.sensor is None:
        what = unknown(raw.bands, raw.notes)
        return Description(facts=_facts(raw, raw, size, "unknown", what), overview=None, kind="unknown")
    entry = SENSORS[raw.sensor]
    given = {key: value for key, value in options.items() if key in entry.options}
    found = calibrate(raw, raw.sensor, **given)
    return _described(raw, found, size, raw.sensor, entry.title, place)


def _described(
    raw: Raster, found: Raster, size: tuple[int, int], sensor: str, title: str, place: Grid | Control | None
) -> Description:
    facts, kind = _facts(raw, found, size, sensor, title), SENSORS[sensor].kind
    if not isinstance(place, Control):
        return Description(facts=facts, overview=found, kind=kind)
    grid = map_grid(place)
    facts |= _on_its_map_grid(place, grid, facts["warnings"])
    overview = onto_map(found, place.decimated(*found.shape), grid.decimated(SAMPLE_SIDE))
    return Description(facts=facts, overview=overview, kind=kind, shape=grid.shape)


def georeference(raster: Raster) -> str | None:
    """What keeps an image off the map, in words; None where nothing does."""
    if raster.gcps and not raster.georeferenced:
        return "ground control points only"
    if raster.crs is None:
        return "no coordinate reference system"
    if not raster.georeferenced:
        return "no transform"
    try:
        require_map(raster.transform, raster.crs, raster.path, "a map")
        gsd = raster.gsd
    except UserError:
        gsd = None
    return None if gsd is not None and np.isfinite(gsd) and gsd > 0 else "a CRS that is no map of the Earth"


def _facts(raw: Raster, found: Raster, size: tuple[int, int], taken_for: str, title: str) -> dict[str, Any]:
    problem = georeference(raw)
    scale = np.sqrt(raw.shape[0] * raw.shape[1] / (size[0] * size[1]))
    time = acquisition_time(raw.tags, raw.path)
    baseline = processing_baseline(raw) if taken_for.startswith("s2") else None
    polarisations = [name for name in raw.bands if name in POLARISATIONS]
    warnings = [note for note in found.notes if any(doubt in note for doubt in _DOUBTS)]
    if problem is not None:
        warnings.append(
            f"{problem}: its own pixels are no map" if raw.gcps else f"{problem}: text answers only, no maps"
        )
    facts: dict[str, Any] = {
        "file": raw.path,
        "taken for": taken_for,
        "title": title,
        "unit": found.unit,
        "bands": list(raw.bands),
        "polarisations": polarisations or None,
        "width": size[1],
        "height": size[0],
        "dtype": raw.dtype,
        "crs": None if raw.crs is None else raw.crs.to_string(),
        "gsd_m": None if problem else round(float(raw.gsd * scale), 4),
        "extent": None if problem else raw.grid.extent(),
        "nodata": raw.nodata if raw.nodata is None or np.isfinite(raw.nodata) else str(raw.nodata),
        "no_data_share": round(float(1 - found.valid.mean()), 4),
        "processing_baseline": None if baseline is None else f"{baseline:05.2f}",
        "offset": found.decided.get("offset"),
        "scale": found.decided.get("scale") or found.decided.get("unit"),
        "acquired": None if time is None else str(time),
        "darkest": _darkest(raw),
        "why": list(found.notes),
        "warnings": warnings,
    }
    return {key: value for key, value in facts.items() if value is not None or key in ("crs", "gsd_m", "nodata")}


def _on_its_map_grid(place: Control, grid: Grid, warnings: list[str]) -> dict[str, Any]:
    """The facts of an image that only control places: of the map grid that it is brought onto."""
    made = f"brought onto a map grid of {grid.height} x {grid.width} pixels"
    kept = [warning for warning in warnings if not warning.endswith(("no maps", "no map"))]
    facts = {"crs": grid.crs.to_string(), "gsd_m": round(float(grid.gsd), 4), "extent": grid.extent()}
    return facts | {"placed": made, "warnings": [*kept, place.note]}


def _darkest(raw: Raster) -> dict[str, float] | None:
    """Least and 0.1 % value of the raw scene, to check what the offset was judged by."""
    values = raw.data[:, raw.valid]
    if values.size == 0:
        return None
    low = np.percentile(values.astype(np.float64), 0.1, axis=-1).min()
    return {"least": round(float(values.min()), 4), "percentile_0_1": round(float(low), 4)}
