"""The weights of a checkpoint directory, filled piece by piece with bounded memory.

On disk they are what Orbax restores: its metadata, which Orbax itself writes here, and one uncompressed Zarr (format 2)
array for each parameter. A chunk is at most :data:`CHUNK` bytes of one layer and a file of its own, so that a layer is
written without the rest of its stack.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from checkpoints_convert.plan import Plan
from checkpoints_convert.transforms import Shape

CHUNK = 64 * 2**20  # bytes of the largest chunk, roughly
PANEL = 16  # entries of the slowest axis that are copied at a time; more would leave the caches of a core


class WeightStore:
    """Writer of ``directory`` for parameters of the given shapes and dtypes.

    Args:
      targets: path to (shape, dtype).
      stacked: for stacked parameters, how many leading axes count layers; each of their entries is written by itself.
    """

    def __init__(
        self, directory: Path, targets: Mapping[str, tuple[Shape, np.dtype]], stacked: Mapping[str, int] | None = None
    ) -> None:
        self.directory = directory
        self.targets = {path: (tuple(shape), np.dtype(dtype)) for path, (shape, dtype) in targets.items()}
        stacked = stacked or {}
        self._chunks = {
            path: (1,) * stacked.get(path, 0) + _rows(shape[stacked.get(path, 0) :], dtype.itemsize)
            for path, (shape, dtype) in self.targets.items()
        }

    def create(self) -> None:
        """Write everything but the numbers."""
        # Orbax describes a tree of the same names; only the description of each array is then ours.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
            checkpointer.save(self.directory, {path: np.zeros(1, np.float32) for path in self.targets})
        for path, (shape, dtype) in self.targets.items():
            file = self.directory / path / ".zarray"
            described = json.loads(file.read_text())
            name = dtype.str if dtype.kind in "biuf" and dtype.isbuiltin else dtype.name
            described |= {"shape": shape, "chunks": self._chunks[path], "dtype": name, "compressor": None}
            file.write_text(json.dumps(described))
            (file.parent / "0").unlink()

    def write(self, path: str, index: tuple[int, ...], piece: np.ndarray) -> None:
        """Write the entry ``index`` (of the stacked axes) of the parameter ``path`` and wait until it is on disk."""
        dtype = self.targets[path][1]
        chunk = self._chunks[path][len(index) :]
        if not chunk:
            return self._write(path, index, piece.astype(dtype))
        rows = chunk[0]
        for number, start in enumerate(range(0, piece.shape[0], rows)):
            block = piece[start : start + rows]
            if block.shape != chunk or block.dtype != dtype or not block.flags.c_contiguous:
                # The last chunk of an array is as large as the others.
                buffer = np.empty(chunk, dtype) if len(block) == rows else np.zeros(chunk, dtype)
                copy(buffer[: len(block)], block)
                block = buffer
            self._write(path, (*index, number, *(0,) * (len(chunk) - 1)), block)

    def _write(self, path: str, chunk: tuple[int, ...], block: np.ndarray) -> None:
        name = ".".join(map(str, chunk)) or "0"
        with open(self.directory / path / name, "wb", buffering=0) as file:
            left = memoryview(np.ascontiguousarray(block).reshape(-1).view(np.uint8))
            while left:  # one call may take less than it was given
                left = left[file.write(left) :]
            os.fsync(file.fileno())


def stacked_axes(plan: Plan) -> dict[str, int]:
    """How many leading axes of each parameter of ``plan`` count layers."""
    return {path: len(index) for step in plan.steps for path, index in step.places}


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source`` for a contiguous ``target``, at a pace that a transposed ``source`` does not spoil."""
    if target.dtype == source.dtype and target.dtype.kind == "V":  # numpy copies plain integers sooner than bfloat16
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, source = target.view(bits), source.view(bits)
    shape = _merged(source)
    target, source = target.reshape(shape), source.reshape(shape)
    if source.ndim < 2:
        target[...] = source
        return
    slow = int(np.argmax(source.strides))
    target, source = np.moveaxis(target, slow, 0), np.moveaxis(source, slow, 0)
    for start in range(0, len(source), PANEL):
        target[start : start + PANEL] = source[start : start + PANEL]


def _merged(array: np.ndarray) -> Shape:
    """The shape of ``array`` with neighbouring axes joined where no copy is needed for it."""
    shape: list[int] = []
    strides: list[int] = []
    for size, stride in zip(array.shape, array.strides, strict=True):
        if size == 1:
            continue
        if shape and strides[-1] == size * stride:
            shape[-1], strides[-1] = shape[-1] * size, stride
        else:
            shape, strides = [*shape, size], [*strides, stride]
    return tuple(shape)


def _rows(shape: Shape, itemsize: int) -> Shape:
    """The chunk of one layer: whole, or as many rows of its first axis as make equal chunks below :data:`CHUNK`."""
    parts = -(-math.prod(shape) * itemsize // CHUNK)
    return shape if parts <= 1 or not shape else (-(-shape[0] // parts), *shape[1:])


def size(targets: Mapping[str, tuple[Shape, Any]]) -> int:
    """Bytes of all arrays."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in targets.values())
