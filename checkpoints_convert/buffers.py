"""Memory for large arrays that is used again, and files written from it past the page cache.

Getting new pages from the system takes longer than filling them, and a copy of everything written in the page cache
costs a core its time and pushes out the files that are still to be read.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from collections import deque
from pathlib import Path

import numpy as np

PAGE = 4096  # what direct writes are aligned to
LARGE = 2**16  # bytes from which both are worth it
KEEP = 8  # pieces of memory that wait to be used again
KEEP_BYTES = 64 * 2**20  # the largest of them
_DIRECT = getattr(os, "O_DIRECT", 0)
_free: deque[mmap.mmap] = deque(maxlen=KEEP)  # its methods are safe from several threads, and from the collector


def empty(size: int) -> np.ndarray:
    """``size`` bytes with any contents, aligned for :func:`write_file`; they go back when the last view of them does."""
    if size < LARGE:
        return np.empty(size, np.uint8)
    memory = _taken(-(-size // PAGE) * PAGE)
    array = np.frombuffer(memory, np.uint8, size)
    if len(memory) <= KEEP_BYTES:
        weakref.finalize(array, _free.append, memory).atexit = False
    return array


def _taken(size: int) -> mmap.mmap:
    for _ in range(len(_free)):
        try:
            memory = _free.popleft()
        except IndexError:  # another thread was sooner
            break
        if size <= len(memory) <= 2 * size:
            return memory
        _free.append(memory)
    return mmap.mmap(-1, size)


def write_file(path: Path, data: np.ndarray) -> None:
    """Write the bytes ``data`` (of :func:`empty`) to the new file ``path`` and wait until they are on disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        done = _write_direct(handle, memoryview(data)[: len(data) - len(data) % PAGE]) if len(data) >= LARGE else 0
        while done < len(data):  # one call may take less than it was given
            done += os.write(handle, memoryview(data)[done:])
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_direct(handle: int, data: memoryview) -> int:
    """How many bytes of ``data`` the file system took past the page cache: none where it knows no such thing."""
    flags, done = fcntl.fcntl(handle, fcntl.F_GETFL), 0
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT)
        while done < len(data) and done % PAGE == 0:
            done += os.write(handle, data[done:])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fcntl.fcntl(handle, fcntl.F_SETFL, flags)
    return done
