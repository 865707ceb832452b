"""Attention scores between visual tokens of two sensors and a text, exact at any length.

Everything here is float32 or better, whatever the inputs. Above ``block`` tokens nothing larger than block x block
exists in memory, forward or backward: a first pass streams the logsumexp of every row, a second one sums the
probabilities, and both are rematerialised.

In this file ``...`` stands for leading axes such as B I; validity masks are true at real tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from earthmind_jax.errors import UserError

# Finite, so that a row without any valid key stays free of NaN; its probabilities are masked afterwards.
MASKED = -1e30


def score_dtype(*arrays: Array) -> jnp.dtype:
    """float32, or float64 where an input is float64: the precision of every score."""
    return jnp.result_type(jnp.float32, *arrays)


def normalise_tokens(x: Float[Array, "*axes D"], how: str) -> tuple[Float[Array, "*axes D"], float]:
    """Tokens ready for dot products, and the factor of those products.

    ``none`` is Eq. 2 as printed: x and 1/sqrt(D). ``rms`` divides by the root mean square over D first, so that
    the projector's large norms do not make the softmax one-hot; the factor stays 1/sqrt(D). ``l2`` gives unit vectors,
    whose products (cosines) need no factor. Raises :class:`UserError` for another ``how``. Source: our option on Eq. 2.
    """
    x = x.astype(score_dtype(x))
    width = x.shape[-1]
    if how == "none":
        return x, width**-0.5
    if how == "rms":
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6), width**-0.5
    if how == "l2":
        return x * lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-12), 1.0
    raise UserError(f"Unknown token normalisation '{how}'. Choices: none, rms, l2.")


def attention_map(
    queries: Float[Array, "*axes T D"],
    keys: Float[Array, "*axes S D"],
    key_valid: Bool[Array, "*axes S"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Array, "*axes T S"]:
    """Single-head attention probabilities softmax_S(queries keys^T * scale), dense: Eq. 2 (sensors) and Eq. 4 (text).

    ``scale`` is 1/sqrt(D) unless told. Invalid keys get exactly 0; a row without a valid key is all zeros.
    """
    valid = jnp.ones(keys.shape[:-1], bool) if key_valid is None else key_valid
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    return jnp.where(valid[..., None, :], jax.nn.softmax(_logits(queries, keys, valid, scale), -1), 0.0)


def attention_received(
    queries: Float[Array, "*axes T D"],
    keys: Float[Array, "*axes S D"],
    query_valid: Bool[Array, "*axes T"],
    key_valid: Bool[Array, "*axes S"],
    *,
    scale: float,
    block: int = 1024,
) -> Float[Array, "*axes S"]:
    """Share of attention that each key receives from the valid queries: the column mean of Eq. 3.

    Each valid query spreads unit mass over the valid keys, so the result sums to 1 over S. All zeros when there is no
    valid query or no valid key. Leading axes broadcast. Exact for any ``block`` (tokens); see the module docstring.
    """
    count = jnp.maximum(query_valid.sum(-1, keepdims=True), 1)
    share = query_valid.astype(score_dtype(queries, keys)) / count
    if max(queries.shape[-2], keys.shape[-2]) <= block:

        @jax.checkpoint
        def dense(queries: Array, keys: Array) -> Array:
            attention = attention_map(queries, keys, key_valid, scale=scale)
            return jnp.einsum("...ts,...t->...s", attention, share, precision=lax.Precision.HIGHEST)

        return dense(queries, keys)

    def add(total: Array, key: tuple[Array, Array], query: tuple[Array, Array, Array]) -> Array:
        attention = jnp.exp(_logits(query[0], *key, scale) - query[1][..., None])
        attention = jnp.where(key[1][..., None, :], attention, 0.0)
        return total + jnp.einsum("...ts,...t->...s", attention, query[2], precision=lax.Precision.HIGHEST)

    rows = _row_logsumexp(queries, keys, key_valid, scale, block)
    outer = (_blocks(keys, block, -2), _blocks(key_valid, block, -1))
    inner = (_blocks(queries, block, -2), _blocks(rows, block, -1), _blocks(share, block, -1))
    start = jnp.zeros((*rows.shape[:-1], outer[0].shape[-2]), rows.dtype)
    return _join(_sweep(outer, inner, start, add), keys.shape[-2])


def attention_entropy(
    tokens: Float[Array, "*axes N D"], valid: Bool[Array, "*axes N"], *, scale: float, block: int = 1024
) -> Float[Array, "*axes N"]:
    """Entropy (nats) of each token's self-attention over the valid tokens, -sum_j A_ij ln(A_ij + 1e-10).

    Source: step 2 of the October 2025 release, including its 1e-10. Exact for any ``block``.
    """

    def surprise(attention: Array) -> Array:
        return -(attention * jnp.log(attention + 1e-10)).sum(-1)

    return _row_sum(surprise, tokens, tokens, valid, scale, block)


def text_relevance_printed(
    tokens: Float[Array, "*axes N D"],
    text: Float[Array, "*axes L D"],
    text_valid: Bool[Array, "*axes L"],
    *,
    block: int = 1024,
) -> Float[Array, "*axes N"]:
    """Text relevance to the letter of Eq. 4-5: softmax over the text, then the mean over the same text axis.

    A row of a softmax sums to 1, so this is 1/L (L = valid text tokens) for every token, sensor and text.
    """
    total = _row_sum(lambda attention: attention.sum(-1), tokens, text, text_valid, tokens.shape[-1] ** -0.5, block)
    return total / jnp.maximum(text_valid.sum(-1, keepdims=True), 1)


def largest_product(
    tokens: Float[Array, "*axes N D"],
    keys: Float[Array, "*axes S D"],
    key_valid: Bool[Array, "*axes S"],
    *,
    block: int = 1024,
) -> Float[Array, "*axes N"]:
    """Largest dot product of each token with a valid key (a huge negative number without one).

    Source: step 3 of the October 2025 release, on unit vectors. Exact for any ``block``.
    """

    def add(total: Array, query: tuple[Array], key: tuple[Array, Array]) -> Array:
        return jnp.maximum(total, _logits(*query, *key, 1.0).max(-1))

    if max(tokens.shape[-2], keys.shape[-2]) <= block:
        return _logits(tokens, keys, key_valid, 1.0).max(-1)
    return _fold_rows(add, tokens, keys, key_valid, block)


def modality_attention_score(
    attention: Float[Array, "*axes S S"], modality: Bool[Array, "*axes S"], visual: Bool[Array, "*axes S"]
) -> Float[Array, "*axes"]:
    """Modality attention score, Eq. 1: the share of visual-to-visual attention that lands on one sensor.

    ``attention`` is a language model's self-attention (heads averaged by the caller, who may stack layers in front),
    ``visual`` marks all visual tokens, the set I of the paper, and ``modality`` those of the sensor, T_m; tokens of
    ``modality`` outside ``visual`` do not count. 0 where no attention passes between visual tokens.
    """
    attention = attention.astype(score_dtype(attention))
    rows = jnp.where(visual[..., :, None], attention, 0.0).sum(-2)
    total = jnp.where(visual, rows, 0.0).sum(-1)
    return jnp.where(modality & visual, rows, 0.0).sum(-1) / jnp.where(total > 0, total, 1.0)


def _logits(queries: Array, keys: Array, key_valid: Array, scale: float) -> Array:
    """Masked scores [... T S]. Full precision also on accelerators whose default float32 product is shorter."""
    dtype = score_dtype(queries, keys)
    product = jnp.einsum(
        "...td,...sd->...ts", queries.astype(dtype), keys.astype(dtype), precision=lax.Precision.HIGHEST
    )
    return jnp.where(key_valid[..., None, :], product * scale, MASKED)


def _row_sum(
    value: Callable[[Array], Array], queries: Array, keys: Array, key_valid: Array, scale: float, block: int
) -> Array:
    """``value``, a sum over S of some function of the attention probabilities [... T S], blockwise: [... T]."""
    if max(queries.shape[-2], keys.shape[-2]) <= block:
        return jax.checkpoint(lambda q, k: value(attention_map(q, k, key_valid, scale=scale)))(queries, keys)

    def add(total: Array, query: tuple[Array, Array], key: tuple[Array, Array]) -> Array:
        attention = jnp.exp(_logits(query[0], *key, scale) - query[1][..., None])
        return total + value(jnp.where(key[1][..., None, :], attention, 0.0))

    rows = _row_logsumexp(queries, keys, key_valid, scale, block)
    return _fold_rows(add, queries, keys, key_valid, block, rows, start=0.0)


def _row_logsumexp(queries: Array, keys: Array, key_valid: Array, scale: float, block: int) -> Array:
    """logsumexp over S of the masked scores, [... T], streamed over blocks of queries and keys."""

    def add(total: Array, query: tuple[Array], key: tuple[Array, Array]) -> Array:
        return jnp.logaddexp(total, jax.nn.logsumexp(_logits(*query, *key, scale), -1))

    return _fold_rows(add, queries, keys, key_valid, block)


def _fold_rows(
    add: Callable[[Array, Any, Any], Array],
    queries: Array,
    keys: Array,
    key_valid: Array,
    block: int,
    rows: Array | None = None,
    start: float = MASKED,
) -> Array:
    """``add`` folded over the keys for each query, [... T]; ``rows`` [... T] rides with the queries."""
    outer = (_blocks(queries, block, -2), *(() if rows is None else (_blocks(rows, block, -1),)))
    inner = (_blocks(keys, block, -2), _blocks(key_valid, block, -1))
    axes = jnp.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
    total = jnp.full((*axes, outer[0].shape[-2]), start, score_dtype(queries, keys))
    return _join(_sweep(outer, inner, total, add), queries.shape[-2])


def _sweep(outer: Any, inner: Any, start: Array, add: Callable[[Array, Any, Any], Array]) -> Array:
    """For each block of ``outer``, ``add`` up the blocks of ``inner``; the gradient recomputes instead of storing."""

    @jax.checkpoint
    def fold(block: Any) -> Array:
        @jax.checkpoint
        def step(total: Array, other: Any) -> tuple[Array, None]:
            return add(total, block, other), None

        return lax.scan(step, start, inner)[0]

    return lax.map(fold, outer)


def _blocks(x: Array, block: int, axis: int) -> Array:
    """``axis`` (negative) cut into blocks that lead the result; the last one is filled with zeros, that is, invalid."""
    length = x.shape[axis]
    size = min(block, length)
    count = -(-length // size)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - length)
    position = x.ndim + axis
    x = jnp.pad(x, padding).reshape(*x.shape[:position], count, size, *x.shape[position + 1 :])
    return jnp.moveaxis(x, position, 0)


def _join(blocks: Array, length: int) -> Array:
    """[n ... b] -> [... length]."""
    x = jnp.moveaxis(blocks, 0, -2)
    return x.reshape(*x.shape[:-2], -1)[..., :length]
