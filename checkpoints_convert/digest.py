"""SHA-256 of files, worked out beside other work."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

BLOCK = 4 * 2**20


class Digests:
    """Hashes ``files`` one after the other in a thread of its own; :meth:`result` waits for the last.

    Args:
      known: hashes (file name to hexadecimal digits) that need not be worked out again.
      finished: called with (file name, digest) for each new one.
    """

    def __init__(self, files: tuple[Path, ...], known: Mapping[str, str], finished: Callable[[str, str], None]) -> None:
        self._found, self._error, self._stop = dict(known), None, threading.Event()
        self._files, self._finished = [file for file in files if str(file) not in known], finished
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> dict[str, str]:
        """File name to digest."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def stop(self) -> None:
        """Give up."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for file in self._files:
                digest = sha256(file, self._stop)
                if self._stop.is_set():
                    return
                self._found[str(file)] = digest
                self._finished(str(file), digest)
        except BaseException as error:
            self._error = error


def sha256(file: Path, stop: threading.Event | None = None) -> str:
    """Hexadecimal SHA-256 of ``file``; whatever, once ``stop`` is set."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with open(file, "rb", buffering=0) as opened:
        while (count := opened.readinto(buffer)) and not (stop is not None and stop.is_set()):
            digest.update(buffer[:count])
    return digest.hexdigest()
