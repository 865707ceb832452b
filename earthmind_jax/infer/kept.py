"""Keys and values kept from one turn of a conversation to the next.

The prompt of every turn is the whole conversation, made by the same code as for a single question. What it has in
common with the tokens already in the cache is not computed again, so the answer is that of the whole prompt: nothing
depends on how an earlier answer was cut into tokens, and a changed beginning (another image) is simply prefilled anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from earthmind_jax.config import RopeConfig
from earthmind_jax.types import Batch, KVCache

CAPACITIES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # slots of a cache that is kept
NEW = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens prefilled behind a cache


def capacity(size: int, most: int) -> int:
    """Slots of a cache for ``size`` tokens: a bucket, and never more than the ``most`` that the model takes."""
    return min(next((c for c in CAPACITIES if c >= size), size), most)


def pace(rope: RopeConfig, lengths: np.ndarray) -> np.ndarray:
    """What the rotary frequencies of a pass over ``lengths`` tokens depend on: passes of equal pace have equal ones.

    Phi-3's longrope goes over to its long factors at one length; InternLM2's dynamic base grows with every token beyond
    the trained length (:func:`earthmind_jax.ops.rope.inverse_frequencies`).
    """
    if rope.kind == "longrope":
        return (lengths > rope.original_max_position).astype(np.int64)
    if rope.kind == "dynamic":
        return np.maximum(lengths, rope.max_position)
    return np.zeros_like(lengths)


@dataclass(frozen=True, eq=False)
class Kept:
    """A cache and what lies in it.

    Attributes:
      tokens, visual: int32 [S], the token in each slot, and the visual row in its place (-1: none).
      paces: [S], the pace at which each key was written.
    """

    cache: KVCache
    tokens: np.ndarray
    visual: np.ndarray
    paces: np.ndarray

    @classmethod
    def after(cls, rope: RopeConfig, cache: KVCache, batch: Batch, written: np.ndarray) -> Kept:
        """The cache after a prompt (a batch of one) and the tokens ``written`` behind it, one at a time."""
        length = int(batch.lengths[0])
        tokens = np.concatenate([np.asarray(batch.tokens)[0, :length], written])
        visual = np.concatenate([np.asarray(batch.visual_index)[0, :length], np.full(len(written), -1, np.int32)])
        lengths = np.maximum(np.arange(len(tokens)) + 1, length)
        return cls(cache, tokens, visual, pace(rope, lengths))

    def shared(self, rope: RopeConfig, batch: Batch) -> int:
        """Tokens at the start of the prompt whose keys are here as a pass over the whole prompt would make them; its
        last token is never among them, as its scores are wanted."""
        length = int(batch.lengths[0])
        most = min(length - 1, len(self.tokens))
        same = self.tokens[:most] == np.asarray(batch.tokens)[0, :most]
        same &= self.visual[:most] == np.asarray(batch.visual_index)[0, :most]
        same &= self.paces[:most] == pace(rope, np.array([length]))
        return most if same.all() else int(same.argmin())

    def extend(self, batch: Batch, shared: int, room: int) -> tuple[KVCache, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The cache cut back to ``shared`` tokens, with at least ``room`` slots; and the rest of the prompt: tokens and
        visual rows [1 T], and how many they are [1]."""
        new = int(batch.lengths[0]) - shared
        size = next((n for n in NEW if n >= new), new)
        tokens, visual = np.zeros((1, size), np.int32), np.full((1, size), -1, np.int32)
        tokens[0, :new] = np.asarray(batch.tokens)[0, shared : shared + new]
        visual[0, :new] = np.asarray(batch.visual_index)[0, shared : shared + new]
        more = max(room - self.cache.k.shape[2], 0)
        k, v = self.cache.k, self.cache.v
        if more:
            k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0), (0, 0))) for x in (k, v))
        cache = KVCache(k=k, v=v, length=jnp.full((1,), shared, jnp.int32))
        return cache, (tokens, visual, np.array([new], np.int32))
