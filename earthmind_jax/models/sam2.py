"""SAM2 / SAM2.1 for images: :class:`ImageEncoder` (trunk, neck, high-resolution features) and :class:`MaskHead`
(prompts and mask decoder). The two share the parameter tree ``grounding/`` and no parameter.

Published as ``sam2.modeling.sam2_base.SAM2Base``, whose memory is :mod:`earthmind_jax.models.sam2_memory`; the language
prompt is that of Sa2VA / EarthMind.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models.hiera import FpnNeck, Hiera
from earthmind_jax.models.sam2_decoder import Decoded, HighResolution, MaskDecoder, mask_logits
from earthmind_jax.models.sam2_prompt import PromptEncoder
from earthmind_jax.nn.param import param
from earthmind_jax.types import ImageFeatures, MaskOutput, VisualPrompts

COARSEST = 32  # pixels per cell of the last trunk stage


@struct.dataclass
class MaskCandidates:
    """Candidate masks, K = 3 (``multimask``) or 1: float32 ``logits`` [B M K h w], ``iou`` [B M K] and ``object_score``
    logits [B M]; ``tokens`` [B M K D]."""

    logits: Array
    iou: Array
    tokens: Array
    object_score: Array


class ImageEncoder(nn.Module):
    """Normalised image [B H W 3], sides multiples of 32 -> :class:`ImageFeatures` (``forward_image``).

    ``embed`` is the stride-16 pyramid level as it is: the mask head adds ``no_mem_embed``. The coarsest level only
    feeds the level above it (``scalp: 1``).
    """

    config: GroundingConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, image: Array) -> ImageFeatures:
        if image.ndim != 4 or image.shape[3] != 3 or image.shape[1] % COARSEST or image.shape[2] % COARSEST:
            raise UserError(f"A grounding image is [B H W 3] with sides that are multiples of 32, not {image.shape}.")
        stages = Hiera(self.config, self.precision, name="trunk")(image)
        stride4, stride8, stride16, _ = FpnNeck(self.config, self.precision, name="neck")(stages)
        high = HighResolution(self.config, self.precision, name="decoder")(stride4, stride8)
        return ImageFeatures(embed=stride16, high=high)


class MaskHead(nn.Module):
    """Masks from image features and prompts, for M objects of each image at once."""

    config: GroundingConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        config, precision = self.config, self.precision
        self.prompt = PromptEncoder(config, precision)
        self.decoder = MaskDecoder(config, precision)
        init = nn.initializers.truncated_normal(0.02)
        self.no_mem_embed = param(self, "no_mem_embed", init, (config.width,), ("embed",), precision.param)

    def __call__(self, features: ImageFeatures, language: Array) -> MaskOutput:
        """:meth:`ground`."""
        return self.ground(features, language)

    def ground(
        self, features: ImageFeatures, language: Array | None = None, marks: VisualPrompts | None = None
    ) -> MaskOutput:
        """One mask for each prompted object: of the three candidates, that of highest predicted IoU.

        An object's prompt is its language vector [B M D], its marks, or both. The low-resolution logits [B M h w] are a
        quarter of the image's size. Gradients reach the chosen mask only. As released, a negative object score does not
        empty the mask.
        """
        pointed = {} if marks is None else {f.name: getattr(marks, f.name) for f in dataclasses.fields(marks)}
        return best_mask(self.decode(features, language=language, **pointed))

    def predict(
        self, features: ImageFeatures, *, multimask: bool = True, stability: bool | None = None, **prompts: Array | None
    ) -> MaskCandidates:
        """SAM2's promptable segmentation.

        Args:
          prompts: ``points`` with ``labels``, ``boxes``, ``masks``, ``language``, as in
            :class:`~earthmind_jax.models.sam2_prompt.PromptEncoder`.
          multimask: return the three candidates for ambiguous prompts, else the single mask.
          stability: fall back from an unstable single mask to the best of the three; None takes ``config.stability``.
            Published code does so at inference only.
        """
        decoded = self.decode(features, **prompts)
        if multimask:
            return three_masks(decoded)
        if self.config.stability if stability is None else stability:
            return stable_mask(decoded, self.config.stability_delta, self.config.stability_threshold)
        return single_mask(decoded)

    def decode(self, features: ImageFeatures, *, embed: Array | None = None, **prompts: Array | None) -> Decoded:
        """Everything that the decoder says about the prompted objects; the functions below choose among its masks.

        ``embed`` [B M|1 g g D] stands in for the image's own embedding: that of each object, memory included.
        """
        batch, height, width, _ = features.embed.shape
        encoded = self.prompt((height, width), batch, **prompts)
        if embed is None:
            embed = features.embed + self.no_mem_embed.astype(features.embed.dtype)
        return self.decoder(embed, features.high, encoded)

    def init_all(self, features: ImageFeatures, language: Array) -> None:
        """Touch every parameter."""
        height, width = features.embed.shape[1:3]
        masks = jnp.zeros((*language.shape[:2], 4 * height, 4 * width))
        self.decode(features, masks=masks, language=language)


def best_mask(decoded: Decoded) -> MaskOutput:
    """Of the candidates for ambiguous prompts, the one of highest predicted IoU; the others are never computed."""
    best = jnp.argmax(decoded.iou[:, :, 1:], axis=-1)[..., None] + 1  # [B M 1]
    hyper = jnp.take_along_axis(decoded.hyper, best[..., None], axis=2)
    return MaskOutput(
        logits=mask_logits(decoded.pixels, hyper)[:, :, 0],
        iou=jnp.take_along_axis(decoded.iou, best, axis=2)[..., 0],
        tokens=jnp.take_along_axis(decoded.tokens, best[..., None], axis=2)[:, :, 0],
        object_score=decoded.object_score,
    )


def three_masks(decoded: Decoded) -> MaskCandidates:
    """All candidates for ambiguous prompts (``multimask_output=True``)."""
    return _candidates(decoded, slice(1, None))


def single_mask(decoded: Decoded) -> MaskCandidates:
    """The mask for unambiguous prompts (``multimask_output=False``), K = 1."""
    return _candidates(decoded, slice(0, 1))


def stable_mask(decoded: Decoded, delta: float, threshold: float) -> MaskCandidates:
    """The single mask where its area hardly depends on the cut, else the best of the other candidates, K = 1.

    Stability is the IoU of the masks cut at logits +delta and -delta (``dynamic_multimask_via_stability``). The token
    stays that of the single mask, as published.
    """
    logits = mask_logits(decoded.pixels, decoded.hyper)
    single = logits[:, :, 0]
    inner, outer = ((single > cut).sum((-2, -1)).astype(jnp.float32) for cut in (delta, -delta))
    stable = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= threshold
    choice = jnp.where(stable, 0, 1 + jnp.argmax(decoded.iou[:, :, 1:], axis=-1))[..., None]  # [B M 1]
    return MaskCandidates(
        logits=jnp.take_along_axis(logits, choice[..., None, None], axis=2),
        iou=jnp.take_along_axis(decoded.iou, choice, axis=2),
        tokens=decoded.tokens[:, :, :1],
        object_score=decoded.object_score,
    )


def _candidates(decoded: Decoded, chosen: slice) -> MaskCandidates:
    return MaskCandidates(
        logits=mask_logits(decoded.pixels, decoded.hyper[:, :, chosen]),
        iou=decoded.iou[:, :, chosen],
        tokens=decoded.tokens[:, :, chosen],
        object_score=decoded.object_score,
    )
