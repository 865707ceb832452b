"""A ``.safetensors`` file written tensor by tensor: shapes first, numbers as they come."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from checkpoints_convert.buffers import empty
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
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._write(text, 0)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._handle)
        finally:
            os.close(self._handle)

    def write(self, name: str, array: np.ndarray) -> None:
        """Write the numbers of ``name``; ``array`` may be any view, of which only a block at a time is put in order."""
        shape, dtype = self._table[name]
        if (array.shape, array.dtype) != (tuple(shape), dtype):
            raise ValueError(f"'{name}' came as {array.shape} {array.dtype}, not as {shape} {dtype}")
        place = self._starts[name]
        if array.flags.c_contiguous:
            self._write(array.reshape(-1).view(np.uint8), place)
            return
        rows = max(1, BLOCK * len(array) // max(array.nbytes, 1))
        data = empty(rows * (array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            block = data[: part.nbytes]
            copy(block.view(dtype).reshape(part.shape), part)
            self._write(block, place)
            place += part.nbytes

    def _write(self, data: bytes | np.ndarray, place: int) -> None:
        left, start = memoryview(data), place
        while left:  # one call may take less than it was given
            count = os.pwrite(self._handle, left[:BLOCK], place)
            left, place = left[count:], place + count
        if hasattr(os, "posix_fadvise"):  # what will not be read again goes to the disk at once, and makes room
            os.posix_fadvise(self._handle, start, place - start, os.POSIX_FADV_DONTNEED)


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
