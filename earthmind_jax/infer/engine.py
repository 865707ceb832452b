"""The four compiled functions of inference: encode, prefill, decode and masks, each with its own buckets.

Shapes come from the bucket table that training pads to, so a session compiles one variant for each bucket it uses and
no more (:meth:`Engine.compiled` counts them). The key/value cache is donated from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.pointed import padded
from earthmind_jax.data.prompts import get_template
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.infer.kept import Kept, capacity
from earthmind_jax.models import earthmind
from earthmind_jax.models.decoder import init_cache
from earthmind_jax.ops import sampling
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.types import Batch, Fused, ImageFeatures, KVCache, LmOutput, Params, VisualPrompts

Seen = tuple[Array | None, Array | None]
"""Visual tokens of the optical and the SAR image before fusion, [B I N D] each; None for a sensor that is missing."""

Pyramids = tuple[ImageFeatures, Array | None]
"""What :func:`earthmind_jax.models.earthmind.sensor_features` makes: features, and which sensors are to be blended."""

NEW_TOKENS = (16, 64, 256, 1024, 2048)  # buffer sizes of one answer
MASKS = (1, 2, 4, 8, 16, 32)  # [SEG] slots of one sample
STRIDE = 16  # tokens between looks at the text, for stop words that are not one token


def bucket(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest of ``sizes`` that holds ``size`` (the size itself beyond the table)."""
    return next((s for s in sizes if s >= size), size)


@struct.dataclass
class Decoding:
    """State of the decoding loop.

    ``token`` [B] is the next token to feed, ``ids`` [B N] those fed so far (pad behind the end), ``hidden`` [B N D] the
    state each of them gave, ``logits`` [B N V] (or None) the scores from which each was chosen.
    """

    step: Array
    token: Array
    cache: KVCache
    done: Array
    ids: Array
    hidden: Array
    scores: Array
    logits: Array | None


@dataclass(frozen=True)
class Generated:
    """What one batch produced: ``ids`` a list of token lists (stop token excluded), ``texts``, ``seg_states`` [B M D]
    with ``seg_valid`` [B M], ``hidden`` [B N D] of the generated tokens, and where asked for ``logits`` [B N V] and the
    cache ``kept`` for a further turn."""

    ids: list[list[int]]
    texts: list[str]
    seg_states: Array
    seg_valid: np.ndarray
    hidden: Array
    logits: Array | None = None
    kept: Kept | None = None


