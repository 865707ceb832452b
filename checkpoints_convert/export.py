"""A checkpoint directory back to a published layout, tensor by tensor."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert import peft_export
from checkpoints_convert.budget import Budget
from checkpoints_convert.layouts import LAYOUTS
from checkpoints_convert.layouts.earthmind import SAM2_PREFIX
from checkpoints_convert.plan import Step, build_plan, source_tree
from checkpoints_convert.published_config import published_config
from checkpoints_convert.reader import Source, open_source
from checkpoints_convert.rules import Layout, match
from checkpoints_convert.safetensors_writer import SafetensorsWriter, Table, in_order
from checkpoints_convert.stored import stored_params, without_adapters
from checkpoints_convert.streaming import IGNORED, PUBLISHED, TENSORS, Progress
from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig, one_of
from earthmind_jax.errors import UserError

KINDS = {
    "internvl": ("InternVL (",),
    "sam2": ("SAM2",),
    "earthmind": ("EarthMind / Sa2VA (", "EarthMind without its mask decoder ("),
}
"""What ``layout`` may be, and how the names of its tables begin; ``peft`` has no table of its own."""

SHARD = 5 * 10**9  # bytes of one file
IN_FLIGHT = 256 * 2**20  # bytes of tensors in memory at a time; one that is larger is alone
WORKERS = 3  # one more than it takes to keep two cores busy: the disk is waited for

Tensors = dict[str, tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]
"""Name to shape, dtype, and how to get the numbers."""


def export_checkpoint(
    directory: str | Path, out: str | Path, layout: str, *, shard: int = SHARD, progress: Progress | None = None
) -> list[Path]:
    """Write the checkpoint ``directory`` as published files into the new directory ``out``.

    A checkpoint that was converted from the same layout gives its source back: names, shapes, dtypes, every bit, and
    the tensors that the conversion set aside. Otherwise every tensor has the dtype of its parameter. Adapters are
    folded into the weights, except by ``peft``, which writes them alone.

    Args:
      layout: ``internvl`` (no mask decoder), ``sam2`` (the mask decoder alone; with PyTorch installed also as a ``.pt``
        file), ``earthmind`` (the whole model, as Sa2VA), or ``peft`` (the adapters of the language model).
      shard: bytes of the largest file.
      progress: called with (bytes written, bytes in all).

    Returns:
      The files that were written.

    Raises:
      UserError: no checkpoint, ``out`` exists, or the layout cannot hold this model.
      WorkError: ``out`` could not be written; nothing is left of it.
    """
    one_of("layout", layout, (*KINDS, "peft"))
    directory, out = Path(directory).absolute(), Path(out).absolute()
    checkpoint.refuse_existing(out)
    config, params = stored_params(directory)
    if layout == "peft":
        factors = peft_export.adapters(config, params, directory.name)
        tensors, settings = tensors_of(factors.layout, factors.params), factors.settings
    else:
        adapted = config.lm.lora is not None and layout != "sam2"
        config, params = without_adapters(config, params) if adapted else (config, params)
        table = find_layout(layout, config)
        origin = Origin.read(directory)
        recorded = origin if origin is not None and origin.layout == table.name and not adapted else None
        tensors = tensors_of(table, params, recorded) | set_aside(table, origin)
        settings = None if layout == "sam2" else published_config(config, layout)
        if recorded is not None and recorded.config is not None:
            settings = recorded.config
    with checkpoint.writing(out), checkpoint.made_beside(out) as place:
        stem = "adapter_model" if layout == "peft" else "model"
        _write_shards(place, stem, tensors, shard, progress or (lambda done, total: None))
        if settings is not None:
            name = "adapter_config.json" if layout == "peft" else checkpoint.CONFIG
            checkpoint.write_text(place / name, json.dumps(settings, indent=2))
        words = directory / checkpoint.TOKENIZER
        if layout in ("internvl", "earthmind") and words.is_dir():
            shutil.copytree(words, place, dirs_exist_ok=True)
        if layout == "sam2":
            _write_torch(place)
    return sorted(file for file in out.iterdir())


def find_layout(kind: str, config: EarthMindConfig) -> Layout:
    """The table of the layout ``kind`` for a model with this language model, with or without a mask decoder."""
    grounded = any(name.startswith("EarthMind /") for name in KINDS[kind]) and config.grounding is not None
    if kind == "sam2" and config.grounding is None:
        raise UserError("This model has no mask decoder: there is nothing to export in the layout 'sam2'.")
    start = KINDS[kind][0 if grounded or len(KINDS[kind]) == 1 else 1]
    for layout in LAYOUTS:
        if layout.name.startswith(start) and layout.family in ("", config.lm.family):
            return layout
    raise UserError(f"The layout '{kind}' has no form with a {config.lm.family} language model.")


@dataclass(frozen=True)
class Origin:
    """What a conversion noted of its source; ``files`` maps names to SHA-256."""

    layout: str
    tensors: dict[str, tuple[tuple[int, ...], np.dtype]]
    ignored: dict[str, Any]
    config: dict[str, Any] | None
    kept: Source | None
    files: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> Origin | None:
        """None for a checkpoint that was not converted."""
        below = directory / PUBLISHED
        if not (below / TENSORS).is_file():
            return None
        with checkpoint.damaged(directory):
            source = json.loads((directory / checkpoint.SOURCE).read_text())
            cast = source["dtype"]
            tensors = {
                name: (tuple(shape), np.dtype(cast or dtype))
                for name, (dtype, shape) in json.loads((below / TENSORS).read_text()).items()
            }
            config = below / checkpoint.CONFIG
            return cls(
                layout=source["layout"],
                tensors=tensors,
                ignored=source["ignored"],
                config=json.loads(config.read_text()) if config.is_file() else None,
                kept=open_source(below / IGNORED) if (below / IGNORED).is_file() else None,
                files={name: entry["sha256"] for name, entry in source["files"].items()},
            )


def tensors_of(layout: Layout, params: Mapping[str, Any], origin: Origin | None = None) -> Tensors:
    """The tensors that the rules of ``layout`` make of ``params``; those that ``origin``, of the same layout, held."""
    targets = {
        path: (tuple(x.shape), np.dtype(x.dtype))
        for path, x in params.items()
        if any(fnmatchcase(path, pattern) for pattern in layout.covers)
    }
    sources = source_tree(targets, layout.rules) if origin is None else origin.tensors
    ignored = () if origin is None else layout.ignored
    plan = build_plan(targets, layout.rules, sources, ignored=ignored, what=f"The layout '{layout.name}'")
    steps = {step.source: step for step in plan.steps}
    copies = {} if origin is None else {n: note["same as"] for n, note in origin.ignored.items() if "same as" in note}
    steps |= {name: steps[other] for name, other in copies.items()}

    def maker(step: Step) -> Callable[[], np.ndarray]:
        return lambda: _made(step, params)

    return {name: (sources[name][0], step.dtype, maker(step)) for name, step in steps.items()}


def _made(step: Step, params: Mapping[str, Any]) -> np.ndarray:
    """The tensor of ``step``, as a view of what is read where that can be."""
    whole = step.inverse([np.asarray(params[path][index]) for path, index in step.places])
    return whole.astype(step.dtype, copy=False)


def set_aside(layout: Layout, origin: Origin | None) -> Tensors:
    """What the conversion kept of its source and this layout knows (SAM2 alone knows it by its shorter name)."""
    if origin is None or origin.kept is None:
        return {}
    found: Tensors = {}
    for name, info in origin.kept.index.items():
        known = name.removeprefix(SAM2_PREFIX) if layout.name in KINDS["sam2"] else name
        if any(match(entry.pattern, known) is not None for entry in layout.ignored):
            found[known] = info.shape, info.dtype, lambda name=name: origin.kept.read(name)
    return found


def _write_shards(place: Path, stem: str, tensors: Tensors, limit: int, progress: Progress) -> None:
    table = {name: tensors[name][:2] for name in in_order({name: entry[:2] for name, entry in tensors.items()})}
    shards: list[dict[str, tuple[tuple[int, ...], np.dtype]]] = [{}]
    filled = 0
    for name, entry in table.items():
        if shards[-1] and filled + _size(*entry) > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += _size(*entry)
    total, done, where, lock = sum(_size(*entry) for entry in table.values()), 0, {}, threading.Lock()
    progress(0, total)

    def written(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            progress(done, total)

    for number, part in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"

        # The metadata is what transformers looks for before it reads a file.
        with SafetensorsWriter(place / file, part, {"format": "pt"}) as writer:
            _fill(writer, part, tensors, written)
        where |= dict.fromkeys(part, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        checkpoint.write_text(place / f"{stem}.safetensors.index.json", json.dumps(index, indent=2))


def _fill(writer: SafetensorsWriter, part: Table, tensors: Tensors, written: Callable[[int], None]) -> None:
    """Make the tensors of ``part`` and write them, within :data:`IN_FLIGHT` bytes at a time."""
    budget = Budget(IN_FLIGHT)

    def write(name: str) -> None:
        size = _size(*part[name])
        budget.take(size)
        try:
            writer.write(name, tensors[name][2]())
            written(size)
        finally:
            budget.give(size)

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(write, name) for name in part]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_torch(place: Path) -> None:
    """``model.pt`` beside the safetensors file, with the tensors under ``model`` as SAM2 is published."""
    try:
        import torch
        from safetensors.torch import load_file
    except ImportError:
        return
    torch.save({"model": load_file(place / "model.safetensors")}, place / "model.pt")


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
