"""The training loop: resume, step, report, save. The device always has a step to work on while the last one is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from orbax.checkpoint import CheckpointManager
from rich.console import Console
from rich.table import Table

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.sharding import check_batch, put_batch
from earthmind_jax.distributed.start import leads, together
from earthmind_jax.models import api
from earthmind_jax.train import checkpoint
from earthmind_jax.train.board import Board
from earthmind_jax.train.by_source import Tally
from earthmind_jax.train.directory import METRICS, held
from earthmind_jax.train.guard import Guard, Taken
from earthmind_jax.train.history import History
from earthmind_jax.train.profile import PROFILED_FROM, Profile
from earthmind_jax.train.report import Listener, Reports, progress_line
from earthmind_jax.train.state import TrainState, assignment, create, state_shardings
from earthmind_jax.train.step import Step, compile_step
from earthmind_jax.train.stop import on_signal
from earthmind_jax.train.watch import Costs, Watch
from earthmind_jax.types import Batch, Params

TALLY = "since the last report"  # beside the position of the input in a saved step


class Source(Protocol):
    """Batches with a position that can be saved and restored exactly.

    One that also has ``last_ids``, the ids of the samples of the last batch in its order, lets a failure name them; the
    ``names`` of the sources of a mixture are what reports call them.
    """

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


def freeze_table(config: RunConfig) -> Table:
    """The freeze table for printing: pattern, state, arrays, parameters."""
    table = Table("pattern", "state", "arrays", "parameters", title="parameters by group")
    for pattern, state, arrays, count in assignment(config).table(api.shapes(config.model)):
        table.add_row(pattern, state, str(arrays), f"{count:,}")
    return table


def fit(
    config: RunConfig,
    directory: str | Path,
    source: Source,
    tokenizer: Any,
    mesh: Mesh,
    *,
    params: Params | None = None,
    base: Path | None = None,
    console: Console | None = None,
    report_every: int = 10,
    until: int | None = None,
    on_report: Listener | None = None,
    step_fn: Callable[[], Step] | None = None,
    costs: Costs | None = None,
    profile: int = 0,
) -> TrainState:
    """Train to ``config.steps`` (or ``until``), resuming from the latest whole step in ``directory``.

    Progress (loss terms, samples/s, time left) goes to ``console``; every report is a line of ``metrics.jsonl``.
    SIGTERM or Ctrl-C ends the run after the step at hand, saved: the state returned is then of an earlier step.

    Args:
      params: weights to start from; random ones where None.
      base: checkpoint directory that holds ``params``: its frozen weights are referred to instead of written again.
      step_fn: gives the step, where it is compiled elsewhere (:func:`compile_ahead`).
      costs: what MFU is measured by; without them it is not reported.
      profile: steps, from the third on, of which a trace is written to ``profile/``.

    Raises:
      UserError: the batch does not divide over the mesh, the directory belongs to another run or is in use, or the
        frozen weights are not those that the run began with.
      WorkError: a loss is not finite or diverged, or a checkpoint could not be written.
    """
    console = (console or Console(stderr=True)) if leads() else Console(quiet=True)
    directory = Path(directory)
    check_batch(config, mesh)
    last = min(config.steps, until or config.steps)
    with held(directory), on_signal() as stop, jax.set_mesh(mesh):
        with together("creating the run's directory"):
            if leads():
                checkpoint.start_run(directory, config, tokenizer)
        console.print(freeze_table(config))
        with checkpoint.manager(directory, config.keep, config.keep_period) as steps:
            tally = Tally(getattr(source, "names", ()))
            state, shardings, done = _begin(config, directory, source, mesh, steps, params, base, tally)
            if done:
                console.print(f"Resumed after step {done}.")
            run_step = step_fn() if step_fn else compile_step(config, mesh, shardings)
            metrics_file = directory / METRICS if leads() else None
            with (
                History(metrics_file, done) as history,
                Board(directory if leads() else None, done) as board,
                progress_line(console) as progress,
                Profile(directory, done + PROFILED_FROM, profile) as profiler,
            ):
                watch = Watch(config.data.batch_size, jax.process_count(), costs)
                reports = Reports(history, board, progress, watch, tally, done, last, on_report)
                guard = Guard(config, mesh, history.losses())
                for step in range(done + 1, last + 1):
                    profiler.at(step)
                    taken, state = _take(step, run_step, state, source, mesh, watch)
                    tally.took(taken.metrics)
                    guard.watch(taken, state)
                    if step % report_every == 0 or step == last:
                        guard.settle(state)
                        checkpoint.check_saves(steps)
                        guard.report(step, reports.add(step, taken.metrics)["loss"])
                    asked = stop.after(step)
                    ends = asked or step == last
                    if ends or step % config.checkpoint_every == 0:
                        guard.settle(state)
                        if ends or not guard.doubtful:
                            history.sync()
                            position = source.get_state() | ({TALLY: counted} if (counted := tally.get_state()) else {})
                            checkpoint.save_step(steps, state, step, position)
                    if asked:
                        break
        if (reached := int(state.step)) < last:
            where = f"Stopped after step {reached} of {last}, which is saved in {directory}"
            console.print(f"{where}; the same command again goes on.", soft_wrap=True)
    return state


def _begin(
    config: RunConfig,
    directory: Path,
    source: Source,
    mesh: Mesh,
    steps: CheckpointManager,
    params: Params | None,
    base: Path | None,
    tally: Tally,
) -> tuple[TrainState, TrainState, int]:
    """(state, its shardings, steps done): of the latest whole step, or new."""
    done = steps.latest_step()
    abstract, shardings = state_shardings(config, mesh)
    if done is None:
        checkpoint.forget_base(directory)
        if base is not None:
            checkpoint.refer_to_base(directory, base, abstract)
        return *create(config, mesh, params), 0
    state, position = checkpoint.restore_step(steps, done, abstract, shardings)
    tally.set_state(position.pop(TALLY, {}))  # steps of earlier versions have none
    source.set_state(position)
    return state, shardings, done


def _take(
    step: int, run_step: Step, state: TrainState, source: Source, mesh: Mesh, watch: Watch
) -> tuple[Taken, TrainState]:
    """Start a step on the next batch."""
    before = time.perf_counter()
    read = next(source)
    watch.took(read, time.perf_counter() - before)
    batch = put_batch(read, mesh)
    ids = tuple(getattr(source, "last_ids", ()))
    state, metrics = run_step(state, batch)
    # Virtual CPU devices share a small thread pool: two steps in flight can wait for each other's collectives.
    if mesh.size > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(metrics)
    return Taken(step, metrics, batch, ids), state
