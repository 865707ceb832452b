"""Shared data structures, and the axis letters used in every signature.

===== ======================================  ===== ======================================
B     batch                                   K     key/value heads
I     image tiles of one sample               h     head dimension
P     patches of a tile                       V     vocabulary
T     query positions (text length)           M     masks of one sample
S     key positions                           L     layers (or text tokens, in fusion)
D     width                                   R     LoRA rank
N     attention heads (visual tokens of a     H W C image rows, columns, channels
      tile, in fusion)
===== ======================================  ===== ======================================
"""

from __future__ import annotations

from typing import Any, TypeAlias

from flax import struct
from jax import Array

Params: TypeAlias = dict[str, Array]
"""Flat mapping of path to array, e.g. ``"lm/blocks/attn/q/kernel"``. LoRA factors live under ``"lora/..."``."""


@struct.dataclass
class Batch:
    """One static-shaped batch. ``None`` (a static choice) means that no sample of the batch has that input.

    Attributes:
      tokens: int32 [B T], right-padded.
      loss_mask: bool [B T], true where ``tokens[t]`` is to be predicted (from position t-1).
      lengths: int32 [B], tokens in use.
      question: bool [B T], true at the user's own question tokens (the text that guides fusion).
      visual_index: int32 [B T], the row of the sample's visual sequence that replaces the embedding at this
        position, or -1. Rows count tile-major over the fused sequence (see ``ops.fusion``), so that region prompts are
        repeats of earlier rows.
      optical, sar: float [B I H W 3], normalised tiles.
      optical_valid, sar_valid: bool [B I N], false at padding tiles, nodata and missing sensors.
      places: int32 [B I 4], the tile's (row, column) in the grid of its image and that grid's (rows, columns);
        (0, 0, 1, 1) shows the whole image, and 0 rows is padding.
      ground_optical, ground_sar: float [B G G 3], normalised images for the mask decoder, or stacks of F dates
        [B F G G 3].
      ground_optical_valid, ground_sar_valid: bool [B] (of stacks [B F]), whether the sample has that sensor.
      seg_index: int32 [B M], position of the m-th ``[SEG]`` among the tokens (0 where unused).
      masks: float32 [B M h w], target masks at the decoder's low resolution; of stacks [B F M h w].
      mask_valid: bool [B M], of stacks [B F M].
      marks: what points the mask decoder at the m-th ``[SEG]`` [B M ...], "no point at all" where nothing does; None
        where no sample of the run has marks.
      source: int32 [B], the entry of ``data.sources`` that each sample is from, where there are several.
    """

    tokens: Array
    loss_mask: Array
    lengths: Array
    question: Array
    visual_index: Array
    optical: Array | None = None
    sar: Array | None = None
    optical_valid: Array | None = None
    sar_valid: Array | None = None
    places: Array | None = None
    ground_optical: Array | None = None
    ground_sar: Array | None = None
    ground_optical_valid: Array | None = None
    ground_sar_valid: Array | None = None
    seg_index: Array | None = None
    masks: Array | None = None
    mask_valid: Array | None = None
    marks: VisualPrompts | None = None
    source: Array | None = None

    @property
    def padding(self) -> Any:
        """Share of the positions that hold no token."""
        return 1 - self.lengths.sum() / self.tokens.size


@struct.dataclass
class KVCache:
    """Keys and values of every layer, float [L B S K h], and the number of positions in use, int32 [B]."""

    k: Array
    v: Array
    length: Array


@struct.dataclass
class LmOutput:
    """``hidden`` [B T D] after the final norm; if asked ``states`` [L+1 B T D], head-mean ``attention`` [L B T S]."""

    hidden: Array
    cache: KVCache | None = None
    states: Array | None = None
    attention: Array | None = None


@struct.dataclass
class ImageFeatures:
    """SAM2 image features, channels last: ``embed`` [B g g D] (stride 16), ``high`` = (stride 4, stride 8) features."""

    embed: Array
    high: tuple[Array, ...]
    extras: Any = None


@struct.dataclass
class VisualPrompts:
    """What M objects of each image are pointed at with, for the mask decoder; coordinates in pixels of its image.

    Attributes:
      points: float32 (x, y) [B M P 2]; of a box its two corners.
      labels: int32 [B M P]: 1 object, 0 background, 2 and 3 top-left and bottom-right corner of a box, -1 "no point at
        all" (the token of an object that has none).
      valid: bool [B M P], false where an object has fewer than P points.
      masks: float32 logits [B M h w] at a quarter of the image's size; None where no object has a mask.
      masked: bool [B M], the objects that have one.
    """

    points: Array
    labels: Array
    valid: Array
    masks: Array | None = None
    masked: Array | None = None


@struct.dataclass
class MaskOutput:
    """Mask decoder outputs: logits [B M h w], predicted IoU [B M], mask tokens [B M D], object score logits [B M]."""

    logits: Array
    iou: Array
    tokens: Array
    object_score: Array


@struct.dataclass
class Fused:
    """Fused visual tokens [B I N' D], their validity [B I N'], and weights [B I N 2] (optical, SAR) on the SAR grid."""

    tokens: Array
    valid: Array
    weights: Array
