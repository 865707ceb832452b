"""Training checkpoints: orbax steps inside the run's directory (the layout is in :mod:`earthmind_jax.checkpoint`).

A step holds what changes: trained weights, optimiser, random state, input position. Frozen weights are written once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from earthmind_jax.checkpoint import (
    CONFIG,
    RUN,
    SOURCE,
    STEPS,
    TOKENIZER,
    TRAINED,
    WEIGHTS,
    damaged,
    made_beside,
    read,
    stored,
    trained_weights,
    write_text,
    writing,
)
from earthmind_jax.config import RunConfig, from_dict, to_dict, to_json
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.frozen import BASE, REFERENCE, Base
from earthmind_jax.train.directory import differences, remove_leftovers
from earthmind_jax.train.state import TrainState
from earthmind_jax.types import Params

STATE, POSITION = "state", "data"  # items of a step beside the trained weights


@contextlib.contextmanager
def manager(directory: str | Path, keep: int | None, keep_period: int = 0) -> Iterator[ocp.CheckpointManager]:
    """Orbax manager of a run's steps; saving is asynchronous and a step appears only when it is whole.

    What an interrupted save left is removed. At the end a last save is waited for.

    Args:
      keep: the newest steps to keep; None reads alone.
      keep_period: besides, steps that are multiples of this (0: none).

    Raises:
      WorkError: a save failed.
    """
    directory = Path(directory).absolute()
    policies = ocp.checkpoint_managers
    preserved = [policies.LatestN(keep), *([policies.EveryNSteps(keep_period)] if keep_period else [])]
    options = ocp.CheckpointManagerOptions(
        create=False,
        cleanup_tmp_directories=keep is not None,
        preservation_policy=policies.AnyPreservationPolicy(preserved),
    )
    with writing(directory):
        if keep is not None:
            (directory / STEPS).mkdir(parents=True, exist_ok=True)  # here, since orbax would fail at the first save
        steps = ocp.CheckpointManager(directory / STEPS, options=options)
    with _told_once():
        try:
            yield steps
            with writing(directory):
                steps.wait_until_finished()
                steps.check_for_errors()
        except BaseException:
            # The first failure is the one to tell: closing after a failed save only reports it again.
            with contextlib.suppress(Exception):
                steps.close()
            _remove_unfinished(directory / STEPS)
            raise
        with writing(directory):
            steps.close()


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """A failed save is told in one sentence by the run; its threads would print the same several times before."""
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def quietly(problem: Any) -> None:
        # Of TensorStore's threads, whose writes were still under way when orbax gave up.
        if str(problem.exc_value) != "Event loop is closed":
            hook(problem)

    logger.setLevel(logging.CRITICAL)
    # For good, since asyncio tells of a task when the last reference to it goes, which may be at the very end.
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
    sys.unraisablehook = quietly
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()


def start_run(directory: str | Path, config: RunConfig, tokenizer: Any) -> None:
    """Create the run's directory with everything but the weights, or see that it is a run of this configuration.

    Raises:
      UserError: it holds a run with another configuration.
    """
    directory = Path(directory).absolute()
    if jax.process_index() > 0:
        return
    if (directory / RUN).is_file():
        differing = differences(_noted(directory / RUN), to_dict(config))
        if differing:
            raise UserError(
                f"{directory} holds a run with another configuration ({'; '.join(differing)}); set the same, or choose "
                "another directory."
            )
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        if not (directory / RUN).is_file():
            shutil.rmtree(directory / TOKENIZER, ignore_errors=True)
            with made_beside(directory / TOKENIZER) as place:
                tokenizer.save(place)
            write_text(directory / SOURCE, json.dumps({"trained": config.name, "seed": config.seed}, indent=2))
            write_text(directory / CONFIG, to_json(config.model))
        write_text(directory / RUN, to_json(config))


def save_step(steps: ocp.CheckpointManager, state: TrainState, step: int, position: dict[str, Any]) -> None:
    """Save the state and the input position of ``step`` (asynchronously), before the first step the frozen weights.

    Raises:
      WorkError: this or an earlier save failed.
    """
    directory = Path(str(steps.directory)).parent
    with writing(directory):
        steps.check_for_errors()
        if state.frozen and not (directory / BASE / REFERENCE).is_file():
            _write_base(directory, state.frozen)
        items = {
            TRAINED: ocp.args.StandardSave(state.trainable),
            STATE: ocp.args.StandardSave(_rest(state)),
            POSITION: ocp.args.JsonSave(position),
        }
        if not steps.save(step, args=ocp.args.Composite(**items)):
            raise WorkError(f"Could not write step {step} to {directory}: step {steps.latest_step()} is there already.")


def check_saves(steps: ocp.CheckpointManager) -> None:
    """Raise a WorkError if a save in the background failed."""
    with writing(Path(str(steps.directory)).parent):
        steps.check_for_errors()


def restore_step(
    steps: ocp.CheckpointManager, step: int, abstract: TrainState, shardings: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """State of ``step`` placed as ``shardings`` say (any mesh), and the input position.

    Raises:
      UserError: something cannot be read, or the frozen weights are not what they were.
    """
    directory = Path(str(steps.directory)).parent
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    frozen: Params = {}
    if placed.frozen:
        base = Base.read(directory)
        _check_together(base)
        frozen = read(base.weights, placed.frozen, base.weights)
    items = {
        TRAINED: ocp.args.StandardRestore(placed.trainable),
        STATE: ocp.args.StandardRestore(_rest(placed)),
        POSITION: ocp.args.JsonRestore(),
    }
    with damaged(Path(str(steps.directory))):
        out = steps.restore(step, args=ocp.args.Composite(**items))
    return TrainState(trainable=out[TRAINED], frozen=frozen, **out[STATE]), out[POSITION]


def refer_to_base(directory: Path, start: Path, state: TrainState) -> None:
    """Note that the frozen weights of the run are those of the checkpoint ``start``: a copy would change nothing.

    Of another run, or its adapters, they are those of its base, if that run left all as it was that this one freezes;
    otherwise nothing is noted (its steps come and go), and the run writes its own.

    Args:
      state: of the run; shapes are enough.
    """
    if jax.process_index() == 0 and state.frozen:
        base = None
        with writing(directory):
            if (start / WEIGHTS).is_dir():
                base = Base.of(directory, start / WEIGHTS)
            elif (start / BASE / REFERENCE).is_file():
                base = _base_of(directory, start, state)
            if base is not None:
                write_text(directory / BASE / REFERENCE, base.to_json())
    wait_for_all("base noted")


def _base_of(directory: Path, start: Path, state: TrainState) -> Base | None:
    """The base of the run ``start`` where it holds the frozen weights of ``state``; its hashes were just checked."""
    base, place = Base.read(start), trained_weights(start)
    learnt = {} if place is None else stored(place, start)
    there = stored(base.weights, start)

    def left(path: str) -> bool:
        if path not in learnt:
            return path in there
        # Rows of a vocabulary that went on learning are no part of what is frozen.
        rows = state.trainable.get(path)
        whole, before = state.frozen[path].size, learnt[path].size
        return path in there and rows is not None and before <= rows.size < whole

    return dataclasses.replace(base, run=directory.resolve()) if all(map(left, state.frozen)) else None


def forget_base(directory: Path) -> None:
    """Remove what is noted or half-written of a base: before the first step it may be that of another start."""
    if jax.process_index() == 0:
        with writing(directory):
            shutil.rmtree(directory / BASE, ignore_errors=True)
    wait_for_all("base forgotten")


def wait_for_all(what: str) -> None:
    """Wait for all processes; with one there is nothing to wait for."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _write_base(directory: Path, frozen: Params) -> None:
    """The note comes last: without it there is no base."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / BASE / WEIGHTS, frozen, force=True)
    if jax.process_index() == 0:
        write_text(directory / BASE / REFERENCE, Base.of(directory, directory / BASE / WEIGHTS).to_json())
    wait_for_all("base written")


def _check_together(base: Base) -> None:
    """Each process hashes its share of the files, and all of them learn of a difference."""
    problem = base.problem(jax.process_index(), jax.process_count())
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(problem is not None)).any():
        problem = problem or f"The frozen weights in {base.weights} have changed; another process says which."
    if problem is not None:
        raise UserError(problem)


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt": state.opt, "rng": state.rng}


def _remove_unfinished(steps: Path) -> None:
    """A failed save frees what it took (orbax writes below a name of its own and renames it at the end)."""
    if jax.process_index() == 0:
        for path in steps.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _noted(path: Path) -> Any:
    """The configuration in ``path``; fields that it does not have yet have their defaults."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or choose another directory.") from error
    try:
        return to_dict(from_dict(RunConfig, values))
    except UserError:  # of another version: its own fields are what differs
        return values
