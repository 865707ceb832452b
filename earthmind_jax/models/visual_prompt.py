"""A learned encoder of visual prompts: what the language model reads at the tokens of a marked region.

Published weights put copies of visual tokens there (``<vp>``), which say what lies in a region but neither what shape
it has nor what surrounds it. EarthGPT-X (arXiv 2504.12795) lets prompts and image understand one another by
self-attention, cross-attention between prompt and image, self-attention again, and a projection to the language model.
Here the region's tokens, with their place in the image and the number of their region, go through these three and come
back as a correction of themselves. The projection is zero at the start, so that a converted model answers as before
until it is trained.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import Precision, VisualPromptConfig
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.nn.param import param
from earthmind_jax.ops import position
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.ops.attention import attend

PLACE = 64  # features of a token's place in its tile


class VisualPromptEncoder(nn.Module):
    """Corrections of the region tokens in a prompt; ``width`` is that of the language model.

    Parameter paths: ``content``, ``place``, ``region`` (what a token is, where, and of which region), ``image``,
    ``self_1``, ``cross``, ``self_2`` (each attention and a perceptron), ``norm`` and ``out``.
    """

    config: VisualPromptConfig
    width: int
    tile: int  # visual tokens along one side of a tile
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, visual: Array, index: Array, region: Array) -> Array:
        """visual [B R D], ``index`` and ``region`` int32 [B T] -> corrections [B T D], zero outside regions.

        Args:
          visual: rows of the fused visual sequence.
          index: the row that stands at each position, or -1.
          region: number of the region, from 0, that a position belongs to, or -1.
        """
        config, precision = self.config, self.precision
        inside = region >= 0
        # The region tokens alone, in order: no attention over the whole text.
        count = min(config.tokens, region.shape[1])
        order = jnp.argsort(~inside, axis=1, stable=True)[:, :count]
        there = jnp.take_along_axis(inside, order, axis=1)  # [B K]
        rows = jnp.where(there, jnp.take_along_axis(index, order, axis=1), 0)
        number = jnp.clip(jnp.take_along_axis(region, order, axis=1), 0, config.regions - 1)
        normal, table = nn.initializers.normal(0.02), (config.regions, config.width)
        names = param(self, "region", normal, table, (None, "embed"), precision.param)
        x = self._linear("content", token_ops.gather_rows(visual, rows))
        x = x + self._linear("place", self._place(rows)) + names.astype(x.dtype)[number]
        image = self._linear("image", visual)
        image = image + self._linear("image_place", self._place(jnp.arange(visual.shape[1])[None]))
        mask = there[:, None, None, :]
        x = Block(config, precision, name="self_1")(x, None, mask)
        x = Block(config, precision, name="cross")(x, image, _shown(index, visual.shape[1])[:, None, None])
        x = Block(config, precision, name="self_2")(x, None, mask)
        x = LayerNorm(precision=precision, name="norm")(x)
        zeros = nn.initializers.zeros
        out = Linear(self.width, ("mlp", "embed"), precision=precision, kernel_init=zeros, name="out")(x)
        out = jnp.where(there[..., None], out, 0)
        slots = jnp.arange(len(order))[:, None]
        return jnp.zeros((*region.shape, self.width), out.dtype).at[slots, order].add(out)

    def _linear(self, name: str, x: Array) -> Array:
        return Linear(self.config.width, ("embed", "mlp"), precision=self.precision, name=name)(x)

    def _place(self, rows: Array) -> Array:
        """Sine code of each row's cell in its tile; rows of a second sensor stand at the same cells."""
        code = position.sine(self.tile, self.tile, PLACE).reshape(self.tile**2, PLACE)
        return code[rows % self.tile**2]


class Block(nn.Module):
    """Attention of x [B K w] to itself or to ``other`` [B S w], and a perceptron, both pre-normed and residual."""

    config: VisualPromptConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array, other: Array | None, mask: Array | None) -> Array:
        """``mask`` bool [B 1 1 S], false at keys that are not there."""
        config, precision = self.config, self.precision
        split = (config.heads, config.width // config.heads)

        def project(name: str, y: Array) -> Array:
            return Linear(split, ("embed", "heads", "head"), precision=precision, name=name)(y)

        own = LayerNorm(precision=precision, name="norm1")(x)
        source = own if other is None else LayerNorm(precision=precision, name="norm_other")(other)
        seen = attend(project("q", own), project("k", source), project("v", source), mask=mask)
        x = x + Linear(config.width, ("heads", "head", "embed"), contract=2, precision=precision, name="attn_out")(seen)
        y = LayerNorm(precision=precision, name="norm2")(x)
        y = Linear(config.mlp, ("embed", "mlp"), precision=precision, name="fc1")(y)
        return x + Linear(config.width, ("mlp", "embed"), precision=precision, name="fc2")(jax.nn.gelu(y, False))


def _shown(index: Array, rows: int) -> Array:
    """bool [B R]: the rows that the prompt shows; the others pad the batch."""
    slots = jnp.arange(len(index))[:, None]
    return jnp.zeros((len(index), rows), bool).at[slots, jnp.where(index < 0, rows, index)].set(True, mode="drop")


def region_numbers(tokens: Array, index: Array, start: int, end: int) -> Array:
    """int32 [B T]: of each position that holds a visual row between ``<vp>`` and ``</vp>`` the number of its region,
    from 0, else -1."""
    opened = jnp.cumsum(tokens == start, axis=1)
    within = (opened > jnp.cumsum(tokens == end, axis=1)) & (index >= 0)
    return jnp.where(within, opened - 1, -1)
