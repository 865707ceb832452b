"""The composition: encode -> fuse -> embed -> language model -> [SEG] -> masks, as pure functions over flat parameters.

Each function runs one published component through :mod:`earthmind_jax.models.functional`; together they are EarthMind's
forward pass. Inference calls them one by one (each its own jit), training calls :func:`forward`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.fusion import Fusion
from earthmind_jax.models.intern_vit import InternViT
from earthmind_jax.models.projector import Projector, TextHiddenFcs
from earthmind_jax.models.pyramid import MAPPED_MODES, PyramidMaps
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead
from earthmind_jax.models.sam2_memory import Memory, start_bank
from earthmind_jax.models.sam2_tracker import Tracked, Tracker
from earthmind_jax.models.visual_prompt import VisualPromptEncoder, region_numbers
from earthmind_jax.ops import fusion as fusion_ops
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.ops.norms import rms_norm
from earthmind_jax.types import Batch, Fused, ImageFeatures, KVCache, LmOutput, MaskOutput, Params, VisualPrompts

PROMPTED_FRAMES = 5
"""Frames of a stack that the language model sees and ``[SEG]`` prompts; those after them are followed."""


@struct.dataclass
class ForwardOutput:
    """Training outputs: ``hidden`` [B T D] or None, ``fused`` (None for text alone), ``masks`` [B M h w] logits (of
    stacks [B F M h w]), both sensors' tokens before fusion (for the sensor loss), and on request the masks drawn from
    the phrases themselves with ``phrase_valid`` [B M], those drawn from marks, the mask decoder's prompts [B M d] of
    ``[SEG]`` and phrase (see :func:`forward`), and the phrases' mean embeddings ``words`` [B M D]; ``attention``
    [B M T] of each ``[SEG]`` in the last layer (head mean)."""

    hidden: Array | None
    fused: Fused | None
    masks: MaskOutput | None
    sensor_tokens: tuple[Array, Array] | None
    phrase_masks: MaskOutput | None = None
    phrase_valid: Array | None = None
    marked: MaskOutput | None = None
    prompts: tuple[Array, Array] | None = None
    words: Array | None = None
    attention: Array | None = None


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


def embed(cfg: EarthMindConfig, params: Params, tokens: Array) -> Array:
    """Token embeddings [B T] -> [B T D]."""
    return functional.apply_module(decoder_module(cfg), params, "lm", tokens, method="embed")


def place(text: Array, visual: Array | None, index: Array) -> Array:
    """Put visual rows [B R D] at the positions that ``index`` [B T] names (``inputs_embeds``)."""
    return text if visual is None else token_ops.place_visual(text, visual.astype(text.dtype), index)


def refine(
    cfg: EarthMindConfig, params: Params, embeds: Array, visual: Array | None, tokens: Array, index: Array
) -> Array:
    """Inputs of the language model [B T D] with the region tokens corrected by the learned prompt encoder; as they are
    without one (``cfg.prompts``), or without an image.

    Args:
      visual, index: as of :func:`place`.
      tokens: ids [B T].
    """
    if cfg.prompts is None or visual is None:
        return embeds
    region = region_numbers(tokens, index, cfg.tokens.vp_start, cfg.tokens.vp_end)
    correction = functional.apply_module(prompt_module(cfg), params, "visual_prompt", visual, index, region)
    return embeds + correction.astype(embeds.dtype)


def language(
    cfg: EarthMindConfig,
    params: Params,
    embeds: Array,
    lengths: Array | None = None,
    *,
    cache: KVCache | None = None,
    fresh: bool = False,
    dropout: Array | None = None,
    states: bool = False,
    attention: bool = False,
    rows: Array | None = None,
) -> LmOutput:
    """The language model over right-padded [B T D]; the arguments are those of :class:`Decoder`."""
    rngs = None if dropout is None else {"dropout": dropout}
    options = {"cache": cache, "fresh": fresh, "states": states, "attention": attention, "rows": rows}
    return functional.apply_module(decoder_module(cfg), params, "lm", embeds, lengths=lengths, rngs=rngs, **options)


def logits(cfg: EarthMindConfig, params: Params, hidden: Array) -> Array:
    """Vocabulary logits, float32, [B T V]."""
    return functional.apply_module(decoder_module(cfg), params, "lm", hidden, method="logits")


def head_kernel(cfg: EarthMindConfig, params: Params) -> Array:
    """The vocabulary head [D V], adapters included (the transposed embedding table where tied)."""
    return functional.apply_module(decoder_module(cfg), params, "lm", method="head")


def seg_prompt(cfg: EarthMindConfig, params: Params, states: Array) -> Array:
    """Language-model states at ``[SEG]`` [B M D] -> language prompt of the mask decoder [B M d] (text_hidden_fcs)."""
    return functional.apply_module(seg_module(cfg), params, "text_hidden_fcs", states)


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


def whole_tile(fused: Fused, values: Array) -> Array:
    """Of ``values`` [B I ...], those of the tile that shows the whole image: the last valid one (the thumbnail, or the
    only tile)."""
    shown = fused.weights.sum(-1).max(-1) > 0  # [B I]
    last = jnp.max(jnp.where(shown, jnp.arange(shown.shape[1]), 0), axis=1)
    return jnp.take_along_axis(values, last.reshape(-1, 1, *(1,) * (values.ndim - 2)), axis=1)[:, 0]


def grounding_weights(fused: Fused) -> Array:
    """Weights [B N 2] of :func:`whole_tile`."""
    return whole_tile(fused, fused.weights)


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

    Returns:
      Arrays [B F M ...].
    """
    assert cfg.grounding is not None
    sensors = {"optical": optical, "sar": sar, "optical_valid": optical_valid, "sar_valid": sar_valid}
    frames = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), sensors)
    count = len(next(x for x in (frames["optical"], frames["sar"]) if x is not None))
    given = {name: value for name, value in (("language", prompts), ("marks", marks)) if value is not None}
    given = jax.tree.map(lambda x: jnp.broadcast_to(x, (min(prompted, count), *x.shape)), given)
    # As released, an object that is not there is drawn all the same.
    return Tracker(cfg.grounding, cfg.precision, empty_absent=False).track(
        params,
        frames,
        given,
        encode=lambda frame: image_features(cfg, params, weights=weights, **frame),
        length=length,
    )


def forward(
    cfg: EarthMindConfig,
    params: Params,
    batch: Batch,
    *,
    dropout: Array | None = None,
    phrases: bool = False,
    speaks: bool = True,
    attention: bool = False,
    marks: VisualPrompts | None = None,
) -> ForwardOutput:
    """Teacher-forced pass over a training batch.

    Args:
      dropout: key for LoRA dropout.
      phrases: also draw each mask from the embeddings of its phrase (``<p> phrase </p> [SEG]``) in place of the
        ``[SEG]`` state, which teaches the mask decoder the words before the language model can tell them apart.
      speaks: run the language model; without it there are no ``hidden`` and no ``masks`` of ``[SEG]``.
      attention: also return the attention of each ``[SEG]``.
      marks: also draw masks from these alone [B M ...], of stacks [(B F) M ...]. Those of the batch steer the masks of
        ``[SEG]``, not these and not those of phrases.
    """
    text = embed(cfg, params, batch.tokens)
    fused, sensor_tokens, visual = None, None, None
    if batch.optical is not None or batch.sar is not None:
        optical, sar = encode_sensors(cfg, params, batch.optical, batch.sar)
        fused = fuse(cfg, params, optical, sar, batch.optical_valid, batch.sar_valid, text, batch.question)
        visual = fused.tokens.reshape(fused.tokens.shape[0], -1, fused.tokens.shape[-1])
        if optical is not None and sar is not None:
            sensor_tokens = (sar, optical)
    hidden, looks = None, None
    if speaks:
        embeds = place(text, visual, batch.visual_index)
        embeds = refine(cfg, params, embeds, visual, batch.tokens, batch.visual_index)
        rows = batch.seg_index if attention else None
        said = language(cfg, params, embeds, batch.lengths, dropout=dropout, rows=rows)
        hidden, looks = said.hidden, None if said.attention is None else said.attention[-1]
    out = ForwardOutput(hidden, fused, None, sensor_tokens, attention=looks)
    if cfg.grounding is None or batch.seg_index is None or not (phrases or speaks or marks is not None):
        return out
    states = []
    if hidden is not None:
        states.append(token_ops.gather_rows(hidden, batch.seg_index))
    if phrases:
        ends = (cfg.tokens.p_start, cfg.tokens.p_end)
        words, found = token_ops.phrase_mean(text, batch.tokens, batch.seg_index, *ends)
        out = out.replace(words=words, phrase_valid=found)
        # The norm of the final state, so that one map serves both.
        states.append(rms_norm(words, params["lm/norm/scale"], cfg.lm.norm_eps).astype(cfg.precision.compute))
    # Prompts of one image do not see each other, so both kinds share one pass of the decoder.
    prompts = seg_prompt(cfg, params, jnp.concatenate(states, axis=1)) if states else None
    steered = None if hidden is None or batch.marks is None else _with_room(batch.marks, prompts.shape[1])
    weights = None if fused is None else grounding_weights(fused)
    drawn, marked = _draw(cfg, params, batch, prompts, weights, marks, steered)
    out = out.replace(marked=marked)
    if drawn is None or prompts is None:
        return out
    count, before = batch.seg_index.shape[1], (slice(None),) * (drawn.iou.ndim - 1)
    if hidden is not None:
        out = out.replace(masks=jax.tree.map(lambda x: x[*before, :count], drawn))
    if phrases:
        out = out.replace(phrase_masks=jax.tree.map(lambda x: x[*before, -count:], drawn))
    if hidden is not None and phrases:
        out = out.replace(prompts=(prompts[:, :count], prompts[:, count:]))
    return out


