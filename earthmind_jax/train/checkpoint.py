"""Training checkpoints: orbax steps inside the run's directory (the layout is in :mod:`earthmind_jax.checkpoint`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from earthmind_jax.checkpoint import CONFIG, RUN, SOURCE, STEPS, TOKENIZER, damaged, write_text, writing
from earthmind_jax.config import RunConfig, to_json
from earthmind_jax.errors import UserError
from earthmind_jax.train.state import TrainState


def manager(directory: str | Path, keep: int | None) -> ocp.CheckpointManager:
    """Orbax manager of a run's steps; saving is asynchronous and a step appears only when it is whole."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
    return ocp.CheckpointManager(Path(directory).absolute() / STEPS, options=options)


def start_run(directory: str | Path, config: RunConfig, tokenizer: Any) -> None:
    """Create the run's directory with everything but the weights.

    Raises:
      UserError: it holds a run with another configuration.
    """
    directory = Path(directory).absolute()
    text = to_json(config)
    if (directory / RUN).is_file():
        if json.loads((directory / RUN).read_text()) != json.loads(text):
            raise UserError(f"{directory} holds a run with another configuration; choose another directory.")
        return
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(directory / TOKENIZER)
        write_text(directory / SOURCE, json.dumps({"trained": config.name, "seed": config.seed}, indent=2))
        write_text(directory / CONFIG, to_json(config.model))
        write_text(directory / RUN, text)


def save_step(steps: ocp.CheckpointManager, state: TrainState, step: int, position: dict[str, Any]) -> None:
    """Save the state and the input position of ``step`` (asynchronously).

    Raises:
      WorkError: this or an earlier save failed.
    """
    with writing(Path(str(steps.directory))):
        steps.check_for_errors()
        tree = {
            "step": state.step,
            "trainable": state.trainable,
            "frozen": state.frozen,
            "opt": state.opt,
            "rng": state.rng,
        }
        steps.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), data=ocp.args.JsonSave(position)))


def restore_step(
    steps: ocp.CheckpointManager, step: int, abstract: TrainState, shardings: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """State of ``step`` placed as ``shardings`` say (any mesh), and the input position."""
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    tree = {
        "step": placed.step,
        "trainable": placed.trainable,
        "frozen": placed.frozen,
        "opt": placed.opt,
        "rng": placed.rng,
    }
    with damaged(Path(str(steps.directory))):
        out = steps.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree), data=ocp.args.JsonRestore())
        )
    return TrainState(**out["state"]), out["data"]
