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
LEAST, MOST = 2**20, 64 * 2**20  # bytes of each of them
_DIRECT = getattr(os, "O_DIRECT", 0)
_free: deque[mmap.mmap] = deque(maxlen=KEEP)  # its methods are safe from several threads, and from the collector


def empty(size: int) -> np.ndarray:
    """``size`` bytes with any contents, aligned for :func:`write_file`; used again once no view of them is left."""
    if size < LARGE:
        return np.empty(size, np.uint8)
    memory = _taken(-(-size // PAGE) * PAGE)
    array = np.frombuffer(memory, np.uint8, size)
    if LEAST <= len(memory) <= MOST:
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


def read_file(path: Path, start: int, count: int) -> np.ndarray:
    """The ``count`` bytes of ``path`` from ``start``, fewer at its end; large ones are not left in the page cache."""
    first = start - start % PAGE if count >= LARGE else start
    data = empty(-(-(start + count - first) // PAGE) * PAGE)
    done, wanted = 0, start + count - first
    handle = os.open(path, os.O_RDONLY)
    try:
        direct = count >= LARGE and _turn_direct(handle, True)
        while done < wanted:
            try:
                got = os.preadv(handle, [memoryview(data)[done : None if direct else wanted]], first + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                direct = _turn_direct(handle, False)
                continue
            done += got
            if not got:
                break
            if direct and done % PAGE:  # the end of the file, or near it
                direct = _turn_direct(handle, False)
    finally:
        os.close(handle)
    return data[start - first : min(done, wanted)]


def write_file(path: Path, data: np.ndarray) -> None:
    """Write the bytes ``data`` (of :func:`empty`) to the new file ``path``, which :func:`sync` makes durable."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        done = _write_direct(handle, memoryview(data)[: len(data) - len(data) % PAGE]) if len(data) >= LARGE else 0
        while done < len(data):  # one call may take less than it was given
            done += os.write(handle, memoryview(data)[done:])
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Wait until the file is on disk; of several one after the other, the first takes most of the time of all."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class PlacedFile:
    """The new file ``path``, written at any places from several threads."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._direct = os.open(path, os.O_WRONLY)
        self._large = _turn_direct(self._direct, True)

    def write(self, data: np.ndarray, place: int) -> None:
        """Write the bytes ``data``; past the page cache where they lie in memory as in the file, to the page."""
        first, last = -place % PAGE, len(data) - (place + len(data)) % PAGE  # the whole pages
        if not self._large or last - first < LARGE or (data.ctypes.data + first) % PAGE:
            first = last = 0
        _write_at(self._handle, data[:first], place)
        try:
            _write_at(self._direct, data[first:last], place + first)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._large, last = False, first
        _write_at(self._handle, data[last:], place + last)

    def close(self, durable: bool) -> None:
        """Close; where ``durable``, when everything is on disk."""
        try:
            if durable:
                os.fsync(self._handle)
        finally:
            os.close(self._direct)
            os.close(self._handle)


def _write_at(handle: int, data: np.ndarray, place: int) -> None:
    left = memoryview(data)
    while left:  # one call may take less than it was given
        count = os.pwrite(handle, left, place)
        left, place = left[count:], place + count


def _write_direct(handle: int, data: memoryview) -> int:
    """How many bytes of ``data`` the file system took past the page cache: none where it knows no such thing."""
    done = 0
    try:
        direct = _turn_direct(handle, True)
        while direct and done < len(data) and done % PAGE == 0:
            done += os.write(handle, data[done:])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    _turn_direct(handle, False)
    return done


def _turn_direct(handle: int, on: bool) -> bool:
    """Whether ``handle`` now goes past the page cache."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError as error:  # not on every file system
        if error.errno != errno.EINVAL:
            raise
        return False
    return on and bool(_DIRECT)
