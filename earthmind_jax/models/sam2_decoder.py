"""The mask decoder of SAM2: a two-way transformer between prompt tokens and one image, and its heads.

Published as ``sam2.modeling.sam.{transformer, mask_decoder}``. M objects of an image are decoded at once: what does not
depend on the object (the first layer's projections of the image, the high-resolution features) is computed once and
broadcast. Pixels stay grouped by their cell of the embedding grid until the logits, which alone are put in image order.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.models.sam2_prompt import Prompts
from earthmind_jax.nn.conv import Conv2d
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.nn.param import fan_in_normal, param
from earthmind_jax.ops.attention import attend
from earthmind_jax.ops.product import product


@struct.dataclass
class Decoded:
    """Decoder outputs before a choice among the K = 1 + ``multimask_outputs`` candidate masks is made.

    Attributes:
      pixels: [B M g g 2 2 2 2 C]: cell (row, column), then (row, column) within it, at stride 8 and then at stride 4.
      hyper: [B M K C], the classifier of each candidate's pixels.
      iou: float32 [B M K], predicted quality; candidate 0 is the single mask, the others are for ambiguous prompts.
      tokens: [B M K D], mask tokens.
      object_score: float32 logits [B M]; positive where the object is there.
    """

    pixels: Array
    hyper: Array
    iou: Array
    tokens: Array
    object_score: Array


def mask_logits(pixels: Array, hyper: Array) -> Array:
    """Pixels of :class:`Decoded` and classifiers [B M K C] -> float32 logits [B M K 4g 4g]."""
    batch, objects, height, width, *steps, channels = pixels.shape
    flat = pixels.reshape(batch, objects, -1, channels)  # a plain product: the order of the pixels is changed after it
    logits = jnp.einsum("bmxc,bmtc->bmtx", flat, hyper, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, objects, -1, height, width, *steps).transpose(0, 1, 2, 3, 5, 7, 4, 6, 8)
    return logits.reshape(batch, objects, -1, 4 * height, 4 * width)


class DecoderAttention(nn.Module):
    """Attention of M objects' queries to M objects' keys, where either side may be shared by all objects."""

    heads: int
    inner: int  # width of queries, keys and values together
    precision: Precision

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array, seen: Array | None = None) -> Array:
        """q [B M|1 T D], k and v [B M|1 S D] -> [B M T D]; ``seen`` bool [B M|1 S], false at keys to be left out."""
        split = (self.heads, self.inner // self.heads)

        def project(name: str, x: Array) -> Array:
            return Linear(split, ("embed", "heads", "head"), precision=self.precision, name=name)(x)

        width = q.shape[-1]
        q, k, v = project("q", q), project("k", k), project("v", v)  # [B M T N h]
        batch, objects, queries = q.shape[0], max(q.shape[1], k.shape[1]), q.shape[2]
        if k.shape[1] == 1:
            # Queries do not see each other, so those of all objects can attend to the shared keys as one sequence.
            q, k, v = q.reshape(batch, -1, *split), k[:, 0], v[:, 0]
        else:
            q = jnp.broadcast_to(q, (batch, objects, queries, *split)).reshape(-1, queries, *split)
            k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))
        mask = None if seen is None else seen.reshape(-1, 1, 1, seen.shape[-1])
        out = attend(q, k, v, mask=mask).reshape(batch, objects, queries, *split)
        return Linear(width, ("heads", "head", "embed"), contract=2, precision=self.precision, name="out")(out)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    config: GroundingConfig
    first: bool  # the first block's tokens are their own positions: no position is added, nothing is kept
    precision: Precision

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, token_code: Array, image_code: Array, seen: Array | None = None
    ) -> tuple[Array, Array]:
        """tokens and token_code [B M T D], image [B M|1 S D], image_code [S D], ``seen`` [B M T] -> tokens, image
        [B M S D]."""
        config, precision = self.config, self.precision

        def attention(name: str, reduce: int = 2) -> DecoderAttention:
            return DecoderAttention(config.decoder_heads, config.width // reduce, precision, name=name)

        def norm(name: str, x: Array) -> Array:
            return LayerNorm(eps=1e-5, precision=precision, name=name)(x)

        if self.first:
            tokens = attention("self_attn", 1)(tokens, tokens, tokens, seen)
        else:
            placed = tokens + token_code
            tokens = tokens + attention("self_attn", 1)(placed, placed, tokens, seen)
        tokens = norm("norm1", tokens)
        placed_image = image + image_code
        tokens = norm("norm2", tokens + attention("token_to_image")(tokens + token_code, placed_image, image))
        mlp = Perceptron((config.decoder_mlp, config.width), precision, name="mlp")
        tokens = norm("norm3", tokens + mlp(tokens))
        image = norm("norm4", image + attention("image_to_token")(placed_image, tokens + token_code, tokens, seen))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Blocks in both directions and a last look of the tokens at the image."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, image_code: Array, seen: Array | None = None
    ) -> tuple[Array, Array]:
        """tokens [B M T D], image [B M|1 S D], image_code [S D] -> tokens [B M T D], image [B M S D]; no one looks at
        the tokens that ``seen`` bool [B M T] leaves out."""
        config, token_code = self.config, tokens
        for index in range(config.decoder_depth):
            block = TwoWayBlock(config, index == 0, self.precision, name=f"layer_{index}")
            tokens, image = block(tokens, image, token_code, image_code, seen)
        final = DecoderAttention(config.decoder_heads, config.width // 2, self.precision, name="final_attn")
        tokens = tokens + final(tokens + token_code, image + image_code, image)
        return LayerNorm(eps=1e-5, precision=self.precision, name="norm_final")(tokens), image


class Perceptron(nn.Module):
    """Two or three linear maps ``fc1``, ``fc2``, ``fc3`` to ``sizes`` with ReLU between them."""

    sizes: tuple[int, ...]
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = ("embed", "mlp", "hidden", None)
        for index, size in enumerate(self.sizes):
            x = nn.relu(x) if index else x
            x = Linear(size, axes[index : index + 2], precision=self.precision, name=f"fc{index + 1}")(x)
        return x


class Upscale(nn.Module):
    """A 2x2 transposed convolution of stride 2: [... C] -> [... 2 2 F], the four new pixels beside their cell.

    ``kernel`` [2 2 C F] as in :class:`earthmind_jax.nn.conv.ConvTranspose2x2`.
    """

    features: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def init(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
            return fan_in_normal(3, scale=4.0)(key, shape, dtype)  # each output pixel sums over C alone

        shape, compute, stored = (2, 2, x.shape[-1], self.features), self.precision.compute, self.precision.param
        axes = (None, None, "channel", "embed")
        kernel = param(self, "kernel", init, shape, axes, stored, compute=compute)
        bias = param(self, "bias", nn.initializers.zeros, (self.features,), ("embed",), stored)
        return product("...c,ijcf->...ijf", x.astype(compute), kernel) + bias.astype(compute)


class HighResolution(nn.Module):
    """1x1 convolutions of the two finest pyramid levels (stride 4 and 8) for the decoder: ``conv_s0``, ``conv_s1``."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, stride4: Array, stride8: Array) -> tuple[Array, Array]:
        def conv(name: str, features: int) -> Conv2d:
            return Conv2d(features, 1, axes=(None, None, "embed", "channel"), precision=self.precision, name=name)

        width = self.config.width
        return conv("conv_s0", width // 8)(stride4), conv("conv_s1", width // 4)(stride8)


class MaskDecoder(nn.Module):
    """Image features and prompts -> :class:`Decoded`."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, embed: Array, high: tuple[Array, ...], prompts: Prompts) -> Decoded:
        """embed [B g g D], or [B M|1 g g D] where each object has its own; high = ([B 4g 4g D/8], [B 2g 2g D/4]);
        prompts of M objects (or of one, for all of them)."""
        config, precision = self.config, self.precision
        width, candidates = config.width, 1 + config.multimask_outputs
        embed = embed if embed.ndim == 5 else embed[:, None]
        batch, _, height, columns, _ = embed.shape

        def token(name: str, count: int) -> Array:
            rows = param(self, name, nn.initializers.normal(1.0), (count, width), (None, "embed"), precision.param)
            return rows.astype(jnp.float32)

        own = jnp.concatenate([token("object_token", 1), token("iou_token", 1), token("mask_tokens", candidates)])
        own = jnp.broadcast_to(own, (*prompts.sparse.shape[:2], *own.shape))
        tokens = jnp.concatenate([own, prompts.sparse], axis=2).astype(precision.compute)
        seen = prompts.seen
        if seen is not None:
            seen = jnp.pad(seen, ((0, 0), (0, 0), (own.shape[2], 0)), constant_values=True)
        image = (embed + prompts.dense).astype(precision.compute)
        image = image.reshape(batch, -1, height * columns, width)
        code = prompts.position.reshape(height * columns, width).astype(precision.compute)
        tokens, image = TwoWayTransformer(config, precision, name="transformer")(tokens, image, code, seen)
        pixels = self._upscale(image.reshape(*image.shape[:2], height, columns, width), high)
        masks = tokens[:, :, 2 : 2 + candidates]

        def head(name: str, hidden: int, outputs: int, x: Array) -> Array:
            return Perceptron((hidden, hidden, outputs), precision, name=name)(x).astype(jnp.float32)

        iou = head("iou_head", config.iou_hidden, candidates, tokens[:, :, 1])
        return Decoded(
            pixels=pixels,
            hyper=self._hyper(masks),
            iou=nn.sigmoid(iou) if config.iou_sigmoid else iou,
            tokens=masks,
            object_score=head("object_head", width, 1, tokens[:, :, 0])[..., 0],
        )

    def _hyper(self, masks: Array) -> Array:
        """Mask tokens [B M K D] -> pixel classifiers [B M K C], one perceptron for each candidate."""
        stacked = nn.vmap(
            Perceptron, in_axes=2, out_axes=2, variable_axes={"params": 0}, split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: None},
        )  # fmt: skip
        width = self.config.width
        return stacked((width, width, width // 8), self.precision, name="hyper")(masks)

    def _upscale(self, image: Array, high: tuple[Array, ...]) -> Array:
        """Image [B M g g D] -> pixels [B M g g 2 2 2 2 C], with the high-resolution features added on the way."""
        precision, width = self.precision, self.config.width
        batch, _, height, columns, _ = image.shape
        stride4, stride8 = (x.astype(precision.compute) for x in high)
        stride8 = stride8.reshape(batch, 1, height, 2, columns, 2, -1).swapaxes(3, 4)
        stride4 = stride4.reshape(batch, 1, height, 2, 2, columns, 2, 2, -1).transpose(0, 1, 2, 5, 3, 6, 4, 7, 8)
        x = Upscale(width // 4, precision, name="upscale1")(image) + stride8
        x = LayerNorm(eps=1e-6, axis="channel", precision=precision, name="upscale_norm")(x)
        x = Upscale(width // 8, precision, name="upscale2")(nn.gelu(x, approximate=False)) + stride4
        return nn.gelu(x, approximate=False)
