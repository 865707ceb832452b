"""The teacher-forced pass over a training batch: everything that a loss may need, in one go."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models.earthmind.masks import ground, image_features
from earthmind_jax.models.earthmind.text import embed, language, place, refine, seg_prompt
from earthmind_jax.models.earthmind.visual import encode_sensors, fuse, grounding_weights
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.ops.norms import rms_norm
from earthmind_jax.types import Batch, Fused, MaskOutput, Params, VisualPrompts


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
