"""The training loop: resume, step, report, save. Nothing in the loop body waits for the device but the report."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from earthmind_jax.checkpoint import writing
from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.sharding import check_batch, put_batch
from earthmind_jax.distributed.start import leads, together
from earthmind_jax.errors import WorkError
from earthmind_jax.models import api
from earthmind_jax.train import checkpoint
from earthmind_jax.train.state import TrainState, assignment, create, state_shardings
from earthmind_jax.train.step import Step, compile_step
from earthmind_jax.types import Batch, Params


class Source(Protocol):
    """Batches with a position that can be saved and restored exactly."""

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
    console: Console | None = None,
    report_every: int = 10,
    until: int | None = None,
    on_report: Callable[[int, dict[str, float]], None] | None = None,
    step_fn: Callable[[], Step] | None = None,
) -> TrainState:
    """Train to ``config.steps`` (or ``until``), resuming from the latest whole step in ``directory``.

    Progress (loss terms, samples/s, time left) goes to ``console``; every report is a line of ``metrics.jsonl``.

    Args:
      step_fn: gives the step, where it is compiled elsewhere (:func:`compile_ahead`).

    Raises:
      UserError: the batch does not divide over the mesh, or the directory belongs to another run.
      WorkError: a loss is not finite, or a checkpoint could not be written.
    """
    console = (console or Console(stderr=True)) if leads() else Console(quiet=True)
    directory = Path(directory)
    check_batch(config, mesh)
    with together("creating the run's directory"):
        if leads():
            checkpoint.start_run(directory, config, tokenizer)
    console.print(freeze_table(config))
    last = min(config.steps, until or config.steps)
    with jax.set_mesh(mesh), checkpoint.manager(directory, config.keep) as steps:
        done = steps.latest_step()
        if done is None:
            state, shardings = create(config, mesh, params)
            done = 0
        else:
            abstract, shardings = state_shardings(config, mesh)
            state, position = checkpoint.restore_step(steps, done, abstract, shardings)
            source.set_state(position)
            console.print(f"Resumed after step {done}.")
        run_step = step_fn() if step_fn else compile_step(config, mesh, shardings)
        # Virtual CPU devices share a small thread pool: two steps in flight can wait for each other's collectives.
        lockstep = mesh.size > 1 and jax.default_backend() == "cpu"
        reports = directory / "metrics.jsonl" if leads() else os.devnull
        with _progress(console) as progress, writing(directory), open(reports, "a") as log:
            task = progress.add_task("training", total=last, completed=done, terms="compiling", rate="")
            clock, counted = time.perf_counter(), done
            metrics: dict[str, jax.Array] = {}
            for step in range(done + 1, last + 1):
                state, metrics = run_step(state, put_batch(next(source), mesh))
                if lockstep:
                    jax.block_until_ready(metrics)
                if step % report_every == 0 or step == last:
                    values = {k: float(v) for k, v in metrics.items()}
                    if not math.isfinite(values["loss"]):
                        raise WorkError(
                            f"The loss is not finite at step {step}; lower optim.learning_rate or check the data."
                        )
                    now = time.perf_counter()
                    rate = (step - counted) * config.data.batch_size / (now - clock)
                    clock, counted = now, step
                    log.write(json.dumps({"step": step, "samples_per_s": round(rate, 2), **values}) + "\n")
                    log.flush()
                    terms = " ".join(f"{k} {v:.3f}" for k, v in values.items())
                    progress.update(task, completed=step, terms=terms, rate=f"{rate:.1f} samples/s")
                    if on_report:
                        on_report(step, values)
                if step % config.checkpoint_every == 0 or step == last:
                    checkpoint.save_step(steps, state, step, source.get_state())
            steps.wait_until_finished()
            steps.check_for_errors()
    return state


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[terms]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )
