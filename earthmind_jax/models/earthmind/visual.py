"""From tiles to the visual tokens that the language model reads: each sensor encoded, and both fused."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import functional
from earthmind_jax.models.earthmind.components import fusion_module, projector_module, vision_module
from earthmind_jax.types import Fused, Params


def encode(cfg: EarthMindConfig, params: Params, tiles: Array) -> Array:
    """Tiles [B I H W 3] -> visual tokens [B I N D] (InternViT, pixel shuffle, mlp1: ``extract_feature``)."""
    batch, count = tiles.shape[:2]
    flat = tiles.reshape(batch * count, *tiles.shape[2:])
    patches = functional.apply_module(vision_module(cfg), params, "vision", flat).features
    tokens = functional.apply_module(projector_module(cfg), params, "projector", patches)
    return tokens.reshape(batch, count, *tokens.shape[1:])


def encode_sensors(
    cfg: EarthMindConfig, params: Params, optical: Array | None, sar: Array | None
) -> tuple[Array | None, Array | None]:
    """Tokens of both sensors' tiles; a sensor that is not there stays None."""
    if optical is None or sar is None or optical.shape != sar.shape:
        return (
            None if optical is None else encode(cfg, params, optical),
            None if sar is None else encode(cfg, params, sar),
        )
    # Both sensors share encoder and projector, so one larger call serves both. Side by side rather than one batch after
    # the other: samples that are split over devices stay where they are.
    first, second = jnp.split(encode(cfg, params, jnp.concatenate([optical, sar], axis=1)), 2, axis=1)
    return first, second


def fuse(
    cfg: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    text: Array,
    text_valid: Array,
    *,
    training: bool = True,
) -> Fused:
    """Combine the sensors' tokens [B I N D]; a sensor that is None is missing from every sample.

    Args:
      text: embeddings of the tokens that guide fusion [B L D]; ``text_valid`` bool [B L].
      training: the June 2025 release gates the tokens while it trains and not when it answers; other modes ignore it.
    """
    return functional.apply_module(
        fusion_module(cfg),
        params,
        "fusion",
        optical,
        sar,
        optical_valid,
        sar_valid,
        text,
        text_valid,
        training,
    )


def whole_tile(fused: Fused, values: Array) -> Array:
    """Of ``values`` [B I ...], those of the tile that shows the whole image: the last valid one (the thumbnail, or the
    only tile)."""
    shown = fused.weights.sum(-1).max(-1) > 0  # [B I]
    last = jnp.max(jnp.where(shown, jnp.arange(shown.shape[1]), 0), axis=1)
    return jnp.take_along_axis(values, last.reshape(-1, 1, *(1,) * (values.ndim - 2)), axis=1)[:, 0]


def grounding_weights(fused: Fused) -> Array:
    """Weights [B N 2] of :func:`whole_tile`."""
    return whole_tile(fused, fused.weights)
