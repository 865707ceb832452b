"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

from pathlib import Path

import jax

PROFILE = "profile"
PROFILED_FROM = 3  # the first step compiles, and the second may still wait for the pipeline


class Profile:
    """Traces ``count`` steps of this process from step ``first`` on into ``profile/`` of the run's directory."""

    def __init__(self, directory: Path, first: int, count: int) -> None:
        self._place, self._first, self._count = str(directory / PROFILE), first, count
        self._runs = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def at(self, step: int) -> None:
        """``step`` is about to start."""
        if self._count and step == self._first:
            jax.profiler.start_trace(self._place)
            self._runs = True
        elif step == self._first + self._count:
            self._stop()

    def _stop(self) -> None:
        if self._runs:
            self._runs = False
            jax.profiler.stop_trace()
