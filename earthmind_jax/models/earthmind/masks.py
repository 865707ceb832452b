"""Grounding: features of the image(s) that SAM2 sees, and the masks that prompts draw on them, on one date or many."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import functional
from earthmind_jax.models.earthmind.components import encoder_module, has_pyramid_maps, mask_module
from earthmind_jax.models.pyramid import PyramidMaps
from earthmind_jax.models.sam2_tracker import Tracked, Tracker
from earthmind_jax.ops import fusion as fusion_ops
from earthmind_jax.types import ImageFeatures, MaskOutput, Params, VisualPrompts

PROMPTED_FRAMES = 5
"""Frames of a stack that the language model sees and ``[SEG]`` prompts; those after them are followed."""


def image_features(
    cfg: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None = None,
    sar_valid: Array | None = None,
    weights: Array | None = None,
) -> ImageFeatures:
    """SAM2 features of the grounding image(s) [B G G 3], by ``cfg.fusion.grounding``.

    ``fused`` encodes both and blends the pyramids with the fusion weights [B N 2] of one token grid, brought onto each
    level; ``optical`` / ``sar`` encode one, falling back to the other where a sample lacks it.
    """
    features, presence = sensor_features(cfg, params, optical, sar, optical_valid, sar_valid)
    return features if presence is None else blend_features(features, presence, weights)


def sensor_features(
    cfg: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None = None,
    sar_valid: Array | None = None,
) -> tuple[ImageFeatures, Array | None]:
    """What of :func:`image_features` does not depend on the question: the features, and None; or, where the pyramids
    of both sensors are still to be blended, those of each sample's optical image before its SAR image [2B ...], and
    which of them are there, float [B 1 2]."""
    assert cfg.grounding is not None
    if optical is None or sar is None:
        image = optical if optical is not None else sar
        assert image is not None
        mark = jnp.full((image.shape[0],), optical is not None)
        return _mapped(cfg, params, _image_encoder(cfg, params, image), mark), None
    has_optical = jnp.ones(len(optical), bool) if optical_valid is None else optical_valid
    has_sar = jnp.ones(len(sar), bool) if sar_valid is None else sar_valid
    if cfg.fusion.grounding != "fused":
        use_optical = has_optical if cfg.fusion.grounding == "optical" else ~has_sar
        image = jnp.where(use_optical[:, None, None, None], optical, sar)
        return _mapped(cfg, params, _image_encoder(cfg, params, image), use_optical), None
    # Sample by sample, so that what is split over devices stays where it is.
    pairs = jnp.stack([optical, sar], axis=1)
    both = _image_encoder(cfg, params, pairs.reshape(-1, *optical.shape[1:]))
    kind = jnp.tile(jnp.array([True, False]), len(optical))
    presence = jnp.stack([has_optical, has_sar], -1).astype(jnp.float32)[:, None]
    return _mapped(cfg, params, both, kind), presence


def blend_features(both: ImageFeatures, presence: Array, weights: Array | None = None) -> ImageFeatures:
    """Features of both sensors [2 B' ...] blended by the fusion weights [B N 2]; B' is B, or 1 for one image under the
    weights of B questions."""
    weights = presence if weights is None else weights * presence
    total = weights.sum(-1, keepdims=True)
    # A token invalid in both sensors says nothing: share it between the sensors that are there.
    share = presence / jnp.maximum(presence.sum(-1, keepdims=True), 1)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), share)
    side = round(weights.shape[1] ** 0.5)

    def blend(features: Array) -> Array:
        w = fusion_ops.weights_to_grid(weights, (side, side), features.shape[1:3]).astype(features.dtype)
        return features[::2] * w[..., :1] + features[1::2] * w[..., 1:]

    return ImageFeatures(embed=blend(both.embed), high=tuple(blend(x) for x in both.high))


def repeat_features(features: ImageFeatures, presence: Array | None, count: int) -> tuple[ImageFeatures, Array | None]:
    """:func:`sensor_features` of B images for ``count`` questions about each, those about one image side by side."""
    if count == 1:
        return features, presence

    def repeated(x: Array, together: int) -> Array:
        return jnp.repeat(x.reshape(-1, together, *x.shape[1:]), count, axis=0).reshape(-1, *x.shape[1:])

    if presence is None:
        return jax.tree.map(lambda x: repeated(x, 1), features), None
    return jax.tree.map(lambda x: repeated(x, 2), features), repeated(presence, 1)


def ground(
    cfg: EarthMindConfig,
    params: Params,
    features: ImageFeatures,
    prompts: Array | None,
    marks: VisualPrompts | None = None,
) -> MaskOutput:
    """One mask per language prompt [B M d], per marked object, or for both together: the mask of highest predicted IoU,
    logits [B M h w] float32."""
    return functional.apply_module(mask_module(cfg), params, "grounding", features, prompts, marks, method="ground")


def track(
    cfg: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    prompts: Array | None,
    optical_valid: Array | None = None,
    sar_valid: Array | None = None,
    weights: Array | None = None,
    *,
    marks: VisualPrompts | None = None,
    prompted: int = PROMPTED_FRAMES,
    length: Array | None = None,
    questions: int = 1,
) -> Tracked:
    """Masks on every frame of a stack (several dates): each prompt speaks to the first frames, one by one, and what it
    means there is followed through the rest (``inject_language_embd`` and ``language_embd_inference``).

    Args:
      optical, sar: normalised images [B F G G 3]; ``optical_valid`` and ``sar_valid`` bool [B F].
      prompts: language prompts [B M d]; None where ``marks`` speak alone.
      marks: what is pointed at, at the same place on each of the first frames.
      weights: fusion weights [B N 2] for all frames, as in :func:`image_features`.
      prompted: how many of the frames are prompted; frames beyond them need a model with memory.
      length: int [B], frames in use where stacks are padded at their end.
      questions: prompts and weights [B * questions ...] are of so many questions about each stack, which is seen once.

    Returns:
      Arrays [B F M ...].
    """
    assert cfg.grounding is not None
    sensors = {"optical": optical, "sar": sar, "optical_valid": optical_valid, "sar_valid": sar_valid}
    frames = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), sensors)
    count = len(next(x for x in (frames["optical"], frames["sar"]) if x is not None))
    given = {name: value for name, value in (("language", prompts), ("marks", marks)) if value is not None}
    given = jax.tree.map(lambda x: jnp.broadcast_to(x, (min(prompted, count), *x.shape)), given)

    def encode(frame: dict[str, Array | None]) -> ImageFeatures:
        features, presence = repeat_features(*sensor_features(cfg, params, **frame), questions)
        return features if presence is None else blend_features(features, presence, weights)

    # As released, an object that is not there is drawn all the same.
    tracker = Tracker(cfg.grounding, cfg.precision, empty_absent=False)
    return tracker.track(params, frames, given, encode=encode, length=length)


def _image_encoder(cfg: EarthMindConfig, params: Params, image: Array) -> ImageFeatures:
    return functional.apply_module(encoder_module(cfg), params, "grounding", image)


def _mapped(cfg: EarthMindConfig, params: Params, features: ImageFeatures, optical: Array) -> ImageFeatures:
    if not has_pyramid_maps(cfg):
        return features
    return functional.apply_module(PyramidMaps(cfg.precision), params, "pyramid", features, optical)
