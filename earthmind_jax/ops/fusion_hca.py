"""Hierarchical cross-modal attention (Eq. 2-7): its scores, its weights, and what our variants learn on top.

Printed HCA has two defects, both proved by the tests: Eq. 4-5 take softmax and mean over the same text axis, which is
the constant 1/L; and with Eq. 3 summing to 1 over N tokens the two sensors' scores differ by O(1/N), so that Eq. 7 is
0.5 each. The repaired form takes the softmax over the visual tokens (attention *received*, as Eq. 3 does) and measures
scores relative to uniform.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from earthmind_jax.ops.fusion_scores import attention_received, normalise_tokens, score_dtype, text_relevance_printed
from earthmind_jax.ops.fusion_tokens import Tokens


class HcaScores(NamedTuple):
    """``alpha`` (Eq. 3), ``beta`` (Eq. 5) and ``gamma`` (Eq. 6), each [B I N 2], last axis (optical, SAR)."""

    alpha: Array
    beta: Array
    gamma: Array


def hca_scores(
    x: Tokens,
    lam: Float[Array, ""],
    *,
    printed: bool = False,
    normalise: str = "rms",
    scale_by_tokens: bool = True,
    block: int = 1024,
    across_tiles: bool = False,
) -> HcaScores:
    """Scores of Eq. 2-6 with mixing factor ``lam``: 1 = the other sensor's view alone, 0 = the text's alone.

    ``printed`` takes Eq. 4-5 to the letter (softmax over the text); otherwise the text attends to the visual tokens.
    ``normalise`` is that of :func:`normalise_tokens`; ``scale_by_tokens`` multiplies alpha and beta by the number of
    valid tokens, so that their mean is 1. ``across_tiles`` lets the tiles of a sample compete. A sample without valid
    text has lam = 1. ``block`` bounds memory, see :func:`attention_received`. Source: Eq. 2-6, with our repairs.
    """
    tiles, count = x.sar.shape[1:3]

    def merge(a: Array) -> Array:
        return a.reshape(a.shape[0], 1, tiles * count, *a.shape[3:]) if across_tiles else a

    (optical, scale), (sar, _), (text, _) = (
        normalise_tokens(a, normalise) for a in (merge(x.optical), merge(x.sar), x.text[:, None])
    )
    optical_valid, sar_valid, text_valid = merge(x.optical_valid), merge(x.sar_valid), x.text_valid[:, None]

    def receive(queries: Array, query_valid: Array, keys: Array, key_valid: Array) -> Array:
        return attention_received(queries, keys, query_valid, key_valid, scale=scale, block=block)

    alpha = receive(sar, sar_valid, optical, optical_valid), receive(optical, optical_valid, sar, sar_valid)
    if printed:
        beta = tuple(text_relevance_printed(a, text, text_valid, block=block) for a in (optical, sar))
    else:
        beta = receive(text, text_valid, optical, optical_valid), receive(text, text_valid, sar, sar_valid)
    if scale_by_tokens:
        counts = optical_valid.sum(-1, keepdims=True), sar_valid.sum(-1, keepdims=True)
        alpha, beta = ((o * counts[0], s * counts[1]) for o, s in (alpha, beta))

    alpha, beta = (jnp.stack(pair, -1).reshape(*x.sar.shape[:3], 2) for pair in (alpha, beta))
    lam = jnp.where(x.text_valid.any(-1), lam.astype(alpha.dtype), 1.0)[:, None, None, None]
    return HcaScores(alpha, beta, lam * alpha + (1 - lam) * beta)


def sensor_map(params: dict[str, Array], sensor: str, x: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
    """The linear map of one sensor's tokens, x + x W, or x + (x A) B where low-rank; exactly x while W or B is zero.

    Written as a difference from the identity, so that it starts exact in any precision and weight decay pulls towards
    leaving the tokens alone. Source: ours (``hca_plus``).
    """
    dtype = score_dtype(x)
    if f"map_{sensor}" in params:
        change = jnp.einsum("...d,de->...e", x, params[f"map_{sensor}"].astype(x.dtype), preferred_element_type=dtype)
    else:
        narrow, wide = (params[f"map_{sensor}_{end}"].astype(x.dtype) for end in ("in", "out"))
        change = jnp.einsum("...d,dr->...r", x, narrow)
        change = jnp.einsum("...r,rd->...d", change, wide, preferred_element_type=dtype)
    return x.astype(dtype) + change


def token_quality(params: dict[str, Array], sensor: str, x: Float[Array, "*axes D"]) -> Float[Array, "*axes"]:
    """Learned quality of each token of one sensor: D -> hidden -> 1 with exact GELU, on RMS-normalised tokens.

    Without a last bias: only the difference of the two sensors' qualities counts. Source: ours (``hca_gated``).
    """
    x, _ = normalise_tokens(x, "rms")
    kernel, bias, out = (params[f"quality_{sensor}_{part}"].astype(x.dtype) for part in ("in", "bias", "out"))
    hidden = jnp.einsum("...d,dh->...h", x, kernel, precision=lax.Precision.HIGHEST) + bias
    return jnp.einsum("...h,h->...", jax.nn.gelu(hidden, approximate=False), out, precision=lax.Precision.HIGHEST)
