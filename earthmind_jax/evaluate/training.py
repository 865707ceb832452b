"""Training small models for experiments: tokenizer, pipeline and parameters, without a run directory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from earthmind_jax.config import RunConfig
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import Lazy, simulated, training_pipeline
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.evaluate.simulated import OBJECT, SEGMENTATION
from earthmind_jax.models import api
from earthmind_jax.train.run import corpus
from earthmind_jax.train.state import RUN_ONCE
from earthmind_jax.train.step import Step, compile_ahead
from earthmind_jax.types import Params

TASKS = (
    *[SEGMENTATION] * 3, OBJECT, *["object_existence"] * 3, *["hallucination_detection"] * 2, "scene_classification",
    "object_counting", *["spatial_relationship"] * 2, "caption", "region_description",
)  # fmt: skip
"""Tasks of a training scene; each sample keeps ``data.turns`` of its questions."""

CORPUS_SEED, CORPUS = 7_654_321, 300


@dataclass(frozen=True)
class Setup:
    """A run ready to train: configuration with the tokenizer's ids, tokenizer, and scenes made on demand."""

    config: RunConfig
    tokenizer: Tokenizer
    source: Lazy


def setup(config: RunConfig, tokenizer: Tokenizer | None = None) -> Setup:
    """Tokenizer (a new one unless given; always the same) and scenes for ``config``, by its seed."""
    if tokenizer is None:
        texts = corpus(simulated(CORPUS, seed=CORPUS_SEED, tasks=TASKS, lettered=False), CORPUS)
        tokenizer = train_bpe(texts, config.model.lm.vocab)
    config = dataclasses.replace(config, model=with_tokens(config.model, tokenizer))
    data = config.data
    source = simulated(
        config.steps * data.batch_size,
        seed=config.seed,
        tasks=data.tasks or TASKS,
        lettered=False,
        views=data.views,
        **({"cloud": data.sky} if data.sky else {}),
    )
    return Setup(config, tokenizer, source)


def carry(config: RunConfig, params: Params) -> Params:
    """Parameters for the next stage: those there are, and new ones for what the next model has besides."""
    missing = sorted(set(api.shapes(config.model)) - set(params))
    fresh: Params = {}
    if missing:
        new = jax.jit(lambda: api.init(config.model, jax.random.key(config.seed), missing), compiler_options=RUN_ONCE)
        fresh = new()
    return {path: params[path] if path in params else fresh[path] for path in api.shapes(config.model)}


def compile_run(ready: Setup, mesh: Mesh) -> Step:
    """The training step of ``ready``, compiled for its batches; can be done in a thread before there is a state."""
    return compile_ahead(ready.config, mesh, next(training_pipeline(ready.config, ready.source, ready.tokenizer)))