class Engine:
    """Runs batches of prompts: :meth:`encode`, :meth:`generate`, :meth:`masks`."""

    def __init__(self, config: EarthMindConfig, params: Params, tokenizer: Tokenizer) -> None:
        self.config, self.params, self.tokenizer = config, params, tokenizer
        words = get_template(config.template).stop_words
        ids = [tokenizer.encode(word) for word in words]
        self.stop_ids = tuple(
            {i[0] for i in ids if len(i) == 1} | ({config.tokens.eos} if config.tokens.eos >= 0 else set())
        )
        self.stop_words = tuple(word for word, i in zip(words, ids, strict=True) if len(i) > 1)
        self._encode = jax.jit(partial(_encode, config))
        self._see = jax.jit(partial(earthmind.encode_sensors, config))
        static = ("capacity", "size", "keep_logits")
        self._prefill = jax.jit(partial(_prefill, config), static_argnames=static, donate_argnames="cache")
        self._decode = jax.jit(partial(_decode, config), donate_argnums=1)
        self._pyramids = jax.jit(partial(earthmind.sensor_features, config))
        self._masks = jax.jit(partial(_masks, config))

    def compiled(self) -> dict[str, int]:
        """Compiled variants of each function, to be compared with the buckets used."""
        named = {
            "encode": (self._encode, self._see),
            "prefill": (self._prefill,),
            "decode": (self._decode,),
            "masks": (self._masks, self._pyramids),
        }
        return {name: sum(fn._cache_size() for fn in functions) for name, functions in named.items()}

    def see(self, batch: Batch) -> Seen:
        """Visual tokens of both sensors, before any question: what questions about one image have in common."""
        return self._see(self.params, batch.optical, batch.sar)

    def encode(self, batch: Batch, seen: Seen | None = None) -> Fused | None:
        """Fused visual tokens and fusion weights; None where the batch has no image.

        Args:
          seen: what :meth:`see` made of the batch's images, one row for each question; they are not encoded again.
        """
        if batch.optical_valid is None and batch.sar_valid is None:
            return None
        images = (batch.optical, batch.sar) if seen is None else (None, None)
        inputs = (batch.tokens, batch.question, *images, batch.optical_valid, batch.sar_valid)
        return self._encode(self.params, *inputs, seen)

    def generate(
        self,
        batch: Batch,
        fused: Fused | None,
        *,
        max_new: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        stop: bool = True,
        until: tuple[int, ...] = (),
        forced: dict[int, int] | None = None,
        keep_logits: bool = False,
        keep: bool = False,
        kept: Kept | None = None,
        begin: Callable[[int], Decoding] | None = None,
    ) -> Generated:
        """Answer every prompt of the batch.

        Args:
          max_new: tokens at most (never beyond the model's ``max_length``).
          temperature: 0 is greedy.
          stop: end at the end-of-turn token or stop word.
          until: tokens after which nothing more is wanted of an answer; they belong to it.
          forced: step -> token id fed instead of the chosen one (teacher forcing of single steps).
          keep_logits: keep the scores of every step (for tests).
          keep: return keys and values for a further turn (a batch of one).
          kept: those of an earlier turn about the same visual tokens, used up by this call: only what the prompt does
            not share with them is prefilled. The answer is that of the whole prompt.
          begin: makes the prefilled state, given the size of its buffers, in place of a prefill of the whole prompts.
        """
        room = np.maximum(self.config.max_length - np.asarray(batch.lengths), 0)
        max_new = min(max_new, int(room.max()))
        size = bucket(max_new, NEW_TOKENS)
        force = np.full(size, -1, np.int32)
        for step, token in (forced or {}).items():
            force[step] = token
        if begin is not None:
            state = begin(size)
        else:
            state = self._begin(batch, fused, kept, keep=keep, size=size, keep_logits=keep_logits)
        stops = np.asarray((self.stop_ids if stop else ()) + until, np.int32)
        stops = np.pad(stops, (0, 4 - len(stops)), constant_values=-1) if len(stops) < 4 else stops
        end = 0
        while end < max_new:
            # Stop words of several tokens can only be seen in the text, so look at it now and then.
            end = min(max_new, end + STRIDE) if self.stop_words and stop else max_new
            state = self._decode(self.params, state, end, stops, force, np.float32(temperature), jax.random.key(seed))
            if bool(state.done.all()) or (stop and self._said_stop(state)):
                break
        made = self._collect(state, room, stop, until, keep_logits)
        if not keep:
            return made
        written = np.asarray(state.ids)[0, : int(state.cache.length[0]) - int(batch.lengths[0])]
        return replace(made, kept=Kept.after(self.config.lm.rope, state.cache, batch, written))

    def _begin(self, batch: Batch, fused: Fused | None, kept: Kept | None, *, keep: bool, **options: Any) -> Decoding:
        """The prompt prefilled, behind as much of it as ``kept`` holds."""
        visual = None if fused is None else fused.tokens
        room = batch.tokens.shape[1] + options["size"]
        if keep:
            room = capacity(int(batch.lengths[0]) + options["size"], self.config.max_length)
        # A learned prompt encoder sees the regions of the whole prompt at once.
        whole = kept is None or self.config.prompts is not None
        if whole or not (shared := kept.shared(self.config.lm.rope, batch)):
            inputs = (batch.tokens, batch.visual_index, batch.lengths)
            return self._prefill(self.params, *inputs, visual, cache=None, capacity=room, **options)
        cache, inputs = kept.extend(batch, shared, room)
        return self._prefill(self.params, *inputs, visual, cache=cache, capacity=cache.k.shape[2], **options)

    def pyramids(self, batch: Batch) -> Pyramids:
        """What the mask decoder sees of the images [B G G 3], before any question."""
        grounds = (batch.ground_optical, batch.ground_sar, batch.ground_optical_valid, batch.ground_sar_valid)
        return self._pyramids(self.params, *grounds)

    def masks(
        self,
        batch: Batch,
        fused: Fused | None,
        seg_states: Array | None,
        marks: VisualPrompts | None = None,
        *,
        pyramids: Pyramids | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low-resolution mask logits [B M h w] and predicted IoU [B M] for ``[SEG]`` states [B M D], for marks alone
        (without states), or for each state with the mark of its place.

        Where the batch has stacks of grounding images [B F G G 3], logits [B F M h w] and IoU [B F M] of every frame:
        the first ones are prompted, the rest followed (:func:`earthmind_jax.models.earthmind.track`).

        Args:
          pyramids: what :meth:`pyramids` made of the batch's images; they are not encoded again.
        """
        given = seg_states if seg_states is not None else marks.points
        image = batch.ground_sar if batch.ground_optical is None else batch.ground_optical
        if marks is not None and image is not None and image.ndim == 5:
            raise UserError("Marks point at one image; ask about a stack of dates in words.")
        m = given.shape[1]
        count = bucket(m, MASKS)
        if seg_states is not None:
            seg_states = jnp.pad(seg_states, ((0, 0), (0, count - m), (0, 0)))
        logits, iou = self._masks(
            self.params, *((None, None) if pyramids else (batch.ground_optical, batch.ground_sar)),
            batch.ground_optical_valid, batch.ground_sar_valid, fused, seg_states,
            None if marks is None else padded(marks, count), pyramids,
        )  # fmt: skip
        return np.asarray(logits)[..., :m, :, :], np.asarray(iou)[..., :m]

    def _said_stop(self, state: Decoding) -> bool:
        ids, done = np.asarray(state.ids)[:, : int(state.step)], np.asarray(state.done)
        texts = [self.tokenizer.decode(row.tolist()) for row in ids]
        return all(end or any(w in text for w in self.stop_words) for end, text in zip(done, texts, strict=True))

    def _collect(
        self, state: Decoding, room: np.ndarray, stop: bool, until: tuple[int, ...], keep_logits: bool
    ) -> Generated:
        count = int(state.step)
        rows = np.asarray(state.ids)[:, :count].tolist()
        ids, texts = [], []
        for row, most in zip(rows, room.tolist(), strict=True):
            row = row[:most]
            row = row[: next((i + 1 for i, token in enumerate(row) if token in until), None)]
            if stop:
                ends = [i for i, token in enumerate(row) if token in self.stop_ids]
                row = row[: ends[0]] if ends else row
            text = self.tokenizer.decode(row)
            for word in self.stop_words if stop else ():
                if word in text:
                    text = text.partition(word)[0]
                    row = self._until(row, word)
            ids.append(row)
            texts.append(text.strip())
        seg = [[i for i, token in enumerate(row) if token == self.config.tokens.seg] for row in ids]
        most = max((len(s) for s in seg), default=0)
        positions, valid = np.zeros((len(seg), most), np.int32), np.zeros((len(seg), most), bool)
        for b, found in enumerate(seg):
            positions[b, : len(found)], valid[b, : len(found)] = found, True
        states = token_ops.gather_rows(state.hidden, jnp.asarray(positions))
        logits = state.logits[:, :count] if keep_logits and state.logits is not None else None
        return Generated(ids, texts, states, valid, state.hidden[:, :count], logits)

    def _until(self, row: list[int], word: str) -> list[int]:
        """The tokens whose text ends before ``word`` begins."""
        start = self.tokenizer.decode(row).index(word)
        ends = [end for end in range(len(row) + 1) if len(self.tokenizer.decode(row[:end])) <= start]
        return row[: ends[-1]]


def _encode(
    config: EarthMindConfig,
    params: Params,
    tokens: Array,
    question: Array,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    seen: Seen | None,
) -> Fused:
    text = earthmind.embed(config, params, tokens)
    first, second = earthmind.encode_sensors(config, params, optical, sar) if seen is None else seen
    return earthmind.fuse(config, params, first, second, optical_valid, sar_valid, text, question, training=False)


def _prefill(
    config: EarthMindConfig,
    params: Params,
    tokens: Array,
    visual_index: Array,
    lengths: Array,
    visual: Array | None,
    cache: KVCache | None,
    *,
    capacity: int,
    size: int,
    keep_logits: bool,
) -> Decoding:
    batch = tokens.shape[0]
    text = earthmind.embed(config, params, tokens)
    rows = None if visual is None else visual.reshape(batch, -1, visual.shape[-1])
    embeds = earthmind.place(text, rows, visual_index)
    embeds = earthmind.refine(config, params, embeds, rows, tokens, visual_index)
    fresh = cache is None
    cache = init_cache(config.lm, batch, capacity, config.precision.compute) if cache is None else cache
    out = earthmind.language(config, params, embeds, lengths, cache=cache, fresh=fresh)
    return prefilled(config, params, out, lengths, size, keep_logits)


def prefilled(
    config: EarthMindConfig, params: Params, out: LmOutput, lengths: Array, size: int, keep_logits: bool = False
) -> Decoding:
    """The state that decoding begins with, behind a pass over prompts of ``lengths`` tokens."""
    batch = len(lengths)
    last = token_ops.gather_rows(out.hidden, lengths[:, None] - 1)
    scores = earthmind.logits(config, params, last)[:, 0].astype(jnp.float32)
    assert out.cache is not None
    return Decoding(
        step=jnp.zeros((), jnp.int32),
        token=jnp.full((batch,), -1, jnp.int32),
        cache=out.cache,
        done=jnp.zeros((batch,), bool),
        ids=jnp.full((batch, size), config.tokens.pad, jnp.int32),
        hidden=jnp.zeros((batch, size, config.lm.width), out.hidden.dtype),
        scores=scores,
        logits=jnp.zeros((batch, size, scores.shape[-1]), jnp.float32) if keep_logits else None,
    )


def _decode(
    config: EarthMindConfig,
    params: Params,
    state: Decoding,
    end: Array,
    stops: Array,
    forced: Array,
    temperature: Array,
    key: Array,
) -> Decoding:
    """Feed tokens until ``end`` (traced) steps are done or every row has stopped."""

    def unfinished(state: Decoding) -> Array:
        return (state.step < end) & ~state.done.all()

    def feed(state: Decoding) -> Decoding:
        i = state.step
        greedy = sampling.greedy(state.scores)
        drawn = sampling.sample(state.scores, jax.random.fold_in(key, i), temperature=jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, drawn, greedy)
        token = jnp.where(forced[i] >= 0, forced[i], token).astype(jnp.int32)
        token = jnp.where(state.done, config.tokens.pad, token)
        done = state.done | jnp.isin(token, stops)
        embeds = earthmind.embed(config, params, token[:, None])
        new = jnp.where(state.done, 0, 1).astype(jnp.int32)
        out = earthmind.language(config, params, embeds, new, cache=state.cache)
        scores = earthmind.logits(config, params, out.hidden)[:, 0].astype(jnp.float32)
        return state.replace(
            step=i + 1,
            token=token,
            cache=out.cache,
            done=done,
            ids=state.ids.at[:, i].set(token),
            hidden=state.hidden.at[:, i].set(out.hidden[:, 0]),
            scores=scores,
            logits=None if state.logits is None else state.logits.at[:, i].set(state.scores),
        )

    return jax.lax.while_loop(unfinished, feed, state)


def _masks(
    config: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    fused: Fused | None,
    seg_states: Array | None,
    marks: VisualPrompts | None,
    pyramids: Pyramids | None,
) -> tuple[Array, Array]:
    weights = None if fused is None else earthmind.grounding_weights(fused)
    prompts = None if seg_states is None else earthmind.seg_prompt(config, params, seg_states)
    image = sar if optical is None else optical
    if image is not None and image.ndim == 5:
        tracked = earthmind.track(config, params, optical, sar, prompts, optical_valid, sar_valid, weights)
        return tracked.logits, tracked.iou
    if pyramids is None:
        pyramids = earthmind.sensor_features(config, params, optical, sar, optical_valid, sar_valid)
    features, presence = pyramids
    if presence is not None:
        features = earthmind.blend_features(features, presence, weights)
    out = earthmind.ground(config, params, features, prompts, marks)
    return out.logits, out.iou
