"""The weights of a checkpoint directory, filled piece by piece with bounded memory.

On disk they are what Orbax restores: its metadata, which Orbax itself writes here, and one uncompressed Zarr (format 2)
array for each parameter. A chunk is at most :data:`CHUNK` bytes of one layer and a file of its own, so that a layer is
written without the rest of its stack.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from checkpoints_convert.plan import Plan
from checkpoints_convert.transforms import Shape

CHUNK = 64 * 2**20  # bytes of the largest chunk, roughly
_MODEL = "model-of-an-array"
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
        self.directory, self._scratch = directory, threading.local()
        self.targets = {path: (tuple(shape), np.dtype(dtype)) for path, (shape, dtype) in targets.items()}
        stacked = stacked or {}
        self._chunks = {
            path: (1,) * stacked.get(path, 0) + _rows(shape[stacked.get(path, 0) :], dtype.itemsize)
            for path, (shape, dtype) in self.targets.items()
        }

    def create(self) -> None:
        """Write everything but the numbers."""
        # Orbax describes a tree of one array; ours says the same of each of its own.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)) as checkpointer:
            checkpointer.save(self.directory, {_MODEL: np.zeros(1, np.float32)})
        file = self.directory / "_METADATA"
        tree = json.loads(file.read_text())
        ((key, entry),) = tree["tree_metadata"].items()
        tree["tree_metadata"] = {
            key.replace(_MODEL, path): json.loads(json.dumps(entry).replace(_MODEL, path)) for path in self.targets
        }
        file.write_text(json.dumps(tree))
        array = json.loads((self.directory / _MODEL / ".zarray").read_text())
        for path, (shape, dtype) in self.targets.items():
            name = dtype.str if dtype.isbuiltin == 1 else dtype.name  # numpy's own spelling, or that of ml_dtypes
            described = array | {"shape": shape, "chunks": self._chunks[path], "dtype": name, "compressor": None}
            (self.directory / path).mkdir(parents=True)
            (self.directory / path / ".zarray").write_text(json.dumps(described))
        shutil.rmtree(self.directory / _MODEL)

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
                buffer = self._buffer(chunk, dtype)
                buffer[len(block) :] = 0
                copy(buffer[: len(block)], block)
                block = buffer
            self._write(path, (*index, number, *(0,) * (len(chunk) - 1)), block)

    def _buffer(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """Memory of this thread, used again and again: getting new pages takes longer than filling them."""
        size = math.prod(shape) * dtype.itemsize
        if getattr(self._scratch, "bytes", None) is None or len(self._scratch.bytes) < size:
            self._scratch.bytes = np.empty(size, np.uint8)
        return self._scratch.bytes[:size].view(dtype).reshape(shape)

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
    """``target[...] = source``, at a pace that a transposed ``source`` does not spoil."""
    if target.dtype == source.dtype and target.dtype.kind == "V":  # numpy copies plain integers sooner than bfloat16
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, source = target.view(bits), source.view(bits)
    shape = _merged(source, target)
    target, source = target.reshape(shape), source.reshape(shape)
    if source.ndim < 2:
        target[...] = source
        return
    slow = int(np.argmax(source.strides))
    target, source = np.moveaxis(target, slow, 0), np.moveaxis(source, slow, 0)
    for start in range(0, len(source), PANEL):
        target[start : start + PANEL] = source[start : start + PANEL]


def _merged(*arrays: np.ndarray) -> Shape:
    """The common shape of ``arrays`` with neighbouring axes joined where none of them needs a copy for it."""
    shape: list[int] = []
    last: list[int] = []
    for axis, size in enumerate(arrays[0].shape):
        strides = [array.strides[axis] for array in arrays]
        if size == 1:
            continue
        if shape and last == [size * stride for stride in strides]:
            shape[-1] *= size
        else:
            shape.append(size)
        last = strides
    return tuple(shape)


def _rows(shape: Shape, itemsize: int) -> Shape:
    """The chunk of one layer: whole, or as many rows of its first axis as make equal chunks below :data:`CHUNK`."""
    parts = -(-math.prod(shape) * itemsize // CHUNK)
    return shape if parts <= 1 or not shape else (-(-shape[0] // parts), *shape[1:])


def size(targets: Mapping[str, tuple[Shape, Any]]) -> int:
    """Bytes of all arrays."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in targets.values())