def _draw(
    cfg: EarthMindConfig,
    params: Params,
    batch: Batch,
    prompts: Array | None,
    weights: Array | None,
    marks: VisualPrompts | None = None,
    steered: VisualPrompts | None = None,
) -> tuple[MaskOutput | None, MaskOutput | None]:
    """Masks of the prompts [B M d], with the marks ``steered`` [B M ...] beside them, on each sample's image, or on all
    dates of its stack: [B M ...], or [B F M ...]; and those of ``marks`` alone.

    The first five dates of a stack are prompted one by one and do not see each other (:func:`track`), so in training,
    which shows no more, they are so many images.
    """
    pictures = (batch.ground_optical, batch.ground_sar, batch.ground_optical_valid, batch.ground_sar_valid)
    image = next(x for x in pictures if x is not None)
    lead = image.shape[:1]
    if image.ndim == 5:
        lead = image.shape[:2]
        pictures = jax.tree.map(lambda x: x.reshape(lead[0] * lead[1], *x.shape[2:]), pictures)
        each = prompts, weights, steered
        prompts, weights, steered = jax.tree.map(lambda x: jnp.repeat(x, lead[1], axis=0), each)
    features = image_features(cfg, params, *pictures, weights)
    drawn = None if prompts is None else ground(cfg, params, features, prompts, steered)
    marked = None if marks is None else ground(cfg, params, features, None, marks)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), (drawn, marked))


def _with_room(marks: VisualPrompts, count: int) -> VisualPrompts:
    """Marks of ``count`` objects: those that are added have "no point at all"."""
    more = count - marks.labels.shape[1]

    def pad(x: Array | None, value: float) -> Array | None:
        return None if x is None else jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    valid = pad(marks.valid, False).at[:, marks.labels.shape[1] :, 0].set(True)
    return VisualPrompts(
        pad(marks.points, 0), pad(marks.labels, -1), valid, pad(marks.masks, 0), pad(marks.masked, False)
    )


def init(cfg: EarthMindConfig, key: Array, only: Collection[str] | None = None) -> Params:
    """New parameters of the whole model, flat. Wrap in ``jax.jit`` with output shardings to create them in place.

    Args:
      only: paths to return, the same numbers as among all; under ``jax.jit`` the others are never computed.
    """
    params: Params = {}
    for i, (prefix, module, dummy) in enumerate(_components(cfg)):
        params |= functional.add_prefix(functional.init_module(module, jax.random.fold_in(key, i), *dummy), prefix)
    return params if only is None else {path: params[path] for path in only}


@functools.lru_cache(maxsize=32)
def param_axes(cfg: EarthMindConfig) -> dict[str, tuple[str | None, ...]]:
    """Logical axis names of every parameter, by path."""
    axes: dict[str, tuple[str | None, ...]] = {}

    def collect() -> None:
        for prefix, module, dummy in _components(cfg):
            axes.update(functional.add_prefix(functional.module_axes(module, *dummy), prefix))

    jax.eval_shape(collect)  # so that the arguments to trace with are never made
    return axes


