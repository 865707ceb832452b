"""``earthmind train``: a configuration file, data and a directory to a training run."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import jax

from earthmind_jax import checkpoint
from earthmind_jax.config import RunConfig, replace_path, require, to_json
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.sources import Source
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import check_batch
from earthmind_jax.distributed.start import agree, together
from earthmind_jax.errors import UserError
from earthmind_jax.train.loop import fit
from earthmind_jax.train.mixture import read_source
from earthmind_jax.train.result import check_form, write_result
from earthmind_jax.train.state import TrainState, state_shardings
from earthmind_jax.types import Params

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


def corpus(source: Source, count: int = CORPUS) -> list[str]:
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
    data_root: Path | None = None,
    skip_broken: bool = False,
    tokenizer: Path | None = None,
    start: Path | None = None,
    scenes: int = 4096,
    changes: Sequence[str] = (),
    until: int | None = None,
    report_every: int = 10,
    save: str | None = None,
) -> TrainState:
    """Train (or resume) the run in ``out``; see the command's help."""
    require(report_every > 0, f"--report-every must be at least 1, not {report_every}.")
    with together("reading its configuration and data"):
        config, source, words, params = prepare(
            config_path,
            Path(out),
            data=data,
            data_root=data_root,
            skip_broken=skip_broken,
            tokenizer=tokenizer,
            start=start,
            scenes=scenes,
            changes=changes,
        )
        if save is not None:
            check_form(save, config.model)
            if jax.process_count() > 1:
                raise UserError(
                    f"--save needs a single process; run 'earthmind result {out} NEW --form {save}' afterwards."
                )
    agree("configuration or tokenizer", to_json(config) + words.inner.backend_tokenizer.to_str())
    agree("number of samples", str(len(source)))
    mesh = make_mesh(config.mesh)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = training_pipeline(config, source, words, **share)
    state = fit(config, out, batches, words, mesh, params=params, base=start, until=until, report_every=report_every)
    if save is not None and int(state.step) >= config.steps:
        place = Path(out) / "result"
        if place.exists():
            print(f"{place} is there already")
        else:
            print(f"wrote {place}, {write_result(out, place, save):,} bytes")
    return state


def prepare(
    config_path: str | Path,
    out: Path,
    *,
    data: Path | None,
    data_root: Path | None,
    skip_broken: bool,
    tokenizer: Path | None,
    start: Path | None,
    scenes: int,
    changes: Sequence[str],
) -> tuple[RunConfig, Source, Tokenizer, Params | None]:
    """(configuration with the tokenizer's ids, data, tokenizer, weights to start from) of a run.

    Raises:
      UserError: what cannot be trained as it is asked for: found here, before anything is compiled.
    """
    config = load_config(config_path, changes)
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    root = Path(config_path).parent if data_root is None else data_root
    source = read_source(config, root, data=data, scenes=scenes, skip_broken=skip_broken)
    if (out / checkpoint.TOKENIZER).is_dir():
        words = Tokenizer.load(out / checkpoint.TOKENIZER)
    elif tokenizer is not None or start is not None:
        words = Tokenizer.load(tokenizer if tokenizer is not None else Path(str(start)) / checkpoint.TOKENIZER)
    else:
        words = train_bpe(corpus(source), config.model.lm.vocab)
    config = dataclasses.replace(config, model=with_tokens(config.model, words))
    state_shardings(config, mesh)
    params = None
    if start is not None:
        model, params = checkpoint.load(start)
        if model != config.model:
            raise UserError(f"{start} holds another model than {config_path} describes; use its own configuration.")
    return config, source, words, params
