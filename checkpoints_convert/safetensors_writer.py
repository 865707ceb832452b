"""A ``.safetensors`` file written tensor by tensor: shapes first, numbers as they come."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from checkpoints_convert.buffers import PAGE, PlacedFile, empty
from checkpoints_convert.reader import SAFETENSORS_DTYPES
from checkpoints_convert.transforms import Shape
from checkpoints_convert.transpose import copy

BLOCK = 8 * 2**20  # bytes written at a time
_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}

Table = Mapping[str, tuple[Shape, np.dtype]]


def in_order(table: Table) -> list[str]:
    """Names in an order that keeps every tensor aligned to its own item size: widest items first."""
    return sorted(table, key=lambda name: -np.dtype(table[name][1]).itemsize)


class SafetensorsWriter:
    """The new file ``path`` for the tensors of ``table``, which may come in any order and from several threads."""

    def __init__(self, path: Path, table: Table, metadata: Mapping[str, str] | None = None) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end, self._table = 0, dict(table)
        for name, (shape, dtype) in table.items():
            start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
            header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text = struct.pack("<Q", len(text) + -len(text) % 8) + text + b" " * (-len(text) % 8)
        self._starts = {name: len(text) + header[name]["data_offsets"][0] for name in table}
        self._file = PlacedFile(path)
        self._file.write(np.frombuffer(text, np.uint8), 0)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._file.close(durable=kind is None)

    def write(self, name: str, array: np.ndarray) -> None:
        """Write the numbers of ``name``; ``array`` may be any view, of which only a block at a time is put in order."""
        shape, dtype = self._table[name]
        if (array.shape, array.dtype) != (tuple(shape), dtype):
            raise ValueError(f"'{name}' came as {array.shape} {array.dtype}, not as {shape} {dtype}")
        if not array.nbytes:
            return
        array, place = array.reshape(array.shape or (1,)), self._starts[name]
        rows = max(1, BLOCK * len(array) // array.nbytes)
        memory = empty(PAGE + rows * (array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            data = memory[place % PAGE :][: part.nbytes]  # as far from a page's start as in the file
            copy(data.view(dtype).reshape(part.shape), part)
            self._file.write(data, place)
            place += part.nbytes


def write_safetensors(
    path: Path, table: Table, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, which come in the order of ``table``; one is in memory at a time.

    Raises:
      ValueError: ``tensors`` are not those of ``table``.
    """
    expected = iter(table)
    with SafetensorsWriter(path, table, metadata) as file:
        for name, array in tensors:
            if name != (wanted := next(expected, "")):
                raise ValueError(f"'{name}' {array.shape} {array.dtype} came where '{wanted}' belongs")
            file.write(name, array)
            del array  # not beside the next one
        if (left := next(expected, None)) is not None:
            raise ValueError(f"'{left}' never came")
