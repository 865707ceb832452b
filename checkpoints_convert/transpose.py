"""Copies of transposed arrays at the pace of the memory."""

from __future__ import annotations

import numpy as np

from checkpoints_convert.transforms import Shape

TILE_ROWS, TILE_BYTES = 512, 512  # what is transposed at a time: rows of the source, and bytes of each
SMALL = 2**16  # bytes below which the order of copying does not matter


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
