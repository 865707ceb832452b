"""What a long piece of work has finished, on disk, so that the next attempt goes on from there.

One JSON value a line. The first line says what the work is; each of the others is one finished part. A line that a
kill cut short does not count.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Journal:
    """The journal in ``path`` of the work described by ``work`` (plain JSON values).

    ``done`` maps each finished part to what was noted with it. A journal of other work is not taken up: ``same`` is
    then false, ``done`` empty, and :meth:`start` begins a new one.
    """

    def __init__(self, path: Path, work: Any) -> None:
        self.path, self.done = path, {}
        self._work, self._lock, self._file = work, threading.Lock(), None
        lines = list(_whole_lines(path)) if path.is_file() else []
        self.same = bool(lines) and lines[0] == work
        if self.same:
            self.done = dict(lines[1:])

    def start(self) -> None:
        """Open for writing; a journal of other work is overwritten."""
        if self.same:
            # Whatever a kill left of a last line goes: the next one would be appended to it.
            text = "".join(json.dumps(line) + "\n" for line in (self._work, *map(list, self.done.items())))
        else:
            text = json.dumps(self._work) + "\n"
        temporary = self.path.with_name(f"{self.path.name}.new")
        temporary.write_text(text)
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 - open as long as the work goes on

    def add(self, part: str, note: Any = None) -> None:
        """Note that ``part`` is finished; safe from several threads."""
        with self._lock:
            self._file.write(json.dumps([part, note]) + "\n")
            self._file.flush()
            self.done[part] = note

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _whole_lines(path: Path) -> Any:
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            return
        if line.endswith("\n"):
            yield value