@functools.lru_cache(maxsize=32)
def shapes(cfg: EarthMindConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, by path; allocates nothing."""
    return jax.eval_shape(lambda: init(cfg, jax.random.key(0)))


def _components(cfg: EarthMindConfig) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """(path prefix, module, arguments to trace it with) of every component."""
    v, width = cfg.vision, cfg.lm.width
    tokens = jnp.zeros((1, 1, v.tokens, width))
    parts: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        ("vision", vision_module(cfg), (jnp.zeros((1, v.image_size, v.image_size, 3)),)),
        ("projector", projector_module(cfg), (jnp.zeros((1, v.patches, v.patches, v.width)),)),
        ("lm", decoder_module(cfg), (jnp.zeros((1, 1), jnp.int32),)),
        ("fusion", fusion_module(cfg), (tokens, tokens)),
    ]
    if cfg.grounding is not None:
        g = cfg.grounding
        features = ImageFeatures(
            embed=jnp.zeros((1, g.image_size // 16, g.image_size // 16, g.width)),
            high=tuple(
                jnp.zeros((1, g.image_size // stride, g.image_size // stride, g.width // narrow))
                for stride, narrow in ((4, 8), (8, 4))
            ),
        )
        parts += [
            ("text_hidden_fcs", seg_module(cfg), (jnp.zeros((1, width)),)),
            ("grounding", encoder_module(cfg), (jnp.zeros((1, g.image_size, g.image_size, 3)),)),
            ("grounding", mask_module(cfg), (features, jnp.zeros((1, 1, g.width)))),
        ]
        if g.memory:
            memories = jnp.zeros((1, 1, 1, *features.embed.shape[1:3], g.memory_dim))
            bank = start_bank(g, memories, jnp.zeros((1, 1, 1, g.width)), jnp.ones((1,), jnp.int32))
            parts.append(("grounding/memory", Memory(g, cfg.precision), (features.embed, bank)))
        if _has_pyramid_maps(cfg):
            parts.append(("pyramid", PyramidMaps(cfg.precision), (features, jnp.zeros((1,), bool))))
    if cfg.prompts is not None:  # last: the others begin with the same numbers with it and without
        place = jnp.zeros((1, 1), jnp.int32)
        parts.append(("visual_prompt", prompt_module(cfg), (tokens[0], place, place)))
    return parts


def vision_module(cfg: EarthMindConfig) -> InternViT:
    return InternViT(cfg.vision, cfg.precision)


def projector_module(cfg: EarthMindConfig) -> Projector:
    return Projector(cfg.lm.width, cfg.vision.downsample, cfg.vision.pixel_shuffle_version, cfg.precision)


def decoder_module(cfg: EarthMindConfig) -> Decoder:
    return Decoder(cfg.lm, cfg.precision)


def fusion_module(cfg: EarthMindConfig) -> Fusion:
    return Fusion(cfg.fusion, cfg.lm.width, cfg.precision)


def prompt_module(cfg: EarthMindConfig) -> VisualPromptEncoder:
    assert cfg.prompts is not None
    return VisualPromptEncoder(cfg.prompts, cfg.lm.width, cfg.vision.grid, cfg.precision)


def seg_module(cfg: EarthMindConfig) -> TextHiddenFcs:
    assert cfg.grounding is not None
    return TextHiddenFcs(cfg.grounding.width, cfg.precision)


def encoder_module(cfg: EarthMindConfig) -> ImageEncoder:
    assert cfg.grounding is not None
    return ImageEncoder(cfg.grounding, cfg.precision)


def mask_module(cfg: EarthMindConfig) -> MaskHead:
    assert cfg.grounding is not None
    return MaskHead(cfg.grounding, cfg.precision)


def _image_encoder(cfg: EarthMindConfig, params: Params, image: Array) -> ImageFeatures:
    return functional.apply_module(encoder_module(cfg), params, "grounding", image)


def _mapped(cfg: EarthMindConfig, params: Params, features: ImageFeatures, optical: Array) -> ImageFeatures:
    if not _has_pyramid_maps(cfg):
        return features
    return functional.apply_module(PyramidMaps(cfg.precision), params, "pyramid", features, optical)


def _has_pyramid_maps(cfg: EarthMindConfig) -> bool:
    return cfg.fusion.mode in MAPPED_MODES and cfg.fusion.grounding == "fused"
