"""Two described files as a pair: which is the optical image, and how well they fit together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine

from earthmind_jax.errors import UserError
from earthmind_jax.geo.acquired import days_between
from earthmind_jax.geo.align import MIN_OVERLAP, align, pair_shift
from earthmind_jax.geo.contents import contents
from earthmind_jax.geo.describe import Description, georeference
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.onto import alignment
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.raster import Raster, open_raster
from earthmind_jax.geo.told import Told

APART_DAYS = 30.0  # beyond it fields and water have changed
APART_RATIO = 10.0  # of pixel sizes, beyond which little of the finer image is left


def roles(files: Sequence[str | os.PathLike[str]], told: Told) -> list[str]:
    """ "optical" or "sar" for each file: by what it looks like, else by what is told, else optical first."""
    kinds = [_looks_like(file) for file in files]
    if len(files) == 1 and bool(told.about("sar")) != bool(told.about("optical")):
        return ["sar" if told.about("sar") else "optical"]
    if len(files) == 2 and "sar" not in kinds and (None in kinds or told.about("sar")):
        return ["sar", "optical"] if kinds == [None, "optical"] else ["optical", "sar"]
    return [kind or "optical" for kind in kinds]


def pair_facts(optical: Description, sar: Description) -> dict[str, Any]:
    """Overlap, pixel sizes, time between them and what would be done to bring the SAR image onto the optical grid."""
    first, second = optical.overview, sar.overview
    assert first is not None
    assert second is not None
    facts: dict[str, Any] = {"pair": f"{first.name} + {second.name}"}
    warnings = []
    if georeference(first) is None and georeference(second) is None:
        try:
            found = align(second, first, "sar_linear", sensor=second.sensor, min_overlap=0.0)
        except UserError as error:
            return facts | {"overlap": 0.0, "warnings": [str(error)]}
        if found.overlap == 0:
            apart = f"the images do not overlap: the optical covers {first.grid.extent()}, SAR {second.grid.extent()}"
            return facts | {"overlap": 0.0, "warnings": [apart]}
        ratio = sar.facts["gsd_m"] / optical.facts["gsd_m"]
        facts |= {"overlap": round(found.overlap, 4), "gsd_ratio": round(ratio, 3)}
        # In words of the files' own pixels: those of the overviews may be brought together in another way.
        power = found.raster.unit == "dB"
        facts |= {"alignment": alignment(_whole(sar), _whole(optical), power, found.overlap)}
        facts |= _seen(first.valid, found.raster.valid)
        size = optical.shape or (optical.facts["height"], optical.facts["width"])
        facts |= _shift(first, found.raster, size)
        if found.overlap < MIN_OVERLAP:
            warnings.append(f"the overlap is below {MIN_OVERLAP:.0%}: the pair would be refused")
        if not 1 / APART_RATIO <= ratio <= APART_RATIO:
            warnings.append(f"one pixel of the pair is {max(ratio, 1 / ratio):.0f} times as large as the other")
    else:
        sizes = [(d.facts["height"], d.facts["width"]) for d in (optical, sar)]
        if sizes[0] != sizes[1]:
            how = "without a georeference in both they must have the same size: the pair would be refused"
            return facts | {"overlap": None, "warnings": [how]}
        facts |= {"overlap": None, "alignment": "no georeference in both: taken as aligned pixel by pixel"}
        facts |= _seen(first.valid, second.valid)
    days = days_between(*(_time(one) for one in (optical, sar)))
    facts["days_apart"] = None if days is None else round(days, 2)
    if days is not None and days > APART_DAYS:
        warnings.append(f"the images are {days:.0f} days apart")
    return facts | {"warnings": warnings}


def _whole(one: Description) -> Grid:
    """The grid of the scene that a description's overview is of."""
    assert one.overview is not None
    small, (height, width) = one.overview.grid, one.shape or (one.facts["height"], one.facts["width"])
    transform = small.transform @ Affine.scale(small.width / width, small.height / height)
    return replace(small, transform=transform, height=height, width=width)


def _looks_like(file: str | os.PathLike[str]) -> str | None:
    with open_raster(file, labels=True) as dataset:
        sensor = contents(dataset, None).sensor
    return None if sensor is None else SENSORS[sensor].kind


def _shift(optical: Raster, sar: Raster, size: tuple[int, int]) -> dict[str, Any]:
    """How far the SAR image lies off the optical one, in optical pixels (rows down, columns right), where it can be
    told; nothing is moved. ``size``: rows and columns of the scene, of which these are overviews."""
    shift = pair_shift(optical, sar)
    if shift is None:
        return {"residual_shift": "cannot be told with confidence"}
    moved = zip((shift.rows, shift.columns), size, optical.shape, strict=True)
    rows, columns = (round(float(part * whole / small), 2) for part, whole, small in moved)
    return {"residual_shift": {"rows": rows, "columns": columns, "confidence": round(float(shift.confidence), 2)}}


def _seen(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Shares of the optical grid that both sensors see, one alone, or none."""
    parts = {"both": first & second, "optical_only": first & ~second, "sar_only": second & ~first}
    shares = {f"{name}_share": round(float(part.mean()), 4) for name, part in parts.items()}
    return shares | {"neither_share": round(float((~first & ~second).mean()), 4)}


def _time(one: Description) -> np.datetime64 | None:
    return np.datetime64(one.facts["acquired"], "s") if "acquired" in one.facts else None
