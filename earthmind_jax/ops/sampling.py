"""Choosing the next token from logits [B V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def greedy(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The most likely token, the first one among equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(
    logits: Float[Array, "B V"],
    key: Array,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | Int[Array, ""] = 0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Int[Array, " B"]:
    """A token drawn from softmax(logits / temperature), restricted to the ``top_k`` likeliest and then to the nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability reaches ``top_p``; it is never empty.
    ``top_k=0`` and ``top_p=1`` switch their restriction off, a temperature of zero or less is :func:`greedy`. All three
    may be traced, so that one compiled step serves every setting.
    """
    logits = logits.astype(jnp.float32)
    temperature, top_k, top_p = jnp.asarray(temperature, jnp.float32), jnp.asarray(top_k), jnp.asarray(top_p)

    # To rank a vocabulary of 150,000 takes longer than many a layer, so only what is asked for is computed.
    def draw() -> Array:
        scaled = logits / temperature
        restricted = (top_k > 0) | (top_p < 1)
        scaled = jax.lax.cond(restricted, lambda: _restrict(scaled, top_k, top_p), lambda: scaled)
        return jax.random.categorical(key, scaled, axis=-1).astype(jnp.int32)

    return jax.lax.cond(temperature > 0, draw, lambda: greedy(logits))


def _restrict(logits: Array, top_k: Array, top_p: Array) -> Array:
    """-inf outside the ``top_k`` likeliest tokens and the nucleus of those."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    inside = (rank < top_k) | (top_k <= 0)
    probability = jax.nn.softmax(jnp.where(inside, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability  # of all likelier tokens
    # The comparison with 1 keeps rounding of the sum from cutting the tail where no nucleus was asked for.
    inside &= ((before < top_p) | (top_p >= 1)).at[:, 0].set(True)
    kept = jnp.zeros_like(inside).at[jnp.arange(len(order))[:, None], order].set(inside, unique_indices=True)
    return jnp.where(kept, logits, -jnp.inf)
