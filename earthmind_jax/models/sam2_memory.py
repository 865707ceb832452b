"""What SAM2 remembers of earlier frames: the memory encoder, object pointers, and the bank that keeps both.

Published as ``sam2.modeling.memory_encoder`` and the memory part of ``sam2.modeling.sam2_base.SAM2Base``. The
parameters are those below ``grounding/memory/``, which exist where ``GroundingConfig.memory`` is set.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.models.sam2_decoder import Perceptron
from earthmind_jax.models.sam2_memory_attention import MemoryAttention, Recollection
from earthmind_jax.nn.conv import Conv2d
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.norm import LayerNorm
from earthmind_jax.nn.param import param
from earthmind_jax.ops import position
from earthmind_jax.ops.resize import bilinear

EPS = 1e-6
FUSER_DEPTH = 2
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # sigmoid_scale_for_mem_enc, sigmoid_bias_for_mem_enc


@struct.dataclass
class MemoryBank:
    """Everything that a later frame needs of the earlier ones, of a fixed size however many there were.

    Attributes:
      frame: int32 [], the number of the frame to come; those before P = ``prompted.shape[2]`` were prompted.
      length: int32 [B], frames of the whole stack, which SAM2.1 measures the age of pointers by.
      prompted: [B M P g g d], memories of the prompted frames, with ``prompted_pointers`` float32 [B M P D].
      recent: [B M R g g d], memories of the R = ``memory_frames`` - 1 frames before this one, the newest first, with
        ``recent_pointers`` float32 [B M Q D] of the Q = ``memory_pointers`` - 1 frames before it. Slots of prompted
        frames, and of frames before the first, are not read.
    """

    frame: Array
    length: Array
    prompted: Array
    prompted_pointers: Array
    recent: Array
    recent_pointers: Array

    def push(self, memory: Array, pointer: Array) -> MemoryBank:
        """The bank one frame later, with ``memory`` [B M g g d] and ``pointer`` [B M D] of this one."""
        memory, pointer = memory.astype(self.recent.dtype), pointer.astype(self.recent_pointers.dtype)
        return self.replace(
            frame=self.frame + 1,
            recent=jnp.concatenate([memory[:, :, None], self.recent[:, :, :-1]], axis=2),
            recent_pointers=jnp.concatenate([pointer[:, :, None], self.recent_pointers[:, :, :-1]], axis=2),
        )


class MaskDownsampler(nn.Module):
    """Mask [B H W 1] -> [B H/16 W/16 D]: four strided convolutions, each with four times the channels."""

    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for step in range(1, 5):
            x = Conv2d(4**step, 3, stride=2, padding=1, precision=self.precision, name=f"conv{step}")(x)
            x = LayerNorm(eps=EPS, axis="channel", precision=self.precision, name=f"norm{step}")(x)
            x = nn.gelu(x, approximate=False)
        return Conv2d(self.width, 1, precision=self.precision, name="out")(x)


class ConvNextBlock(nn.Module):
    """Depthwise 7x7 convolution, norm, GELU MLP and layer scale around a shortcut (``CXBlock``), [B g g D]."""

    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, precision = x.shape[-1], self.precision
        y = Conv2d(width, 7, padding=3, groups=width, precision=precision, name="depthwise")(x)
        y = LayerNorm(eps=EPS, precision=precision, name="norm")(y)
        y = Linear(4 * width, ("embed", "mlp"), precision=precision, name="fc1")(y)
        y = Linear(width, ("mlp", "embed"), precision=precision, name="fc2")(nn.gelu(y, approximate=False))
        scale = param(self, "scale", nn.initializers.constant(1e-6), (width,), ("embed",), precision.param)
        return x + scale.astype(y.dtype) * y


class MemoryEncoder(nn.Module):
    """Features [B g g D] and masks of M objects [B M 16g 16g] -> memories [B M g g d]."""

    config: GroundingConfig
    precision: Precision

    @nn.compact
    def __call__(self, embed: Array, masks: Array) -> Array:
        config, precision = self.config, self.precision
        batch, objects, *size = masks.shape
        marks = MaskDownsampler(config.width, precision, name="mask")(masks.reshape(-1, *size, 1))
        marks = marks.reshape(batch, objects, *marks.shape[1:])
        square = (None, None, "embed", "embed_out")
        pixels = Conv2d(config.width, 1, axes=square, precision=precision, name="pixels")(embed)
        x = (pixels[:, None] + marks).reshape(-1, *marks.shape[2:])
        for index in range(FUSER_DEPTH):
            x = ConvNextBlock(precision, name=f"fuser_{index}")(x)
        out = (None, None, "embed", "channel")
        x = Conv2d(config.memory_dim, 1, axes=out, precision=precision, name="out")(x)
        return x.reshape(batch, objects, *x.shape[1:])


class Memory(nn.Module):
    """Writes frames into a :class:`MemoryBank`'s form, and reads the bank for a new frame."""

    config: GroundingConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        config, precision = self.config, self.precision
        width, dim = config.width, config.memory_dim
        init = nn.initializers.truncated_normal(0.02)
        self.encoder = MemoryEncoder(config, precision)
        self.attention = MemoryAttention(config, precision)
        self.pointer_map = Perceptron((width, width, width), precision)
        self.mask_downsample = Conv2d(1, 4, stride=4, axes=(None,) * 4, precision=precision)
        self.time = param(self, "time", init, (config.memory_frames, dim), (None, "channel"), precision.param)
        self.no_pointer = param(self, "no_pointer", init, (width,), ("embed",), precision.param)
        # Nothing reads it (``directly_add_no_mem_embed``): it is there so that a checkpoint is written back whole.
        self.no_mem_position = param(self, "no_mem_position", init, (width,), ("embed",), precision.param)
        if config.version == "2.1":
            self.pointer_time = Linear(dim, ("embed", "channel"), precision=precision)
            self.absent = param(self, "absent", init, (dim,), ("channel",), precision.param)

    def remember(self, embed: Array, logits: Array, object_score: Array, *, prompted: bool) -> Array:
        """The memory of one frame (``_encode_new_memory``).

        Args:
          embed: features of the frame as they leave the image encoder [B g g D].
          logits: masks at low resolution [B M 4g 4g]; ``object_score`` logits [B M].
          prompted: whether the masks answer a prompt on this frame.

        Returns:
          [B M g g d] in ``memory_dtype``.
        """
        height, columns = logits.shape[2:]
        large = bilinear(jnp.moveaxis(logits.astype(jnp.float32), 1, -1), (4 * height, 4 * columns))
        binary = prompted and self.config.memory_binarize
        shares = (large > 0).astype(jnp.float32) if binary else nn.sigmoid(large)
        memory = self.encoder(embed, jnp.moveaxis(shares * MASK_SCALE + MASK_BIAS, -1, 1))
        if self.config.version == "2.1":
            gone = (object_score <= 0)[..., None, None, None]
            memory = memory + jnp.where(gone, self.absent.astype(memory.dtype), 0)
        return memory.astype(self.config.memory_dtype)

    def pointer(self, tokens: Array, object_score: Array) -> Array:
        """Object pointers float32 [B M D] of mask tokens [B M D]; all absent objects (score <= 0) have the same one."""
        pointers = self.pointer_map(tokens).astype(jnp.float32)
        return jnp.where(object_score[..., None] > 0, pointers, self.no_pointer.astype(jnp.float32))

    def mask_prompt(self, masks: Array) -> Array:
        """Masks of 0 and 1 [B M 16g 16g] -> mask prompts of the decoder [B M 4g 4g] (``mask_downsample``)."""
        batch, objects, *size = masks.shape
        small = self.mask_downsample(masks.reshape(-1, *size, 1))
        return small.reshape(batch, objects, *small.shape[1:3])

    def read(self, embed: Array, bank: MemoryBank) -> Array:
        """Features [B g g D] of the frame ``bank.frame`` -> features of each object [B M g g D], memory included."""
        prompted, recent, asked = bank.prompted.shape[2], bank.recent.shape[2], bank.recent_pointers.shape[2]
        batch, objects, _, height, columns, dim = bank.prompted.shape
        tracked = bank.frame - prompted  # frames that the recent slots can be of
        time = self.time.astype(jnp.float32)
        moment = jnp.concatenate([jnp.broadcast_to(time[-1], (prompted, dim)), time[:recent]])
        pointers = jnp.concatenate([bank.prompted_pointers, bank.recent_pointers], axis=2)
        age = jnp.concatenate([bank.frame - jnp.arange(prompted), 1 + jnp.arange(asked)])
        pieces = self.config.width // dim
        past = Recollection(
            memories=jnp.concatenate([bank.prompted, bank.recent], axis=2),
            memory_code=position.sine(height, columns, dim) + moment[:, None, None],
            memory_valid=jnp.concatenate([jnp.ones(prompted, bool), jnp.arange(recent) < tracked]),
            pointers=pointers.reshape(batch, objects, -1, dim),
            pointer_code=jnp.repeat(self._pointer_code(age, bank.length), pieces, axis=1),
            pointer_valid=jnp.repeat(jnp.concatenate([jnp.ones(prompted, bool), jnp.arange(asked) < tracked]), pieces),
        )
        return self.attention(embed, past)

    def _pointer_code(self, age: Array, length: Array) -> Array:
        """Time codes [B Q d] of pointers that are ``age`` [Q] frames old in stacks of ``length`` [B] frames."""
        if self.config.version != "2.1":
            return jnp.zeros((len(length), len(age), self.config.memory_dim))
        oldest = jnp.maximum(jnp.minimum(length, self.config.memory_pointers) - 1, 1)
        code = position.sine_time(age / oldest[:, None], self.config.width)
        return self.pointer_time(code).astype(jnp.float32)

    def init_all(self, embed: Array, bank: MemoryBank) -> None:
        """Touch every parameter."""
        batch, objects, _, height, columns, _ = bank.prompted.shape
        scores = jnp.zeros((batch, objects))
        self.remember(embed, jnp.zeros((batch, objects, 4 * height, 4 * columns)), scores, prompted=True)
        self.pointer(jnp.zeros((batch, objects, self.config.width)), scores)
        self.mask_prompt(jnp.zeros((batch, objects, 16 * height, 16 * columns)))
        self.read(embed, bank)


def start_bank(config: GroundingConfig, memories: Array, pointers: Array, length: Array) -> MemoryBank:
    """The bank after P prompted frames: their memories [B M P g g d] and pointers [B M P D]; ``length`` int [B]."""
    batch, objects, prompted, height, columns, dim = memories.shape
    return MemoryBank(
        frame=jnp.asarray(prompted, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        prompted=memories,
        prompted_pointers=pointers.astype(jnp.float32),
        recent=jnp.zeros((batch, objects, config.memory_frames - 1, height, columns, dim), memories.dtype),
        recent_pointers=jnp.zeros((batch, objects, config.memory_pointers - 1, config.width), jnp.float32),
    )
