"""A ``.safetensors`` file written tensor by tensor: shapes first, numbers as they come."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from checkpoints_convert.reader import SAFETENSORS_DTYPES
from checkpoints_convert.transforms import Shape

_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}

Table = Mapping[str, tuple[Shape, np.dtype]]


def in_order(table: Table) -> list[str]:
    """Names in an order that keeps every tensor aligned to its own item size: widest items first."""
    return sorted(table, key=lambda name: -np.dtype(table[name][1]).itemsize)


def write_safetensors(
    path: Path, table: Table, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, which come in the order of ``table``; one is in memory at a time.

    Raises:
      ValueError: ``tensors`` are not those of ``table``.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in table.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    expected = iter(table.items())
    with open(path, "wb", buffering=0) as file:
        _write(file, struct.pack("<Q", len(text)) + text)
        for name, array in tensors:
            wanted, (shape, dtype) = next(expected, ("", ((), None)))
            if (name, array.shape, array.dtype) != (wanted, tuple(shape), dtype):
                raise ValueError(f"'{name}' {array.shape} {array.dtype} came where '{wanted}' {shape} {dtype} belongs")
            _write(file, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            del array  # not beside the next one
        if (left := next(expected, None)) is not None:
            raise ValueError(f"'{left[0]}' never came")
        os.fsync(file.fileno())


def _write(file, data: bytes | np.ndarray) -> None:
    left = memoryview(data)
    while left:  # one call may take less than it was given
        left = left[file.write(left) :]
