"""InternViT, the vision encoder of InternVL2 / InternVL2.5 (published class ``InternVisionModel``)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import Precision, VisionConfig, require
from earthmind_jax.nn.conv import Conv2d
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import RMSNorm, norm
from earthmind_jax.nn.param import constrain, param
from earthmind_jax.nn.stack import scan_or_loop
from earthmind_jax.ops.attention import attend
from earthmind_jax.ops.resize import bicubic


@struct.dataclass
class VisionOutput:
    """Encoder outputs; H' W' is the patch grid, P = H' W', and position 0 of a sequence is the class token.

    Attributes:
      features: [B H' W' D], patches of the hidden state ``select_layer``, which the projector reads.
      hidden: [B 1+P D], the last layer's output (there is no final norm).
      states: [L+1 B 1+P D] on request: the embeddings, then the output of each layer.
    """

    features: Array
    hidden: Array
    states: Array | None = None


class InternViT(nn.Module):
    """Patches with a class token and learned positions, then pre-norm blocks with layer scale."""

    config: VisionConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, pixels: Array, *, states: bool = False) -> VisionOutput:
        """``pixels`` [B H W 3], normalised, H and W multiples of the patch size.

        Raises:
          UserError: a side of the image is not a multiple of the patch size.
        """
        c = self.config
        height, width = pixels.shape[1:3]
        require(
            height % c.patch_size == 0 and width % c.patch_size == 0,
            f"Image tiles of {height} x {width} pixels do not divide into patches of {c.patch_size}; resize first.",
        )
        embedded = constrain(self._embed(pixels), ("batch", None, None))
        select = c.select_layer % (c.depth + 1)
        packed = not self.is_initializing()
        blocks = scan_or_loop(VitBlock, c.depth, scan=c.scan, remat=c.remat, packed=packed)
        blocks = blocks(c, self.precision, states, name="blocks")
        # The carry holds the selected state as well; where that is the last one, the first element already is it.
        carry = (embedded, embedded if select < c.depth else None)
        (hidden, selected), outputs = blocks(carry, jnp.arange(1, c.depth + 1), None)
        selected = hidden if selected is None else selected
        grid = (height // c.patch_size, width // c.patch_size)
        return VisionOutput(
            features=selected[:, 1:].reshape(selected.shape[0], *grid, c.width),
            hidden=hidden,
            states=jnp.concatenate([embedded[None], outputs]) if states else None,
        )

    def _embed(self, pixels: Array) -> Array:
        """[B H W 3] -> [B 1+P D]."""
        c, p = self.config, self.precision
        small = nn.initializers.normal(0.02)
        patches = Conv2d(
            c.width,
            c.patch_size,
            stride=c.patch_size,
            axes=("patch", None, None, "embed"),
            precision=p,
            name="patch_embedding",
        )(pixels)  # [B H' W' D]
        batch, rows, columns, _ = patches.shape
        cls = param(self, "class_embedding", small, (c.width,), ("embed",), p.param)
        positions = param(
            self, "position_embedding", small, (1 + c.patches**2, c.width), ("position", "embed"), p.param
        )  # row 0 belongs to the class token, the rest is a square grid, row-major
        positions = positions.astype(jnp.float32)
        grid = positions[1:].reshape(c.patches, c.patches, c.width)
        if (rows, columns) != (c.patches, c.patches):
            grid = bicubic(grid, (rows, columns))
        positions = jnp.concatenate([positions[:1], grid.reshape(rows * columns, c.width)])
        cls = jnp.broadcast_to(cls.astype(patches.dtype), (batch, 1, c.width))
        x = jnp.concatenate([cls, patches.reshape(batch, rows * columns, c.width)], axis=1)
        return x + positions.astype(x.dtype)


class VitBlock(nn.Module):
    """``x += ls1 * attn(norm1(x)); x += ls2 * mlp(norm2(x))``."""

    config: VisionConfig
    precision: Precision
    states: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, Array | None], index: Array, shared: None):
        """``index``: 1 for the first layer, the number of its output among the hidden states."""
        x, selected = carry
        c = self.config
        x = x + self._scale("ls1") * VitAttention(c, self.precision, name="attn")(self._norm("norm1")(x))
        x = x + self._scale("ls2") * VitMlp(c, self.precision, name="mlp")(self._norm("norm2")(x))
        x = constrain(x, ("batch", None, None))
        if selected is not None:
            selected = jnp.where(index == c.select_layer % (c.depth + 1), x, selected)
        return (x, selected), (x if self.states else None)

    def _norm(self, name: str) -> nn.Module:
        return norm(self.config.norm, eps=self.config.norm_eps, precision=self.precision, name=name)

    def _scale(self, name: str) -> Array:
        init = nn.initializers.constant(self.config.layer_scale_init)
        scale = param(self, name, init, (self.config.width,), ("embed",), self.precision.param)
        return scale.astype(self.precision.compute)


class VitAttention(nn.Module):
    """Full self-attention; optional RMS norm of queries and keys over all heads together (the 6B model)."""

    config: VisionConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, heads = self.config, (self.config.heads, self.config.head_dim)

        def project(name: str) -> Array:
            axes = ("embed", "heads", "head")
            return Linear(heads, axes, use_bias=c.qkv_bias, precision=self.precision, name=name)(x)

        def normalised(name: str, y: Array) -> Array:
            layer = RMSNorm(eps=c.norm_eps, axis="heads", precision=self.precision, name=name)
            return layer(y.reshape(*y.shape[:2], c.width)).reshape(y.shape)

        q, k, v = project("q"), project("k"), project("v")  # [B T N h]
        if c.qk_norm:
            q, k = normalised("q_norm", q), normalised("k_norm", k)
        y = attend(q, k, v)
        return Linear(c.width, ("heads", "head", "embed"), contract=2, precision=self.precision, name="out")(y)


class VitMlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    config: VisionConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, p = self.config, self.precision
        x = jax.nn.gelu(Linear(c.mlp, ("embed", "mlp"), precision=p, name="fc1")(x), approximate=False)
        return Linear(c.width, ("mlp", "embed"), precision=p, name="fc2")(x)
