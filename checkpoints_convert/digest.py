"""SHA-256 of files, worked out beside other work, from what that work reads of them where it can."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread

import numpy as np

BLOCK = 4 * 2**20


class Digests:
    """Hashes ``files`` in a thread of its own.

    Bytes that are read anyway can be offered, so that a file is read once; the rest is read here. Nothing depends on
    the order of the offers, but only those that go through the files from their first byte to their last save anything.

    Args:
      known: hashes (file name to hexadecimal digits) that need not be worked out again.
      finished: called with (file name, digest) for each new one.
    """

    def __init__(self, files: tuple[Path, ...], known: Mapping[str, str], finished: Callable[[str, str], None]) -> None:
        self._found, self._error, self._stop = dict(known), None, Event()
        self._files, self._finished = [file for file in files if str(file) not in known], finished
        self._offers: queue.SimpleQueue[tuple[Path, int, np.ndarray, Future] | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def offer(self, file: Path, start: int, data: np.ndarray) -> Future:
        """The bytes of ``file`` from ``start`` are ``data``, which must stay as it is until the answer is done."""
        free: Future = Future()
        self._offers.put((file, start, data, free))
        return free

    def close(self) -> None:
        """There are no more offers: hash what is left."""
        self._offers.put(None)

    def result(self) -> dict[str, str]:
        """File name to digest; waits for the last."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def stop(self) -> None:
        """Give up."""
        self._stop.set()
        self.close()
        self._thread.join()

    def _run(self) -> None:
        current = _Hash(self._files[0]) if self._files else None
        for file, start, data, free in iter(self._offers.get, None):
            try:
                while file in self._files and file != self._files[0] and self._error is None:
                    current = self._next(current)
                if file in self._files and self._error is None:
                    current.take(start, data, self._stop)
            except BaseException as error:
                self._error = error
            del data
            free.set_result(None)
        try:
            while self._files and self._error is None:
                current = self._next(current)
        except BaseException as error:
            self._error = error

    def _next(self, current: _Hash) -> _Hash | None:
        """Finish the first file and begin the next."""
        digest, file = current.finish(self._stop), str(self._files.pop(0))
        if not self._stop.is_set():
            self._found[file] = digest
            self._finished(file, digest)
        return _Hash(self._files[0]) if self._files else None


class _Hash:
    """SHA-256 of ``file`` up to some place in it."""

    def __init__(self, file: Path) -> None:
        self._file, self._place, self._digest = file, 0, hashlib.sha256()

    def take(self, start: int, data: np.ndarray, stop: Event) -> None:
        """Go on with ``data``, the bytes from ``start``, unless that is too late."""
        self._read(start, stop)
        if self._place == start:
            self._digest.update(data)
            self._place += len(data)

    def finish(self, stop: Event) -> str:
        """Hexadecimal digits of the whole file; whatever, once ``stop`` is set."""
        self._read(self._file.stat().st_size, stop)
        return self._digest.hexdigest()

    def _read(self, end: int, stop: Event) -> None:
        if self._place >= end:
            return
        buffer = memoryview(bytearray(min(BLOCK, end - self._place)))
        with open(self._file, "rb", buffering=0) as opened:
            opened.seek(self._place)
            while self._place < end and not stop.is_set():
                if not (count := opened.readinto(buffer[: end - self._place])):
                    return
                self._digest.update(buffer[:count])
                self._place += count


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of ``file``."""
    return _Hash(file).finish(Event())
