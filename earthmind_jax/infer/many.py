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
from earthmind_jax.infer.compiled import Decoding, encode, prefilled
from earthmind_jax.infer.engine import Engine, bucket
from earthmind_jax.models import earthmind
from earthmind_jax.models.decoder import init_cache
from earthmind_jax.types import Batch, Fused, KVCache, Params

QUESTIONS = (1, 2, 4, 8, 16, 32)  # that go through the model at once; more are taken in turns
TAILS = (16, 32, 64, 128, 256, 512)  # tokens of a question behind what all have in common
PLAIN_ROPES = ("default", "linear")  # whose tables do not depend on how long the prompt is
DRAWN = 8  # questions whose own pyramids of a pair exist at a time


class Many:
    """The compiled functions of many questions about one image."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._look = jax.jit(partial(_look, engine.config))
        self._fuse = jax.jit(partial(_fuse, engine.config))
        self._begin = jax.jit(partial(_begin, engine.config), static_argnames=("capacity", "size"))
        self._masks = jax.jit(partial(_masks, engine.config))

    def compiled(self) -> dict[str, int]:
        """Compiled variants of each function."""
        return {name: getattr(self, f"_{name}")._cache_size() for name in ("look", "fuse", "begin", "masks")}

    def answer(
        self, sample: Sample, questions: Sequence[str], buckets: Buckets | None = None, max_new: int = 32
    ) -> list[Reply]:
        """The same replies as to each question by itself (:func:`earthmind_jax.infer.answer.answer`), one mask each.

        Where fusion may listen to the question, that is for a pair, the tokens are fused anew for each of them. Of one
        sensor all questions read the same tokens, and the language model reads them once, too.
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
            shared = self._shared(batch) if image.optical is None or image.sar is None else 0
            begin = partial(self._tails, batch, fused, shared, table) if shared else None
            made = self.engine.generate(batch, fused, max_new=max_new, begin=begin)
            logits = None
            if made.seg_states.shape[1] and config.grounding is not None:
                logits = np.asarray(self._masks(self.engine.params, *seen[2:], fused, made.seg_states[:, :1]))
            weights = token_grid(fused.weights)
            for row in range(len(group)):
                there = logits is not None and made.seg_valid[row].any()
                replies.append(Reply(made.texts[row], (logits[row],) if there else (), weights[row]))
        return replies

    def _shared(self, batch: Batch) -> int:
        """Leading positions that are the same in all prompts; each has at least one of its own behind them."""
        if self.engine.config.lm.rope.kind not in PLAIN_ROPES:
            return 0
        same = (batch.tokens == batch.tokens[0]).all(0) & (batch.visual_index == batch.visual_index[0]).all(0)
        return min(int(np.argmin([*same, False])), int(batch.lengths.min()) - 1)

    def _tails(self, batch: Batch, fused: Fused, shared: int, table: Buckets, size: int) -> Decoding:
        """The prompts prefilled: what they share once, and then the rest of each."""
        tokens, index, lengths = batch.tokens, batch.visual_index, batch.lengths - shared
        head, tail = table.fit_text(shared), bucket(int(lengths.max()), TAILS)

        def cut(rows: np.ndarray, start: int, length: int, fill: int) -> np.ndarray:
            rows = rows[:, start : start + length]
            return np.pad(rows, ((0, 0), (0, length - rows.shape[1])), constant_values=fill)

        pad = self.engine.config.tokens.pad
        return self._begin(
            self.engine.params, cut(tokens[:1, :shared], 0, head, pad), cut(index[:1, :shared], 0, head, -1),
            np.array([shared], np.int32), cut(tokens, shared, tail, pad), cut(index, shared, tail, -1), lengths,
            fused.tokens[:1], capacity=max(tokens.shape[1], head) + size, size=size,
        )  # fmt: skip


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
    images = (optical, sar, optical_valid, sar_valid)
    first, second, *valid = (None if x is None else jnp.broadcast_to(x, (len(tokens), *x.shape[1:])) for x in images)
    return encode(config, params, tokens, question, None, None, *valid, seen=(first, second))


def _begin(
    config: EarthMindConfig,
    params: Params,
    head: Array,
    head_index: Array,
    shared: Array,
    tokens: Array,
    index: Array,
    lengths: Array,
    visual: Array,
    *,
    capacity: int,
    size: int,
) -> Decoding:
    count, rows = len(tokens), visual.reshape(1, -1, visual.shape[-1])
    embeds = earthmind.place(earthmind.embed(config, params, head), rows, head_index)
    cache = init_cache(config.lm, 1, capacity, config.precision.compute)
    cache = earthmind.language(config, params, embeds, shared, cache=cache, fresh=True).cache
    assert cache is not None
    cache = KVCache(*(jnp.repeat(x, count, axis=axis) for x, axis in ((cache.k, 1), (cache.v, 1), (cache.length, 0))))
    rows = jnp.broadcast_to(rows, (count, *rows.shape[1:]))
    embeds = earthmind.place(earthmind.embed(config, params, tokens), rows, index)
    out = earthmind.language(config, params, embeds, lengths, cache=cache)
    return prefilled(config, params, out, lengths, size)


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
