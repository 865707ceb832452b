"""Normalisation over the last axis: float32 statistics, result in the dtype of the input."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*batch D"], scale: Float[Array, " D"] | None, eps: float) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) * scale (the norm of Qwen2, InternLM2 and Phi-3)."""
    wide = x.astype(jnp.float32)
    out = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return _affine(out, scale, None).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, " D"] | None, bias: Float[Array, " D"] | None, eps: float
) -> Float[Array, "*batch D"]:
    """(x - mean) / sqrt(var + eps) * scale + bias; channels last, it is also SAM2's LayerNorm2d.

    The variance is the mean square of what remains after the mean is taken off: E[x^2] - E[x]^2 loses all digits where
    the mean is large, as in the residual streams of deep image encoders.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    out = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return _affine(out, scale, bias).astype(x.dtype)


def _affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        x = x * scale.astype(jnp.float32)
    return x if bias is None else x + bias.astype(jnp.float32)
