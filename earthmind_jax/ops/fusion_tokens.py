"""What every fusion mode is given, and the two ways in which it hands tokens on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from earthmind_jax.errors import UserError
from earthmind_jax.ops.fusion_scores import score_dtype
from earthmind_jax.types import Fused


class Tokens(NamedTuple):
    """What a fusion mode sees. Invalid tokens and text are zeros already.

    ``optical``, ``sar`` [B I N D] (their tile counts may differ in ``release_2025_10``), ``optical_valid``,
    ``sar_valid`` [B I N], ``text`` [B L D], ``text_valid`` [B L].
    """

    optical: Array
    sar: Array
    optical_valid: Array
    sar_valid: Array
    text: Array
    text_valid: Array


def sensor_weights(
    logit: Float[Array, "*axes N"], optical_valid: Bool[Array, "*axes N"], sar_valid: Bool[Array, "*axes N"]
) -> Float[Array, "*axes N 2"]:
    """Softmax over the two sensors (Eq. 7) from ``logit`` = optical minus SAR, obeying validity.

    (1, 0) or (0, 1) where one sensor is valid, (0, 0) where none is.
    """
    both = optical_valid & sar_valid
    optical = jnp.where(both, jax.nn.sigmoid(logit), optical_valid)
    sar = jnp.where(both, jax.nn.sigmoid(-logit), sar_valid)
    return jnp.stack([optical, sar], -1)


def prepare(
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    text: Array | None,
    text_valid: Array | None,
    *,
    any_tiles: bool,
) -> Tokens:
    """Missing inputs become invalid zeros, and whatever an invalid token holds (even NaN) becomes zero."""

    def fill(x: Array | None, valid: Array | None, like: Array) -> tuple[Array, Array]:
        if x is None:
            return jnp.zeros_like(like), jnp.zeros(like.shape[:-1], bool)
        if valid is None:
            return x, jnp.ones(x.shape[:-1], bool)
        if valid.shape != x.shape[:-1]:
            raise UserError(f"A validity mask of shape {valid.shape} does not fit tokens of shape {x.shape}.")
        return jnp.where(valid[..., None], x, 0), valid

    present = optical if sar is None else sar
    if present is None:
        raise UserError("Fusion needs the tokens of at least one sensor.")
    optical, optical_valid = fill(optical, optical_valid, present)
    sar, sar_valid = fill(sar, sar_valid, present)
    tile = 2 if any_tiles else 1  # the first axis that must agree besides the batch
    if (optical.shape[0], *optical.shape[tile:]) != (sar.shape[0], *sar.shape[tile:]) or sar.ndim != 4:
        raise UserError(f"Optical tokens {optical.shape} and SAR tokens {sar.shape} must share one grid [B I N D].")
    batch, width = sar.shape[0], sar.shape[-1]
    text, text_valid = fill(text, text_valid, jnp.zeros((batch, 1, width), sar.dtype))
    if (text.shape[0], text.shape[-1]) != (batch, width):
        raise UserError(f"Text {text.shape} does not fit visual tokens {sar.shape}.")
    return Tokens(optical, sar, optical_valid, sar_valid, text, text_valid)


def mixed(x: Tokens, weights: Array, optical: Array | None = None, sar: Array | None = None) -> Fused:
    """Weighted sum of the pair (Eq. 7), of mapped tokens where given; formed in float32."""
    optical, sar = (x.optical if optical is None else optical), (x.sar if sar is None else sar)
    tokens = weights[..., :1] * optical + weights[..., 1:] * sar
    return Fused(
        tokens=tokens.astype(jnp.result_type(x.optical, x.sar)), valid=x.optical_valid | x.sar_valid, weights=weights
    )


def side_by_side(x: Tokens, gate: Array | None = None) -> Fused:
    """[SAR N; optical N] within each tile, as the published code orders them."""
    factor = 1 if gate is None else gate[..., None]
    tokens = jnp.concatenate([x.sar * factor, x.optical * factor], axis=2)
    return Fused(
        tokens=tokens.astype(jnp.result_type(x.optical, x.sar)),
        valid=jnp.concatenate([x.sar_valid, x.optical_valid], axis=2),
        weights=even_weights(x),
    )


def even_weights(x: Tokens) -> Array:
    return sensor_weights(jnp.zeros(x.sar.shape[:3], score_dtype(x.sar)), x.optical_valid, x.sar_valid)
