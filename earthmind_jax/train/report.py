"""What a run tells while it goes: the progress line, ``metrics.jsonl``, and whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from earthmind_jax.train.history import History
from earthmind_jax.train.step import Metrics

Listener = Callable[[int, dict[str, float]], None]


class Reports:
    """Turns the metrics of a step into a report.

    Args:
      samples: of a step, in all processes.
      done, last: the first and the last step of this start of the run.
      listener: called with the step and its values.
    """

    def __init__(
        self, history: History, progress: Progress, samples: int, done: int, last: int, listener: Listener | None
    ) -> None:
        self._history, self._progress, self._samples, self._listener = history, progress, samples, listener
        self._task = progress.add_task("training", total=last, completed=done, terms="compiling", rate="")
        self._clock, self._counted = time.perf_counter(), done

    def add(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Report ``step`` and return its values."""
        values = {name: float(x) for name, x in metrics.items()}
        now = time.perf_counter()
        rate = (step - self._counted) * self._samples / (now - self._clock)
        self._clock, self._counted = now, step
        self._history.add({"step": step, "samples_per_s": round(rate, 2), **values})
        terms = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        self._progress.update(self._task, completed=step, terms=terms, rate=f"{rate:.1f} samples/s")
        if self._listener:
            self._listener(step, values)
        return values


def progress_line(console: Console) -> Progress:
    """Steps done, loss terms, samples/s and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[terms]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
