"""``earthmind train``: a configuration file, data and a directory to a training run."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from earthmind_jax import checkpoint
from earthmind_jax.config import RunConfig, replace_path
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import Lazy, simulated, training_pipeline
from earthmind_jax.data.records import Record, read_jsonl
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError
from earthmind_jax.train.directory import RESULT
from earthmind_jax.train.loop import fit
from earthmind_jax.train.result import check_form, write_result
from earthmind_jax.train.state import TrainState

CORPUS = 400  # conversations that a new tokenizer is trained on


def load_config(path: str | Path, changes: Sequence[str] = ()) -> RunConfig:
    """The RunConfig of a Python file's ``get_config()``, with ``key=value`` changes applied.

    Raises:
      UserError: the file is missing or has no such function, or a key does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Configuration file {path} does not exist.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"Configuration file {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError) as error:
        raise UserError(f"Configuration file {path} cannot be run: {error}.") from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"Configuration file {path} has no function get_config().")
    config = module.get_config()
    if not isinstance(config, RunConfig):
        raise UserError(f"get_config() of {path} returns {type(config).__name__}, not a RunConfig.")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"A change is written key=value, not '{change}'.")
        config = replace_path(config, key.strip(), value.strip())
    return config


def corpus(source: Sequence[Any] | Lazy, count: int = CORPUS) -> list[str]:
    """Questions and answers of the first ``count`` samples, and who says them, for a new tokenizer."""
    texts = []
    for i in range(min(count, len(source))):
        for turn in source[i].turns:
            texts += ["user", turn.question, "assistant", turn.answer or ""]
    return texts


def run(
    config_path: str | Path,
    out: str | Path,
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    start: Path | None = None,
    scenes: int = 4096,
    changes: Sequence[str] = (),
    until: int | None = None,
    save: str | None = None,
) -> TrainState:
    """Train (or resume) the run in ``out``; see the command's help."""
    config = load_config(config_path, changes)
    if save is not None:
        check_form(save, config.model)
        if jax.process_count() > 1:
            raise UserError(
                f"--save needs a single process; run 'earthmind result {out} NEW --form {save}' afterwards."
            )
    source: list[Record] | Lazy = read_jsonl(data) if data is not None else simulated(scenes, config.seed)
    out = Path(out)
    if (out / checkpoint.TOKENIZER).is_dir():
        words = Tokenizer.load(out / checkpoint.TOKENIZER)
    elif tokenizer is not None or start is not None:
        words = Tokenizer.load(tokenizer if tokenizer is not None else Path(str(start)) / checkpoint.TOKENIZER)
    else:
        words = train_bpe(corpus(source), config.model.lm.vocab)
    config = dataclasses.replace(config, model=with_tokens(config.model, words))
    params = None
    if start is not None:
        model, params = checkpoint.load(start)
        if model != config.model:
            raise UserError(f"{start} holds another model than {config_path} describes; use its own configuration.")
    mesh = make_mesh(config.mesh)
    batches = training_pipeline(config, source, words, process=jax.process_index(), processes=jax.process_count())
    state = fit(config, out, batches, words, mesh, params=params, base=start, until=until)
    if save is not None and int(state.step) >= config.steps:
        place = out / RESULT
        if place.exists():
            print(f"{place} is there already")
        else:
            print(f"wrote {place}, {write_result(out, place, save):,} bytes")
    return state
