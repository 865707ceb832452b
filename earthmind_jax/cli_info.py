"""The command ``earthmind info``; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

TOLD = tyro.conf.arg(name="")
LABEL = 14  # columns


def info(
    files: tuple[Path, ...],
    /,
    told: Annotated[Told, TOLD] = NOTHING,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Say what rasters are taken for and why, and what would be done with them; or what a checkpoint holds.

    An optical and a SAR file are also compared as a pair. With a checkpoint directory among the files, what would be
    done is what that model does; else what the published one does.

    Example: earthmind info s2.tif s1.tif demo/checkpoint

    Args:
        files: rasters or products as downloaded (.SAFE, zip, tar, a folder of band files), and a checkpoint directory.
        told: what the files do not say themselves.
        as_json: print JSON.
    """
    from earthmind_jax.geo.products import CHECKPOINT

    if not files:
        raise UserError("Name one or two rasters, or a checkpoint directory.")
    folders = [file for file in files if os.path.isfile(file / CHECKPOINT)]  # says no, too, where it may not look
    if len(folders) > 1:
        raise UserError(f"Name one checkpoint directory, not {len(folders)} ({' '.join(map(str, folders))}).")
    facts = [_checkpoint_facts(file) for file in folders]
    rasters = [file for file in files if file not in folders]
    if rasters:
        facts = _raster_facts(rasters, told, folders[0] if folders else None) + facts
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for fact in facts:
        print(
            "\n".join(f"{k.replace('_', ' '):>{LABEL}}  {_line(k, v)}" for k, v in fact.items() if v not in (None, []))
        )
        print()


def _raster_facts(files: list[Path], told: Told, model: Path | None) -> list[dict[str, Any]]:
    from earthmind_jax import checkpoint
    from earthmind_jax.config import EarthMindConfig
    from earthmind_jax.geo.control import check_ground
    from earthmind_jax.geo.describe import describe
    from earthmind_jax.geo.pairing import pair_facts, roles
    from earthmind_jax.infer.intent import intent

    config = EarthMindConfig() if model is None else checkpoint.read_config(model)
    told.require_sensors()
    kinds = roles(files, told)
    check_ground(files, **told.ground())
    found = [describe(file, kind=kind, **_options(kind, told)) for file, kind in zip(files, kinds, strict=True)]
    facts = [one.facts for one in found]
    for one, kind in zip(found, kinds, strict=True):
        if one.overview is not None:
            shape = one.shape or (one.facts["height"], one.facts["width"])
            one.facts["what would be done"] = intent(one.overview, shape, kind, config)
    by_kind = {kind: one for kind, one in zip(kinds, found, strict=True) if one.overview is not None}
    if len(files) == 2 and set(by_kind) == {"optical", "sar"}:
        facts.append(pair_facts(by_kind["optical"], by_kind["sar"]))
    return facts


def _options(kind: str, told: Told) -> dict[str, Any]:
    if kind == "sar":
        return {
            "sensor": told.sar_sensor, "names": told.sar_bands or None, "scale": told.sar_scale,
            "calibration": told.calibration, **told.ground(),
        }  # fmt: skip
    known = {"sensor": told.sensor, "names": told.bands or None, "offset": told.offset, "mtl": told.mtl}
    return known | told.ground()


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    import math

    from earthmind_jax import checkpoint
    from earthmind_jax.models import api

    config = checkpoint.read_config(path)
    shapes = api.shapes(config)
    source = path / checkpoint.SOURCE
    return {
        "checkpoint": str(path),
        "parameters": f"{sum(math.prod(s.shape) for s in shapes.values()):,}",
        "language": f"{config.lm.family}, {config.lm.depth} layers of {config.lm.width}",
        "fusion": f"{config.fusion.mode}, masks from {config.fusion.grounding}",
        "sensors": f"{' '.join(config.sensors.optical_bands)} + {' '.join(config.sensors.sar_bands)}",
        "source": json.loads(source.read_text()) if source.is_file() else {},
    }


def _line(key: str, value: Any) -> str:
    if key.endswith("share") or key == "overlap":
        return f"{value:.1%}"
    if isinstance(value, list):
        short = all(len(str(v)) <= 12 for v in value)
        return " ".join(map(str, value)) if short else ("\n" + " " * (LABEL + 2)).join(str(v) for v in value)
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
