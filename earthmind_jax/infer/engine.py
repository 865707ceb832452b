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
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.pointed import padded
from earthmind_jax.data.templates import get_template
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.infer import compiled
from earthmind_jax.infer.compiled import Decoding, Pyramids, Seen
from earthmind_jax.infer.kept import Kept, capacity
from earthmind_jax.models import earthmind
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.types import Batch, Fused, Params, VisualPrompts

NEW_TOKENS = (16, 64, 256, 1024, 2048)  # buffer sizes of one answer
MASKS = (1, 2, 4, 8, 16, 32)  # [SEG] slots of one sample
STRIDE = 16  # tokens between looks at the text, for stop words that are not one token


def bucket(size: int, sizes: tuple[int, ...]) -> int:
    """The smallest of ``sizes`` that holds ``size`` (the size itself beyond the table)."""
    return next((s for s in sizes if s >= size), size)


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
        self._encode = jax.jit(partial(compiled.encode, config))
        self._see = jax.jit(partial(earthmind.encode_sensors, config))
        static = ("capacity", "size", "keep_logits")
        self._prefill = jax.jit(partial(compiled.prefill, config), static_argnames=static, donate_argnames="cache")
        self._decode = jax.jit(partial(compiled.decode, config), donate_argnums=1)
        self._pyramids = jax.jit(partial(earthmind.sensor_features, config))
        self._masks = jax.jit(partial(compiled.masks, config))

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
