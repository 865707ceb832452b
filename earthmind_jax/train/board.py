"""The reports of a run as TensorBoard files, ``tensorboard/`` in the run's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOARD = "tensorboard"


class Board:
    """Writes scalars; without the package ``tensorboardX`` it does nothing, and ``metrics.jsonl`` has the same numbers.

    Args:
      directory: of the run; None writes nothing (other processes than the first).
      done: steps that are taken; what an interrupted start had written after them is hidden.
    """

    def __init__(self, directory: Path | None, done: int) -> None:
        self._writer: Any = None
        if directory is None:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(directory / BOARD), purge_step=done + 1 if done else None)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One report."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
