"""SAM2's memory attention: the features of a frame read what is remembered of the objects.

Published as ``sam2.modeling.memory_attention``, with one head of axial rotary attention. M objects of an image
share its features until the first reading of their memories.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.ops import position
from earthmind_jax.ops.attention import attend
from earthmind_jax.ops.rope_axial import axial_tables, rotate_pairs

EPS = 1e-5


class Recollection(NamedTuple):
    """What one frame may read of M objects: F memories of g x g cells, then Q pointer tokens, of width d.

    Attributes:
      memories: [B M F g g d], and ``memory_code`` [F g g d], their position in space and time.
      pointers: [B M Q d], and ``pointer_code`` [B Q d].
      memory_valid, pointer_valid: bool [F], [Q].
    """

    memories: Array
    memory_code: Array
    memory_valid: Array
    pointers: Array
    pointer_code: Array
    pointer_valid: Array


class RopeAttention(nn.Module):
    """Attention of one head over the width, with queries, and all keys that lie on the grid, turned by position."""

    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, q: Array, k: Array, v: Array, tables: tuple[Array, Array], grids: int = 1, mask: Array | None = None
    ) -> Array:
        """q [B M|1 S D], k and v [B M K d] -> [B M S D].

        Of the keys, ``grids`` times S lie on the grid whose ``tables`` [S D/2] these are; the rest, which come last,
        are not turned. ``mask`` bool [K].
        """

        def project(name: str, x: Array) -> Array:
            return Linear(self.width, ("embed", "embed_out"), precision=self.precision, name=name)(x)

        q, k, v = rotate_pairs(project("q", q), *tables), project("k", k), project("v", v)
        (batch, objects), cells = k.shape[:2], q.shape[2]
        placed = k[:, :, : grids * cells].reshape(batch, objects, grids, cells, self.width)
        turned = rotate_pairs(placed, *tables).reshape(batch, objects, grids * cells, self.width)
        k = jnp.concatenate([turned, k[:, :, grids * cells :]], axis=2)
        q = jnp.broadcast_to(q, (batch, objects, cells, self.width))
        q, k, v = (x.reshape(batch * objects, -1, 1, self.width) for x in (q, k, v))
        out = attend(q, k, v, mask=None if mask is None else mask[None, None, None])
        return project("out", out.reshape(batch, objects, cells, self.width))


class MemoryLayer(nn.Module):
    """Pre-norm self-attention, attention to the memories, and a ReLU MLP."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(
        self, x: Array, keys: Array, values: Array, tables: tuple[Array, Array], grids: int, mask: Array
    ) -> Array:
        """x [B M|1 S D], keys and values [B M K d], ``grids`` times S of these on the grid; mask bool [K]."""
        width, precision = self.config.width, self.precision

        def norm(name: str, x: Array) -> Array:
            return LayerNorm(eps=EPS, precision=precision, name=name)(x)

        def attention(name: str) -> RopeAttention:
            return RopeAttention(width, precision, name=name)

        normed = norm("norm1", x)
        x = x + attention("self_attn")(normed, normed, normed, tables)
        x = x + attention("cross_attn")(norm("norm2", x), keys, values, tables, grids, mask)
        hidden = Linear(self.config.memory_mlp, ("embed", "mlp"), precision=precision, name="fc1")(norm("norm3", x))
        return x + Linear(width, ("mlp", "embed"), precision=precision, name="fc2")(nn.relu(hidden))


class MemoryAttention(nn.Module):
    """Frame features [B g g D] and what is remembered -> features of each object [B M g g D]."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, embed: Array, past: Recollection) -> Array:
        batch, height, columns, width = embed.shape
        objects, frames = past.memories.shape[1:3]
        tables = axial_tables(height, columns, width)

        def join(memories: Array, pointers: Array) -> Array:
            flat = memories.reshape(batch, objects, frames * height * columns, -1)
            return jnp.concatenate([flat, pointers], axis=2).astype(self.precision.compute)

        # Positions are added before the memories are rounded to the compute dtype, as they are published.
        memories, pointers = past.memories.astype(jnp.float32), past.pointers.astype(jnp.float32)
        values = join(memories, pointers)
        keys = join(memories + past.memory_code, pointers + past.pointer_code[:, None])
        mask = jnp.concatenate([jnp.repeat(past.memory_valid, height * columns), past.pointer_valid])
        x = embed.astype(self.precision.compute)
        x = x + (0.1 * position.sine(height, columns, width)).astype(x.dtype)
        x = x.reshape(batch, 1, height * columns, width)
        for index in range(self.config.memory_layers):
            layer = MemoryLayer(self.config, self.precision, name=f"layer_{index}")
            x = layer(x, keys, values, tables, frames, mask)
        x = LayerNorm(eps=EPS, precision=self.precision, name="norm")(x)
        return x.reshape(batch, objects, height, columns, width)
