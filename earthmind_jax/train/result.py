"""What a training run leaves behind: everything, the adapters alone, or everything with the adapters folded in."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp

from earthmind_jax import checkpoint
from earthmind_jax.checkpoint import CONFIG, SOURCE, TOKENIZER, TRAINED
from earthmind_jax.config import EarthMindConfig, one_of, to_json
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.frozen import BASE, REFERENCE, Base
from earthmind_jax.models import api
from earthmind_jax.types import Params

FORMS = ("full", "adapters", "merged")


def write_result(run: str | Path, out: str | Path, form: str) -> int:
    """Write the trained model of ``run`` (a run, or an earlier result) to the new directory ``out``.

    Every form is a checkpoint directory that ``load`` reads.

    Args:
      form: ``full``, all weights; ``adapters``, the trained weights alone (no optimiser), small, which need their base
        where it lies; ``merged``, all weights with LoRA folded into the kernels (:func:`api.merge_lora`).

    Returns:
      Bytes written.

    Raises:
      UserError: ``out`` exists, ``run`` holds no weights, or has no such form.
      WorkError: ``out`` could not be written; nothing is left of it.
    """
    run, out = Path(run).absolute(), Path(out).absolute()
    checkpoint.refuse_existing(out)
    config = checkpoint.read_config(run)
    check_form(form, config)
    if form == "adapters":
        _write_adapters(run, out, config)
    else:
        config, params = checkpoint.load(run)
        if form == "merged":
            config, params = merged(config, params)
        checkpoint.save(out, config, params, Tokenizer.load(run / TOKENIZER), _source(run, form))
    return _bytes(out)


def write_apart(run: str | Path, out: str | Path, form: str) -> int:
    """:func:`write_result` in a process of its own, for one of several processes that train together: in them, orbax
    reads and writes with all at once, and the devices are full. The new one has the CPU alone, and all of the weights.

    Raises:
      WorkError: it did not succeed.
    """
    code = "from earthmind_jax.cli import main; main()"
    line = [sys.executable, "-c", code, "result", str(run), str(out), "--form", form]
    made = subprocess.run(line, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)
    if made.returncode:
        reason = (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]
        raise WorkError(f"{out} was not written ({reason}); the run is whole: try 'earthmind result {run} NEW'.")
    return _bytes(Path(out))


def write_line(out: str | Path, size: int) -> str:
    """What is said of a result that was written."""
    return f"wrote {out}, {size:,} bytes"


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def check_form(form: str, config: EarthMindConfig) -> None:
    """Raise a UserError for a form that there is not, or not of this model."""
    one_of("form", form, FORMS)
    if form == "merged" and config.lm.lora is None:
        raise UserError("The model has no LoRA adapters (lm.lora) to merge; the form 'full' is the whole model.")


def merged(config: EarthMindConfig, params: Params) -> tuple[EarthMindConfig, Params]:
    """The model without adapters that computes what the adapted one does; kernels keep their dtype."""
    plain = dataclasses.replace(config, lm=dataclasses.replace(config.lm, lora=None))
    return plain, api.merge_lora(params, config.lm.lora)


def _write_adapters(run: Path, out: Path, config: EarthMindConfig) -> None:
    place = checkpoint.trained_weights(run)
    if place is None:
        raise UserError(f"{run} holds no trained weights of its own: name the directory of a training run.")
    if not (run / BASE / REFERENCE).is_file():
        raise UserError(f"All weights of {run} were trained, so there is no base beside them; use the form 'full'.")
    base = Base.read(run)
    base.check()
    moved = dataclasses.replace(base, run=out.parent.resolve() / out.name)
    trained = checkpoint.read(place, checkpoint.placed(checkpoint.stored(place, run)), run)
    with checkpoint.writing(out), checkpoint.made_beside(out) as beside:
        checkpoint.write_text(beside / CONFIG, to_json(config))
        checkpoint.write_text(beside / SOURCE, json.dumps(_source(run, "adapters"), indent=2))
        shutil.copytree(run / TOKENIZER, beside / TOKENIZER)
        checkpoint.write_text(beside / BASE / REFERENCE, moved.to_json())
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(beside / TRAINED, trained)


def _source(run: Path, form: str) -> dict[str, object]:
    """What ``run`` came from, and what was made of it."""
    source = run / SOURCE
    before = json.loads(source.read_text()) if source.is_file() else {}
    return {**before, "result of": run.name, "form": form}
