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

import numpy as np
import orbax.checkpoint as ocp

from checkpoints_convert.buffers import empty, write_file
from checkpoints_convert.plan import Plan
from checkpoints_convert.transforms import Shape
from checkpoints_convert.transpose import copy

CHUNK = 64 * 2**20  # bytes of the largest chunk, roughly
_MODEL = "model-of-an-array"


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

    def write(self, path: str, index: tuple[int, ...], piece: np.ndarray) -> list[Path]:
        """Write the entry ``index`` (of the stacked axes) of the parameter ``path``; the files are not yet durable."""
        dtype = self.targets[path][1]
        chunk = self._chunks[path][len(index) :] or (1,)
        piece = piece.reshape(piece.shape or (1,))
        numbers = (0,) * (len(self._chunks[path]) - len(index) - 1)
        files = []
        for number, start in enumerate(range(0, piece.shape[0], chunk[0])):
            block = piece[start : start + chunk[0]]
            data = empty(math.prod(chunk) * dtype.itemsize)
            buffer = data.view(dtype).reshape(chunk)
            buffer[len(block) :] = 0  # the last chunk of an array is as large as the others
            copy(buffer[: len(block)], block)
            name = (*index, number, *numbers) if len(self._chunks[path]) > len(index) else index or (0,)
            files.append(self.directory / path / ".".join(map(str, name)))
            write_file(files[-1], data)
        return files


def stacked_axes(plan: Plan) -> dict[str, int]:
    """How many leading axes of each parameter of ``plan`` count layers."""
    return {path: len(index) for step in plan.steps for path, index in step.places}


def _rows(shape: Shape, itemsize: int) -> Shape:
    """The chunk of one layer: whole, or as many rows of its first axis as make equal chunks below :data:`CHUNK`."""
    parts = -(-math.prod(shape) * itemsize // CHUNK)
    return shape if parts <= 1 or not shape else (-(-shape[0] // parts), *shape[1:])
