"""The calibration factor of a detected SAR product, where its tags tell one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

# power = factor x DN squared: TerraSAR-X calFactor, ICEYE calibration_factor
_POWER_FACTORS = ("calibration_factor", "calfactor", "calibration_constant")
# amplitude = factor x DN: Capella scale_factor (inside the image description), Umbra
_AMPLITUDE_FACTORS = ("scale_factor", "scalefactor")


def amplitude_of_one(tags: Mapping[str, str]) -> tuple[float, str] | None:
    """(the DN whose power is 1, reason) from a product's tags, or from the JSON inside one of them (Capella writes its
    metadata into ``TIFFTAG_IMAGEDESCRIPTION``); None where none tells."""
    for key, value in _pairs(tags):
        name = key.lower().rpartition(":")[2]
        if name not in _POWER_FACTORS + _AMPLITUDE_FACTORS:
            continue
        try:
            factor = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(factor) and factor > 0:
            return (factor**-0.5 if name in _POWER_FACTORS else 1 / factor), f"tag {key} = {factor:g}"
    return None


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
