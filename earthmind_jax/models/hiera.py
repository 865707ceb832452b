"""Hiera, the image trunk of SAM2, and the feature pyramid on top of it.

Published as ``sam2.modeling.backbones.{hieradet.Hiera, image_encoder.FpnNeck}``; channels last throughout. Parameter
paths: ``patch_embed``, ``pos_embed``, ``pos_embed_window``, ``block_{i}/...`` and ``lateral_{level}``.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.nn.conv import Conv2d
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.nn.param import param
from earthmind_jax.ops import position, resize, windows
from earthmind_jax.ops.attention import attend

EPS = 1e-6


class BlockSpec(NamedTuple):
    """One block of the trunk: ``window`` 0 is global attention; ``pool`` halves the grid; ``last`` ends a stage."""

    width: int
    heads: int
    window: int
    pool: bool
    last: bool


def block_specs(config: GroundingConfig) -> tuple[BlockSpec, ...]:
    """The blocks of the trunk in order. The first block of a stage still has the windows of the stage before it."""
    specs = []
    for stage, depth in enumerate(config.stages):
        for index in range(depth):
            first = stage > 0 and index == 0
            window = config.windows[stage - 1 if first else stage]
            specs.append(
                BlockSpec(
                    width=config.stage_widths[stage],
                    heads=config.heads * 2**stage,
                    window=0 if len(specs) in config.global_blocks else window,
                    pool=first and stage <= config.q_pool_stages,
                    last=index == depth - 1,
                )
            )
    return tuple(specs)


class PooledAttention(nn.Module):
    """Multi-head attention within each image (or window) [B H W C]; queries are max-pooled 2x2 where ``pool``."""

    width: int
    heads: int
    pool: bool
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B H W C] -> [B H' W' width], with H' = H // 2 where queries are pooled."""
        batch, heads, head = x.shape[0], self.heads, self.width // self.heads

        def project(name: str) -> Array:
            return Linear((heads, head), ("embed", "heads", "head"), precision=self.precision, name=name)(x)

        q, k, v = project("q"), project("k"), project("v")  # [B H W N h]
        if self.pool:
            q = windows.max_pool_2x2(q.reshape(*q.shape[:3], self.width))
        grid = q.shape[1:3]
        q, k, v = (y.reshape(batch, -1, heads, head) for y in (q, k, v))
        out = attend(q, k, v).reshape(batch, *grid, heads, head)
        return Linear(self.width, ("heads", "head", "embed"), contract=2, precision=self.precision, name="out")(out)


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the exact (erf) GELU."""

    hidden: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Linear(self.hidden, ("embed", "mlp"), precision=self.precision, name="fc1")(x)
        return Linear(self.width, ("mlp", "embed"), precision=self.precision, name="fc2")(nn.gelu(x, approximate=False))


class HieraBlock(nn.Module):
    """Pre-norm block. Where the width changes, the shortcut is ``pool(proj(norm1(x)))`` rather than ``x``."""

    spec: BlockSpec
    mlp_ratio: float
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B H W C] -> [B H' W' width]."""
        spec, precision = self.spec, self.precision
        normed = LayerNorm(eps=EPS, precision=precision, name="norm1")(x)
        if x.shape[-1] != spec.width:
            x = Linear(spec.width, ("embed", "embed_out"), precision=precision, name="proj")(normed)
            x = windows.max_pool_2x2(x) if spec.pool else x
        attention = PooledAttention(spec.width, spec.heads, spec.pool, precision, name="attn")
        if spec.window == 0:
            x = x + attention(normed)
        else:
            # Zeros that fill the last windows are attended to like any token, as in the published model.
            cut, padded = windows.partition(normed, spec.window)
            stride = 2 if spec.pool else 1
            padded = (padded[0] // stride, padded[1] // stride)
            x = x + windows.unpartition(attention(cut), spec.window // stride, padded, x.shape[1:3])
        normed = LayerNorm(eps=EPS, precision=precision, name="norm2")(x)
        return x + Mlp(int(spec.width * self.mlp_ratio), spec.width, precision, name="mlp")(normed)


class Hiera(nn.Module):
    """Image [B H W 3] -> the four stage outputs [B H/4 W/4 C], [B H/8 W/8 2C], [.. H/16 .. 4C], [.. H/32 .. 8C]."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, ...]:
        config, precision = self.config, self.precision
        x = Conv2d(config.embed_dim, 7, stride=4, padding=3, precision=precision, name="patch_embed")(image)
        x = x + self._positions(x.shape[1:3]).astype(x.dtype)
        stages = []
        for index, spec in enumerate(block_specs(config)):
            x = HieraBlock(spec, config.mlp_ratio, precision, name=f"block_{index}")(x)
            if spec.last:
                stages.append(x)
        return tuple(stages)

    def _positions(self, grid: tuple[int, int]) -> Array:
        """Windowed absolute positions [1 h w C]: a smooth background plus one window's embedding, repeated
        (Bolya et al. 2023, "Window Attention is Bugged")."""
        config, dtype = self.config, self.precision.param
        side, width = config.windows[0], config.embed_dim
        init, axes = nn.initializers.truncated_normal(0.02), (None, None, "embed")
        background = param(self, "pos_embed", init, (*config.pos_grid, width), axes, dtype)
        window = param(self, "pos_embed_window", init, (side, side, width), axes, dtype)
        smooth = resize.bicubic(background.astype(jnp.float32)[None], grid)
        repeats = (-(-grid[0] // side), -(-grid[1] // side), 1)
        return smooth + jnp.tile(window.astype(jnp.float32), repeats)[None, : grid[0], : grid[1]]


class FpnNeck(nn.Module):
    """Stage outputs -> pyramid levels of equal width, high to low resolution, each [B h w D].

    A level of ``top_down_levels`` adds the level below it, enlarged by repetition; the others are the lateral 1x1
    convolution alone.
    """

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, stages: tuple[Array, ...]) -> tuple[Array, ...]:
        levels: list[Array] = []
        for level in reversed(range(len(stages))):
            x = Conv2d(
                self.config.width, 1, axes=(None, None, "embed", "embed_out"), precision=self.precision,
                name=f"lateral_{level}",
            )(stages[level])  # fmt: skip
            if levels and level in self.config.top_down_levels:
                x = x + resize.nearest(levels[-1], x.shape[1:3])
            levels.append(x)
        return tuple(reversed(levels))


def level_positions(levels: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sine position codes [h w D] float32 of the pyramid levels (``PositionEmbeddingSine``), for memory attention."""
    return tuple(position.sine(*x.shape[1:]) for x in levels)
