"""The two fusion forms of the published code, neither of which is the paper's Eq. 2-7."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from earthmind_jax.ops.fusion_scores import attention_entropy, largest_product, score_dtype
from earthmind_jax.ops.fusion_tokens import Tokens

EPS = 1e-6  # of every normalisation of the October 2025 release
TEMPERATURE = 0.1  # of its self-attention
TEXT_TEMPERATURE = 0.2
TEXT_SHARE = 0.7


def symmetric_gate(
    local_query: Float[Array, "2 D"], optical: Float[Array, "*axes D"], sar: Float[Array, "*axes D"]
) -> Float[Array, "*axes"]:
    """Gate of the June 2025 training code: sigmoid(sum_d (q_0 + q_1)_d sar_d optical_d), the same for both sensors.

    Source: ``InternVL_Slowfast._llm_forward``, where two importances are computed and are one product in two orders.
    """
    dtype = score_dtype(optical, sar)
    product = optical.astype(dtype) * sar.astype(dtype)
    query = local_query.astype(dtype).sum(0)
    return jax.nn.sigmoid(jnp.einsum("...d,d->...", product, query, precision=lax.Precision.HIGHEST))


def match_tiles(x: Tokens) -> Tokens:
    """Optical averaged over its (valid) tiles to one tile that stands beside every SAR tile, if tile counts differ.

    Source: step 1 of the October 2025 release.
    """
    if x.optical.shape[1] == x.sar.shape[1]:
        return x
    count = x.optical_valid.sum(1, keepdims=True)
    mean = x.optical.sum(1, keepdims=True, dtype=score_dtype(x.optical)) / jnp.maximum(count, 1)[..., None]
    return x._replace(
        optical=jnp.broadcast_to(mean.astype(x.optical.dtype), x.sar.shape),
        optical_valid=jnp.broadcast_to(count > 0, x.sar.shape[:3]),
    )


def release_2025_10_logits(x: Tokens, *, block: int = 1024) -> tuple[Array, Array, Bool[Array, "B 1 1"]]:
    """Steps 2-3 of the October 2025 release: quality and text relevance [B I N 2], and whether there is any text.

    Quality is one minus the entropy of a token's self-attention within its tile, normalised by the minimum and maximum
    over EVERY token of the call, sensor by sensor: results depend on batch neighbours, as they did in the release.
    Relevance is the largest cosine to a text row, over 0.2. The caller chooses the text rows (the release took whatever
    followed the image, in training with the answer). ``block`` bounds memory as in :func:`attention_entropy`.
    """
    text = _unit(x.text)[:, None]

    def quality(tokens: Array, valid: Array) -> Array:
        entropy = attention_entropy(_unit(tokens), valid, scale=1 / TEMPERATURE, block=block)
        low = jnp.where(valid, entropy, 1e30).min()
        high = jnp.where(valid, entropy, -1e30).max()
        return 1 - (entropy - low) / (high - low + EPS)

    def relevance(tokens: Array) -> Array:
        return largest_product(_unit(tokens), text, x.text_valid[:, None], block=block) / TEXT_TEMPERATURE

    qualities = quality(x.optical, x.optical_valid), quality(x.sar, x.sar_valid)
    relevances = relevance(x.optical), relevance(x.sar)
    return jnp.stack(qualities, -1), jnp.stack(relevances, -1), x.text_valid.any(-1)[:, None, None]


def release_2025_10_weights(x: Tokens, *, block: int = 1024) -> Float[Array, "B I N 2"]:
    """Step 4: 0.7 softmax(relevances) + 0.3 softmax(qualities) over (optical, SAR), before validity.

    Without any valid text a sample is weighted by quality alone (the release always had text).
    """
    quality, relevance, has_text = release_2025_10_logits(x, block=block)
    share = jnp.where(has_text, TEXT_SHARE, 0.0)[..., None]
    return share * jax.nn.softmax(relevance, -1) + (1 - share) * jax.nn.softmax(quality, -1)


def _unit(x: Array) -> Array:
    """x / (||x||_2 + 1e-6), with a finite gradient at 0."""
    x = x.astype(score_dtype(x))
    square = jnp.sum(x * x, -1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return x / (norm + EPS)
