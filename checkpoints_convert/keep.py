"""Source tensors that no parameter takes, kept so that the published file can be written again.

A copy of another tensor (the head of a language model that is tied to its embedding) is kept as the other's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.plan import Plan
from checkpoints_convert.reader import Source, TensorInfo
from checkpoints_convert.safetensors_writer import in_order, write_safetensors

BLOCK = 32 * 2**20  # bytes compared at a time
SMALL = 2**20  # bytes below which looking for an equal tensor is not worth it


def keep_ignored(source: Source, plan: Plan, file: Path) -> dict[str, Any]:
    """Write the ignored tensors of ``plan`` to ``file`` (none if there are none).

    Returns:
      name -> {"reason": ..., "same as": name of an equal tensor}; without the last, the tensor is in ``file``.
    """
    notes: dict[str, Any] = {}
    kept = {}
    for name, reason in plan.ignored.items():
        twin = _twin(source, plan, name)
        notes[name] = {"reason": reason} | ({"same as": twin} if twin else {})
        if twin is None:
            kept[name] = source.index[name].shape, source.index[name].dtype
    if kept:
        table = {name: kept[name] for name in in_order(kept)}
        write_safetensors(file, table, ((name, source.read(name)) for name in table))
    return notes


def _twin(source: Source, plan: Plan, name: str) -> str | None:
    info = source.index[name]
    if info.nbytes < SMALL:
        return None
    others = (step.source for step in plan.steps if source.index[step.source] == info)
    return next((other for other in others if _equal(source, name, other, info)), None)


def _equal(source: Source, one: str, other: str, info: TensorInfo) -> bool:
    rows = max(1, BLOCK * info.shape[0] // info.nbytes)
    for start in range(0, info.shape[0], rows):
        part = (slice(start, start + rows),)
        if not np.array_equal(_bits(source.read(one, part)), _bits(source.read(other, part))):
            return False
    return True


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
