"""What a run tells while it goes: the progress line, ``metrics.jsonl``, TensorBoard, and whoever listens."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from earthmind_jax.train.board import Board
from earthmind_jax.train.by_source import PREFIX, SAMPLES, Tally
from earthmind_jax.train.history import History
from earthmind_jax.train.step import Metrics
from earthmind_jax.train.watch import Watch

Listener = Callable[[int, dict[str, float]], None]


class Reports:
    """Turns the metrics of a step into a report.

    Args:
      done, last: the first and the last step of this start of the run.
      listener: called with the step and its values.
    """

    def __init__(
        self,
        history: History,
        board: Board,
        progress: Progress,
        watch: Watch,
        tally: Tally,
        done: int,
        last: int,
        listener: Listener | None,
    ) -> None:
        self._history, self._board, self._progress = history, board, progress
        self._watch, self._tally = watch, tally
        self._task = progress.add_task("training", total=last, completed=done, terms="compiling", rate="")
        self._listener = listener

    def add(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Report ``step`` and return its values; those by source are of all steps since the last report."""
        values = {name: float(x) for name, x in metrics.items() if not name.startswith(PREFIX)}
        speed, sources = self._watch.report(), self._tally.report()
        self._history.add({"step": step, **speed, **values, **sources})
        self._board.add(step, {**speed, **values, **sources})
        terms = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        used = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        rate = f"{speed['samples_per_s']:.1f} samples/s{used}, waits {100 * speed['input_wait']:.0f} %"
        shares = [f"{name.partition('/')[2]} {x}" for name, x in sources.items() if name.startswith(f"{SAMPLES}/")]
        terms += f" ({', '.join(shares)})" if shares else ""
        self._progress.update(self._task, completed=step, terms=terms, rate=rate)
        if self._listener:
            self._listener(step, values)
        return values


def progress_line(console: Console) -> Progress:
    """Steps done, loss terms, speed and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[terms]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
