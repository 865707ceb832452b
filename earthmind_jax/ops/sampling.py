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
    temperature = jnp.asarray(temperature, jnp.float32)
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    order = jnp.argsort(-scaled, axis=-1, stable=True)
    ranked = jnp.take_along_axis(scaled, order, axis=-1)

    rank = jnp.arange(logits.shape[-1])
    top_k = jnp.asarray(top_k)
    ranked = jnp.where((rank < top_k) | (top_k <= 0), ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability  # of all likelier tokens
    # The comparison with 1 keeps rounding of the sum from cutting the tail where no nucleus was asked for.
    inside = (before < top_p) | (jnp.asarray(top_p) >= 1.0)
    ranked = jnp.where(inside.at[:, 0].set(True), ranked, -jnp.inf)

    choice = jax.random.categorical(key, ranked, axis=-1)
    drawn = jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return jnp.where(temperature > 0, drawn, greedy(logits))
