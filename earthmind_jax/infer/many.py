"""Many questions about one image: the image is encoded once, the language part is batched over the questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from earthmind_jax.config import DataConfig, EarthMindConfig
from earthmind_jax.data.collate import Buckets, collate
from earthmind_jax.data.layout import measure
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.infer.answer import Reply, token_grid
from earthmind_jax.infer.engine import Engine, bucket
from earthmind_jax.models import earthmind
from earthmind_jax.types import Batch, Fused, Params

QUESTIONS = (1, 2, 4, 8, 16, 32)  # that go through the model at once; more are taken in turns
DRAWN = 8  # questions whose own pyramids of a pair exist at a time


class Many:
    """The compiled functions of many questions about one image."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._look = jax.jit(partial(_look, engine.config))
        self._fuse = jax.jit(partial(_fuse, engine.config))
        self._masks = jax.jit(partial(_masks, engine.config))

    def compiled(self) -> dict[str, int]:
        """Compiled variants of each function."""
        return {name: getattr(self, f"_{name}")._cache_size() for name in ("look", "fuse", "masks")}

    def answer(
        self, sample: Sample, questions: Sequence[str], buckets: Buckets | None = None, max_new: int = 32
    ) -> list[Reply]:
        """The same replies as to each question by itself (:func:`earthmind_jax.infer.answer.answer`), one mask each.

        The answers of a model whose fusion listens to the question are fused for each of them from the same tokens.
        """
        config, tokenizer, table = self.engine.config, self.engine.tokenizer, buckets or Buckets()
        data = DataConfig(masks_per_sample=1)
        image = collate([sample], config, data, tokenizer, table)
        seen = self._look(self.engine.params, *_pictures(image))
        replies: list[Reply] = []
        for start in range(0, len(questions), QUESTIONS[-1]):
            group = list(questions[start : start + QUESTIONS[-1]])
            count = bucket(len(group), QUESTIONS)
            asked = [*group, *[group[-1]] * (count - len(group))]
            samples = [dataclasses.replace(sample, turns=(Turn(q),)) for q in asked]
            batch = _words(image, [measure(s, config, data, tokenizer, table).prompt for s in samples], config, table)
            fused = self._fuse(
                self.engine.params, batch.tokens, batch.question, *seen[:2], image.optical_valid, image.sar_valid
            )
            made = self.engine.generate(batch, fused, max_new=max_new)
            logits = None
            if made.seg_states.shape[1] and config.grounding is not None:
                logits = np.asarray(self._masks(self.engine.params, *seen[2:], fused, made.seg_states[:, :1]))
            weights = token_grid(fused.weights)
            for row in range(len(group)):
                there = logits is not None and made.seg_valid[row].any()
                replies.append(Reply(made.texts[row], (logits[row],) if there else (), weights[row]))
        return replies


def _pictures(image: Batch) -> tuple[Array | None, ...]:
    return (
        image.optical, image.sar, image.ground_optical, image.ground_sar, image.ground_optical_valid,
        image.ground_sar_valid,
    )  # fmt: skip


def _words(image: Batch, prompts: Sequence, config: EarthMindConfig, table: Buckets) -> Batch:
    """The prompts as one batch, without an image."""
    length = table.fit_text(max(len(p) for p in prompts))

    def stacked(name: str, fill: int | bool) -> np.ndarray:
        rows = [getattr(p, name) for p in prompts]
        return np.stack([np.pad(row, (0, length - len(row)), constant_values=fill) for row in rows])

    return Batch(
        tokens=stacked("tokens", config.tokens.pad),
        loss_mask=stacked("loss_mask", False),
        lengths=np.array([len(p) for p in prompts], np.int32),
        question=stacked("question", False),
        visual_index=stacked("visual_index", -1),
    )


def _look(
    config: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    ground_optical: Array | None,
    ground_sar: Array | None,
    ground_optical_valid: Array | None,
    ground_sar_valid: Array | None,
):
    """Everything about the image that no question changes: tokens of both sensors, and the mask decoder's features."""
    first, second = earthmind.encode_sensors(config, params, optical, sar)
    features, presence = None, None
    if config.grounding is not None:
        grounds = (ground_optical, ground_sar, ground_optical_valid, ground_sar_valid)
        features, presence = earthmind.sensor_features(config, params, *grounds)
    return first, second, features, presence


def _fuse(
    config: EarthMindConfig,
    params: Params,
    tokens: Array,
    question: Array,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
) -> Fused:
    text = earthmind.embed(config, params, tokens)
    images = (optical, sar, optical_valid, sar_valid)
    each = [None if x is None else jnp.broadcast_to(x, (len(tokens), *x.shape[1:])) for x in images]
    return earthmind.fuse(config, params, *each, text, question, training=False)


def _masks(config: EarthMindConfig, params: Params, features, presence: Array | None, fused: Fused, states: Array):
    """Logits [K h w] of K questions' ``[SEG]`` states [K 1 D] on one image."""
    prompts = earthmind.seg_prompt(config, params, states)
    if presence is None:
        return earthmind.ground(config, params, features, prompts.swapaxes(0, 1)).logits[0]
    weights = earthmind.grounding_weights(fused)
    size = min(DRAWN, len(prompts))

    def draw(group: tuple[Array, Array]) -> Array:
        own, words = group
        return earthmind.ground(config, params, earthmind.blend_features(features, presence, own), words).logits[:, 0]

    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (weights, prompts))
    logits = jax.lax.map(draw, groups)
    return logits.reshape(-1, *logits.shape[2:])
