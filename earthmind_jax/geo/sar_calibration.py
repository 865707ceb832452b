"""What makes a detected SAR product's numbers backscatter: a factor in its tags, or the table that comes with it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.safe_xml import local_name, parse_xml

# power = factor x DN squared: TerraSAR-X calFactor, ICEYE calibration_factor
_POWER_FACTORS = ("calibration_factor", "calfactor", "calibration_constant")
# amplitude = factor x DN: Capella scale_factor (inside the image description), Umbra
_AMPLITUDE_FACTORS = ("scale_factor", "scalefactor")
_FACTORS = _POWER_FACTORS + _AMPLITUDE_FACTORS
LIKELY_ONE = 1e-2, 1e7  # of COSMO-SkyMed a "calibration constant" of 1e18 is a part of its formula only
LARGEST_BESIDE = 1 << 26  # bytes of a metadata file


def amplitude_of_one(tags: Mapping[str, str]) -> tuple[float, str] | None:
    """(the DN whose power is 1, reason) from a product's tags, or from the JSON inside one of them (Capella writes its
    metadata into ``TIFFTAG_IMAGEDESCRIPTION``); None where none tells."""
    for key, value in _pairs(tags):
        name = key.lower().rpartition(":")[2]
        if name not in _FACTORS:
            continue
        try:
            factor = float(value)
        except (TypeError, ValueError):
            continue
        if not (math.isfinite(factor) and factor > 0 and factor != 1):  # 1 is what xarray writes where there is none
            continue
        one = factor**-0.5 if name in _POWER_FACTORS else 1 / factor
        if LIKELY_ONE[0] <= one <= LIKELY_ONE[1]:
            return one, f"tag {key} = {factor:g}"
    return None


def amplitude_beside(path: str, names: Sequence[str]) -> tuple[float, str] | None:
    """The same from the metadata file beside an image: ``<its name>.xml`` (ICEYE), ``.json`` or ``_extended.json``
    (Capella); None where there is none, or its factors are not those of these bands."""
    if not path or not os.path.isfile(path):
        return None
    stem = os.path.splitext(path)[0]
    for beside in (f"{stem}.xml", f"{stem}_extended.json", f"{stem}.json"):
        try:
            with open(beside, "rb") as file:
                data = file.read(LARGEST_BESIDE)
            tags = {"": data.decode()} if beside.endswith(".json") else _factors(parse_xml(data, beside))
        except (OSError, UnicodeError, UserError):
            continue
        found = amplitude_of_one(tags)
        if found is not None and len(names) == 1:
            return found[0], f"{os.path.basename(beside)}, {found[1].removeprefix('tag ')}"
    return None


def _factors(root: Element) -> dict[str, str]:
    """What an XML file calls a factor, where it tells one alone."""
    texts = [(local_name(e), (e.text or "").strip()) for e in root.iter() if local_name(e).lower() in _FACTORS]
    return dict(texts) if len(set(texts)) == 1 else {}


def _pairs(tags: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tags.items():
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError:
                continue
        if isinstance(value, dict):
            yield from _pairs(value)
        else:
            yield key, value


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """The amplitude whose power is 1, at some pixels of an image: sigma0 = DN^2 / A^2, A bilinear between them
    (Sentinel-1 Product Specification, calibration annotation).

    Attributes:
      lines, pixels: [n] and [m] rows and columns, counted from 0 at the centre of the first; increasing.
      amplitude: [n m], above zero.
    """

    lines: np.ndarray
    pixels: np.ndarray
    amplitude: np.ndarray

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 [h w] at rows [h] and columns [w]; beyond the table its nearest value."""
        across = np.stack([np.interp(columns, self.pixels, line) for line in self.amplitude])
        place = np.interp(rows, self.lines, np.arange(len(self.lines)))
        low = np.clip(place.astype(int), 0, max(0, len(self.lines) - 2))
        high = np.minimum(low + 1, len(self.lines) - 1)
        share = (place - low)[:, None]
        return ((1 - share) * across[low] + share * across[high]).astype(np.float32)


@dataclass(frozen=True)
class SceneCalibration:
    """The tables of some bands of one scene of ``shape`` (rows, columns)."""

    tables: tuple[CalibrationTable, ...]
    shape: tuple[int, int]

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 [C h w], the amplitude of 0 dB at rows and columns counted from the scene's outer corner."""
        return np.stack([table.at(rows - 0.5, columns - 0.5) for table in self.tables])

    def decimated(self, height: int, width: int) -> np.ndarray:
        """float32 [C h w] of the whole scene in fewer pixels."""
        steps = (np.arange(n) + 0.5 for n in (height, width))
        return self.at(*(step * side / n for step, side, n in zip(steps, self.shape, (height, width), strict=True)))

    def __str__(self) -> str:
        rows, columns = self.tables[0].amplitude.shape
        return f"sigma nought by the product's calibration table ({rows} x {columns} values); noise is not subtracted"


def read_table(root: Element, name: str) -> CalibrationTable:
    """The table of sigma nought in a Sentinel-1 calibration annotation; ``name`` is what messages call it.

    Raises:
      UserError: vectors that are missing, of different lengths, or no amplitudes.
    """
    rows = [_vector(element, name) for element in root.iter() if local_name(element) == "calibrationVector"]
    if not rows:
        raise UserError(f"{name} has no calibration vectors (sigmaNought); download the product again.")
    rows.sort(key=lambda row: row[0])
    lines = np.array([line for line, _, _ in rows])
    if (np.diff(lines) <= 0).any():
        raise UserError(f"{name} has two calibration vectors of one line; download the product again.")
    pixels = max((pixel for _, pixel, _ in rows), key=len)
    return CalibrationTable(lines, pixels, np.stack([np.interp(pixels, own, values) for _, own, values in rows]))


def _vector(element: Element, name: str) -> tuple[float, np.ndarray, np.ndarray]:
    """(line, pixels, sigmaNought) of one calibration vector."""
    found = {local_name(child): child.text or "" for child in element}
    try:
        line = float(found["line"])
        pixels, values = (np.array(found[key].split(), np.float64) for key in ("pixel", "sigmaNought"))
    except (KeyError, ValueError) as error:
        raise UserError(f"{name} has a calibration vector that cannot be read ({error}).") from error
    good = pixels.size and pixels.shape == values.shape and (np.diff(pixels) > 0).all() and np.isfinite(values).all()
    if not (good and (values > 0).all() and math.isfinite(line)):
        raise UserError(f"{name} has a calibration vector whose pixels and values give no calibration.")
    return line, pixels, values
