"""``metrics.jsonl``: a line for every report, and after an interruption exactly those of an uninterrupted run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from earthmind_jax.checkpoint import write_text, writing


class History:
    """The reports of a run; opened, it forgets those after step ``done``, whose steps are taken again.

    ``path`` None keeps nothing (other processes than the first).
    """

    def __init__(self, path: Path | None, done: int) -> None:
        self._path, self.lines, self._file = path, [], None
        if path is None:
            return
        with writing(path):
            text = path.read_text(errors="replace") if path.exists() else ""
            self.lines = [line for line in map(_parsed, text.splitlines()) if line and line["step"] <= done]
            kept = "".join(json.dumps(line) + "\n" for line in self.lines)
            if kept != text:
                write_text(path, kept)
            self._file = open(path, "a")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, line: dict[str, Any]) -> None:
        """One report, with its ``step``."""
        self.lines.append(line)
        if self._file is not None:
            with writing(self._path):
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()

    def losses(self) -> list[float]:
        """The loss of every report so far."""
        return [line["loss"] for line in self.lines if "loss" in line]

    def sync(self) -> None:
        """Onto the disk: a saved step must not outlive the reports before it."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    """None for a line that was cut off."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else None
