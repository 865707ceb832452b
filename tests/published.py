"""Small checkpoints under the published names, with random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from support import model

from checkpoints_convert.export import find_layout
from checkpoints_convert.plan import source_tree
from checkpoints_convert.published_config import published_config
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import earthmind

SAM2 = "grounding_encoder.sam2_model."


def config(grounding: bool = True) -> EarthMindConfig:
    """The tiny model, fused as published, with or without its mask decoder."""
    return model("concat", "sar" if grounding else None)


def tensors(kind: str, config: EarthMindConfig, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """The tensors of ``config`` in the layout ``kind``; every number is another one."""
    layout, rng = find_layout(kind, config), np.random.default_rng(0)
    tree = {
        path: (x.shape, dtype)
        for path, x in earthmind.shapes(config).items()
        if any(fnmatchcase(path, pattern) for pattern in layout.covers)
    }
    return {
        name: rng.standard_normal(shape).astype(dtype) for name, (shape, _) in source_tree(tree, layout.rules).items()
    }


def ignored(kind: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Tensors that published files hold and no parameter takes."""
    rng, found = np.random.default_rng(1), {}
    if kind == "earthmind":
        found = {"local_query": (2, 64), "hca_queries": (8, 64), f"{SAM2}memory_encoder.out_proj.bias": (5,)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in found.items()} | (
        {}
        if kind == "sam2"
        else {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    )


def write(
    directory: Path, kind: str, config: EarthMindConfig, tensors: Mapping[str, np.ndarray], *, shards: int = 1
) -> Path:
    """A directory with ``tensors`` in so many files and, but for SAM2, the published configuration."""
    directory.mkdir(parents=True)
    names, where = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        part = {name: np.ascontiguousarray(tensors[name]) for name in names[number::shards]}
        save_file(part, directory / file)
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if kind != "sam2":
        (directory / "config.json").write_text(json.dumps(published_config(config, kind)))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory``."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
