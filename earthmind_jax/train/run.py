"""A configuration, data and a directory to a training run."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from earthmind_jax import checkpoint
from earthmind_jax.config import RunConfig, one_of, replace_path, require, to_json
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.sources import Source
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import check_batch
from earthmind_jax.distributed.start import agree, leads, together
from earthmind_jax.errors import UserError
from earthmind_jax.train.directory import RESULT
from earthmind_jax.train.loop import fit
from earthmind_jax.train.mixture import read_source
from earthmind_jax.train.result import check_form, write_apart, write_line, write_result
from earthmind_jax.train.start import adopted, starting_params
from earthmind_jax.train.state import TrainState, state_shardings
from earthmind_jax.train.watch import Costs
from earthmind_jax.types import Batch, Params

CORPUS = 400  # conversations that a new tokenizer is trained on


def load_stages(path: str | Path, changes: Sequence[str] = ()) -> tuple[RunConfig, ...]:
    """What ``get_config()`` of a Python file returns, one RunConfig or the stages of a curriculum, with ``key=value``
    changes applied to each.

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
    made = module.get_config()
    stages = made if isinstance(made, tuple) and made else (made,)
    for config in stages:
        if not isinstance(config, RunConfig):
            raise UserError(f"get_config() of {path} returns {type(config).__name__}, not a RunConfig (or several).")
    names = [config.name for config in stages]
    if len(set(names)) < len(names):
        raise UserError(f"The stages of {path} need names of their own, not {', '.join(names)}.")
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"A change is written key=value, not '{change}'.")
        stages = tuple(replace_path(config, key.strip(), value.strip()) for config in stages)
    return stages


def load_config(path: str | Path, changes: Sequence[str] = (), stage: str | None = None) -> RunConfig:
    """One configuration of a file: the stage of that name, or the first; errors as :func:`load_stages`."""
    stages = load_stages(path, changes)
    if stage is None:
        return stages[0]
    one_of("stage", stage, [config.name for config in stages])
    return next(config for config in stages if config.name == stage)


def corpus(source: Source, count: int = CORPUS) -> list[str]:
    """Questions and answers of the first ``count`` samples, and who says them, for a new tokenizer."""
    texts = []
    for i in range(min(count, len(source))):
        for turn in source[i].turns:
            texts += ["user", turn.question, "assistant", turn.answer or ""]
    return texts


def run(
    config: RunConfig,
    out: str | Path,
    *,
    data: Path | None = None,
    data_root: Path = Path(),
    skip_broken: bool = False,
    tokenizer: Path | None = None,
    start: Path | None = None,
    scenes: int = 4096,
    until: int | None = None,
    report_every: int = 10,
    save: str | None = None,
    profile: int = 0,
    costs: Callable[[RunConfig], Costs | None] | None = None,
) -> TrainState:
    """Train (or resume) the run in ``out``.

    Args:
      data, data_root, scenes, skip_broken: as :func:`read_source`.
      tokenizer: directory of one; where there is none, that of ``start``, or a new one.
      start: checkpoint, or a run, whose weights to start from.
      save: form of the result (:mod:`earthmind_jax.train.result`) that is written to ``result/`` at the end.
      profile, costs: for :func:`fit`; the latter made from the configuration with the tokenizer's ids.

    Raises:
      UserError, WorkError: as :func:`prepare` and :func:`fit`.
    """
    require(report_every > 0, f"--report-every must be at least 1, not {report_every}.")
    with together("reading its configuration and data"):
        config, source, words, params = prepare(
            config,
            Path(out),
            data=data,
            data_root=data_root,
            skip_broken=skip_broken,
            tokenizer=tokenizer,
            start=start,
            scenes=scenes,
        )
        if save is not None:
            check_form(save, config.model)
    agree("configuration or tokenizer", to_json(config) + words.inner.backend_tokenizer.to_str())
    agree("number of samples", str(len(source)))
    mesh = make_mesh(config.mesh)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    batches = training_pipeline(config, source, words, **share)
    state = fit(
        config,
        out,
        batches,
        words,
        mesh,
        params=params,
        base=start,
        until=until,
        report_every=report_every,
        profile=profile,
        costs=costs(config) if costs else None,
    )
    if save is not None and int(state.step) >= config.steps:
        with together("writing its result"):
            if leads():
                place = Path(out) / RESULT
                write = write_result if jax.process_count() == 1 else write_apart
                print(f"{place} is there already" if place.exists() else write_line(place, write(out, place, save)))
    return state


def prepare(
    config: RunConfig,
    out: Path,
    *,
    data: Path | None = None,
    data_root: Path = Path(),
    skip_broken: bool = False,
    tokenizer: Path | None = None,
    start: Path | None = None,
    scenes: int = 4096,
) -> tuple[RunConfig, Source, Tokenizer, Params | None]:
    """(configuration with the tokenizer's ids, data, tokenizer, weights to start from) of a run.

    Raises:
      UserError: what cannot be trained as it is asked for: found here, before anything is compiled.
    """
    config = adopted(config, start)
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    source = read_source(config, data_root, data=data, scenes=scenes, skip_broken=skip_broken)
    if (out / checkpoint.TOKENIZER).is_dir():
        words = Tokenizer.load(out / checkpoint.TOKENIZER)
    elif tokenizer is not None or start is not None:
        words = Tokenizer.load(tokenizer if tokenizer is not None else Path(str(start)) / checkpoint.TOKENIZER)
    else:
        words = train_bpe(corpus(source), config.model.lm.vocab)
    config = dataclasses.replace(config, model=with_tokens(config.model, words))
    state_shardings(config, mesh)
    return config, source, words, None if start is None else starting_params(config, start)


def first_batch(config: RunConfig, source: Source, words: Tokenizer) -> Batch:
    """What this process's first step would be trained on."""
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    return next(training_pipeline(config, source, words, **share))
