"""Simulated pairs as files, and the tiny model over them; as a program, a run that a test can kill.

python tests/scenes.py FOLDER OUT
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import pyogrio
import support

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.scene import segment_scene

TARGETS = ("river", "lake")


class Pointing(Engine):
    """An engine whose every answer has a [SEG] as its second token."""

    def generate(self, batch: Any, fused: Any, **options: Any) -> Any:
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg})


@functools.cache
def model() -> EarthMind:
    config = support.model()
    config = dataclasses.replace(config, sensors=SensorConfig(max_tiles=1, window=32))
    params, last = dict(support.params(config)), "grounding/decoder/hyper/fc3/kernel"
    params[last] = 40 * params[last]  # random weights draw nearly nothing, 0.5 everywhere
    return EarthMind(config, Pointing(config, params, support.tokenizer()), "tiny")


def write(folder: Path, name: str, size: tuple[int, int], **options: Any) -> dict[str, Path]:
    """A pair of ``size`` pixels: the SAR image lies on a grid of its own, in another coordinate system."""
    write_scene(make_scene(5, size=size, gsd=10.0, **{"nodata": 0.0} | options), folder, name)
    return {"optical": folder / f"{name}_s2.tif", "sar": folder / f"{name}_s1.tif"}


def draw(pair: dict[str, Path], out: Path, **options: Any) -> Any:
    return segment_scene(model(), options.pop("targets", TARGETS), **pair, out=out, **options)


def contents(directory: Path) -> dict[str, Any]:
    """What a run has written, byte by byte, but for what tells the time and the place of it."""
    return {path.name: _content(path) for path in directory.iterdir()}


def _content(path: Path) -> Any:
    if path.suffix == ".gpkg":
        meta, _, geometry, fields = pyogrio.raw.read(path)
        return meta["crs"], list(meta["fields"]), list(geometry), [list(field) for field in fields]
    if path.name == "item.json":
        item = json.loads(path.read_text())
        timeless = {name: x for name, x in item["properties"].items() if "datetime" not in name and name != "created"}
        return timeless, item["geometry"], sorted(item["assets"])
    return path.read_bytes()


def main() -> None:
    jax.config.update("jax_default_matmul_precision", "highest")  # as the tests do
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    pair = {"optical": folder / "a_s2.tif", "sar": folder / "a_s1.tif"}

    def report(done: int, *rest: float) -> None:
        print(f"windows {done}", flush=True)
        sys.stdin.readline()  # whoever started this says when to go on, and need not be quicker than the rows

    draw(pair, out, weights=True, report=report)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
