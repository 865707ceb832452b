"""What each step of an answer takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass
class Times:
    """Seconds of each step of one run, and what compiling took on top, which happens once for each shape."""

    steps: dict[str, float] = field(default_factory=dict)
    compiling: float = 0.0


class Timed:
    """An engine that notes how long each step takes.

    A call that had to compile is repeated once: the repetition is the step's time, and the rest was compiling.
    """

    def __init__(self, engine: Any) -> None:
        self._engine, self.times = engine, Times()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode(self, *args: Any, **options: Any) -> Any:
        return self._time("encode", *args, **options)

    def generate(self, *args: Any, **options: Any) -> Any:
        return self._time("generate", *args, **options)

    def masks(self, *args: Any, **options: Any) -> Any:
        return self._time("masks", *args, **options)

    def _time(self, step: str, *args: Any, **options: Any) -> Any:
        before = self._engine.compiled()
        result, seconds = self._once(step, *args, **options)
        if self._engine.compiled() != before:
            first = seconds
            result, seconds = self._once(step, *args, **options)
            self.times.compiling += max(0.0, first - seconds)
        self.times.steps[step] = self.times.steps.get(step, 0.0) + seconds
        return result

    def _once(self, step: str, *args: Any, **options: Any) -> tuple[Any, float]:
        began = time.perf_counter()
        result = getattr(self._engine, step)(*args, **options)
        jax.block_until_ready(result)
        return result, time.perf_counter() - began
