"""The weights of a checkpoint directory, filled piece by piece with bounded memory.

On disk they are what Orbax restores: its metadata, which Orbax itself writes here, and one uncompressed Zarr (format 2)
array for each parameter. A chunk is at most :data:`CHUNK` bytes of one layer and a file of its own, so that a layer is
written without the rest of its stack.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from checkpoints_convert.buffers import empty, write_file
from checkpoints_convert.plan import Plan
from checkpoints_convert.transforms import Shape

CHUNK = 64 * 2**20  # bytes of the largest chunk, roughly
_MODEL = "model-of-an-array"
TILE_ROWS, TILE_BYTES = 512, 512  # what is transposed at a time: rows of the source, and bytes of each
SMALL = 2**16  # bytes below which the order of copying does not matter


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
        chunk = self._chunks[path][len(index) :] or (1,)
        piece = piece.reshape(piece.shape or (1,))
        numbers = (0,) * (len(self._chunks[path]) - len(index) - 1)
        for number, start in enumerate(range(0, piece.shape[0], chunk[0])):
            block = piece[start : start + chunk[0]]
            data = empty(math.prod(chunk) * dtype.itemsize)
            buffer = data.view(dtype).reshape(chunk)
            buffer[len(block) :] = 0  # the last chunk of an array is as large as the others
            copy(buffer[: len(block)], block)
            name = (*index, number, *numbers) if len(self._chunks[path]) > len(index) else index or (0,)
            write_file(self.directory / path / ".".join(map(str, name)), data)


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
    fast = int(np.argmin(source.strides)) if shape else -1
    if source.nbytes < SMALL or fast == source.ndim - 1:
        target[...] = source
        return
    target, source = np.moveaxis(target, fast, -2), np.moveaxis(source, fast, -2)
    for index in np.ndindex(source.shape[:-2]):
        _transpose(target[index], source[index])


def _transpose(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source`` of two axes, the first of which is contiguous in ``source``, the last in ``target``.

    Tile by tile through a buffer that fits the caches of a core: its rows are padded, since those of a tensor are often
    a power of two apart, and then lie in the same few places of a cache.
    """
    columns, rows = TILE_BYTES // source.itemsize, TILE_ROWS
    buffer = np.empty((rows, columns + 64 // source.itemsize), source.dtype)
    for start in range(0, source.shape[1], rows):
        for first in range(0, source.shape[0], columns):
            part = np.s_[first : first + columns, start : start + rows]
            tile = source[part]
            padded = buffer[: tile.shape[1], : tile.shape[0]].T
            padded[...] = tile
            target[part] = padded


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
