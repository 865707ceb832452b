"""Landsat 8/9 Collection 2: surface reflectance and temperature (Level-2), and the top of the atmosphere (Level-1).

Level-2 numbers have fixed factors. Those of Level-1 stand in the scene's metadata (MTL): in the file's tags, in an MTL
file beside it, or in one that is named. Source: USGS Landsat 8-9 Collection 2 Level-1 and Level-2 data format control
books.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.mtl import numbers, read_mtl
from earthmind_jax.geo.reflectance import POSSIBLE, file_scaling, is_reflectance
from earthmind_jax.geo.sample import LARGEST, percentiles, sample_between
from earthmind_jax.geo.stretch import HIGH_PERCENT, LOW_PERCENT, between

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

SURFACE_SCALE, SURFACE_OFFSET = 0.0000275, -0.2
KELVIN_SCALE, KELVIN_OFFSET = 0.00341802, 149.0
SOURCE_TAG = "METADATA_FILE"  # of a product: where its coefficients are from
DARKEST_MEDIAN = -0.1  # surface reflectance: a scene darker than this does not hold Collection 2 numbers
# Level-2 bands as Landsat 4 to 7 number them -> as Landsat 8 does.
THEMATIC_MAPPER = {"SR_B1": "SR_B2", "SR_B2": "SR_B3", "SR_B3": "SR_B4", "SR_B4": "SR_B5", "SR_B5": "SR_B6",
                   "SR_B7": "SR_B7", "ST_B6": "ST_B10"}  # fmt: skip
OLDER_NOTE = "numbered as on Landsat 4 to 7, and called as Landsat 8 does (its SR_B3 is SR_B4)"
_OLDER = re.compile(r"(?<![A-Z0-9])L[TE]0[4-7]_|LANDSAT_[4-7]")
_PRODUCT = re.compile(r"L[COT]0[89]_L[12][A-Z]{2}_\d{6}_\d{8}_\d{8}_\d{2}_[A-Z0-9]{2}")


def older_landsat(text: str) -> bool:
    """Whether a product name, or any other text, is of Landsat 4 to 7."""
    return bool(_OLDER.search(text))


def to_surface(raster: Raster) -> Raster:
    """Collection 2 Level-2 numbers: SR bands to surface reflectance (DN x 0.0000275 - 0.2), ST bands to kelvin
    (DN x 0.00341802 + 149); temperature alone becomes a brightness picture. DN 0 is fill."""
    if raster.unit != "raw":
        return raster
    stored = raster.stored or raster.bands
    thermal = np.array([name.startswith("ST_") for name in stored])
    factors = np.where(thermal, KELVIN_SCALE, SURFACE_SCALE), np.where(thermal, KELVIN_OFFSET, SURFACE_OFFSET)
    notes = []
    own = file_scaling(raster)
    sample = sample_between(raster.scene_sample(), -LARGEST, LARGEST)
    reflective = [i for i, name in enumerate(sample.bands) if name.startswith("SR_")]
    if raster.dtype.startswith("float") and (reflective and is_reflectance(sample.values[reflective][:, sample.valid])):
        factors = np.ones(len(stored)), np.zeros(len(stored))
        notes.append("floating point values around 1: already reflectance, no factor applied")
    elif raster.dtype.startswith("float") and not reflective:
        factors = np.ones(len(stored)), np.zeros(len(stored))
        notes.append("floating point temperature: already kelvin, no factor applied")
    elif own is not None:
        factors = tuple(np.full(len(stored), number) for number in own)
        notes.append(f"DN x {own[0]:g} {own[1]:+g} (band scale and offset of the file)")
    else:
        if not thermal.all():
            notes.append(f"surface reflectance = DN x {SURFACE_SCALE:g} - {-SURFACE_OFFSET:g} (Collection 2 Level-2)")
            _require_collection_2(raster, sample.values[reflective][:, sample.valid])
        if thermal.any():
            notes.append(f"temperature = DN x {KELVIN_SCALE:g} + {KELVIN_OFFSET:g} K (Collection 2 Level-2)")
    scale, offset = (np.asarray(f, np.float32)[:, None, None] for f in factors)
    return _finished(raster, np.asarray(raster.data, np.float32) * scale + offset, thermal, notes, factors)


def to_top_of_atmosphere(raster: Raster, *, mtl: str | os.PathLike[str] | None = None) -> Raster:
    """Level-1 numbers to top-of-atmosphere reflectance ((M DN + A) / sin(sun elevation)) and brightness temperature in
    kelvin (K2 / ln(K1 / L + 1)); temperature alone becomes a brightness picture. DN 0 is fill.

    Args:
      mtl: the scene's metadata file (``*_MTL.txt`` or ``.json``); else from tags, or beside the raster.

    Raises:
      UserError: a coefficient of a band is nowhere to be found.
    """
    if raster.unit != "raw":
        return raster
    stored = raster.stored or raster.bands
    thermal = np.array([name.startswith("BT_") for name in stored])
    if mtl is None and raster.dtype.startswith("float") and _is_physical(raster):
        notes = ["floating point values around 1: already reflectance (and kelvin), no coefficient applied"]
        ones = np.ones(len(stored)), np.zeros(len(stored))
        return _finished(raster, np.array(raster.data, np.float32), thermal, notes, ones)
    facts, source = _metadata(raster, mtl)
    digital, data = np.asarray(raster.data, np.float32), np.empty(raster.data.shape, np.float32)
    notes, elevation = [f"Level-1 coefficients from {source}"], None
    if not thermal.all():
        elevation = _coefficient(raster, facts, "SUN_ELEVATION")
        if not 0 < elevation <= 90:
            raise UserError(f"{raster.name}: a sun elevation of {elevation:g} degrees gives no reflectance.")
        notes.append(f"top-of-atmosphere reflectance with the sun {elevation:.2f} degrees high")
    curves = []
    for name in stored:
        number = name.rpartition("_B")[2]
        curves.append(_curve(raster, facts, number, elevation if not name.startswith("BT_") else None))
    for i, curve in enumerate(curves):
        data[i] = curve(digital[i])
    return _finished(raster, data, thermal, notes, curves=curves)


def _is_physical(raster: Raster) -> bool:
    """Whether the reflective bands of a scene hold reflectance already, as Earth Engine has it."""
    sample = sample_between(raster.scene_sample(), -LARGEST, LARGEST)
    reflective = [i for i, name in enumerate(sample.bands) if not name.startswith("BT_")]
    return bool(reflective) and is_reflectance(sample.values[reflective][:, sample.valid])


def _curve(raster: Raster, facts: Mapping[str, float], band: str, elevation: float | None) -> Any:
    """DN of one band -> reflectance, or kelvin where ``elevation`` is None."""
    if elevation is not None:
        factor, term = (_coefficient(raster, facts, f"REFLECTANCE_{word}_BAND_{band}") for word in ("MULT", "ADD"))
        sun = np.sin(np.radians(elevation))
        return lambda digital: (np.float32(factor) * digital + np.float32(term)) / np.float32(sun)
    factor, term = (_coefficient(raster, facts, f"RADIANCE_{word}_BAND_{band}") for word in ("MULT", "ADD"))
    first, second = (_coefficient(raster, facts, f"K{k}_CONSTANT_BAND_{band}") for k in (1, 2))

    def kelvin(digital: np.ndarray) -> np.ndarray:
        radiance = np.maximum(factor * np.asarray(digital, np.float64) + term, 1e-6)
        return (second / np.log(first / radiance + 1)).astype(np.float32)

    return kelvin


def _finished(
    raster: Raster,
    data: np.ndarray,
    thermal: np.ndarray,
    notes: list[str],
    factors: tuple[np.ndarray, np.ndarray] | None = None,
    curves: list[Any] | None = None,
) -> Raster:
    """Reflectance, with fill taken out; temperature alone as brightness between its scene percentiles."""
    low, high = POSSIBLE
    known = (data[~thermal] > low) & (data[~thermal] < high)
    empty = ((raster.data == 0).any(0) | ~known.all(0)) & raster.valid
    if empty.any():
        notes.append(f"{int(empty.sum())} pixels with DN 0 (fill), or another fill value, are invalid")
    valid = raster.valid & ~empty
    if not thermal.all():
        return raster.calibrated(data, valid, "reflectance", notes)
    sample, told = raster.scene_sample(), []
    for i, name in enumerate(raster.stored or raster.bands):
        bounds = np.array(percentiles(sample, name, LOW_PERCENT, HIGH_PERCENT))
        low, high = curves[i](bounds) if curves else bounds * factors[0][i] + factors[1][i]
        data[i] = between(data[i], low, high)
        told.append(f"{low:.1f} to {high:.1f} K")
    notes.append(f"brightness by the scene's 2nd and 98th percentile: {', '.join(told)}")
    return raster.calibrated(data, valid, "display", notes, {"unit": "kelvin"})


def _require_collection_2(raster: Raster, digital: np.ndarray) -> None:
    known = digital[digital != 0]
    middle = float(np.median(known)) * SURFACE_SCALE + SURFACE_OFFSET if known.size else 0.0
    if middle < DARKEST_MEDIAN:
        raise UserError(
            f"{raster.name} would have a median reflectance of {middle:.2f}: these are not the numbers of Landsat "
            "Collection 2 Level-2; give that product, or store the band scale in the file."
        )


def _coefficient(raster: Raster, facts: Mapping[str, float], key: str) -> float:
    if key not in facts:
        raise UserError(
            f"{raster.path or raster.name} is Landsat Level-1 and needs {key}, which neither its tags nor an MTL file "
            "tell; name the scene's MTL file (--mtl), or put it beside the raster."
        )
    return facts[key]


def _metadata(raster: Raster, told: str | os.PathLike[str] | None) -> tuple[dict[str, float], str]:
    """(coefficients by MTL key, where they are from)."""
    if told is not None:
        return read_mtl(told), f"{Path(told).name} (as told)"
    tags = {key.upper().rpartition(":")[2]: value for key, value in raster.tags.items()}
    facts = dict(numbers(tags.items()))
    if "SUN_ELEVATION" in facts or any(key.startswith("K1_CONSTANT") for key in facts):
        return facts, raster.tags.get(SOURCE_TAG, "the file's tags")
    beside = _beside(Path(raster.path)) if raster.path else None
    return (read_mtl(beside), f"{beside.name} beside the file") if beside else (facts, "the file's tags")


def _beside(path: Path) -> Path | None:
    product = _PRODUCT.match(path.name)
    for stem in (product.group() if product else path.stem, path.stem):
        for ending in ("_MTL.txt", "_MTL.json"):
            if (path.parent / f"{stem}{ending}").is_file():
                return path.parent / f"{stem}{ending}"
    if product:
        return None  # an MTL of another scene would be worse than none
    lone = sorted(path.parent.glob("*_MTL.txt")) if path.parent.is_dir() else []
    return lone[0] if len(lone) == 1 else None
