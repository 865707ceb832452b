"""What the engine compiles: encode, prefill, decode and masks, pure functions of configuration and parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import earthmind
from earthmind_jax.models.decoder import init_cache
from earthmind_jax.ops import sampling
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.types import Fused, ImageFeatures, KVCache, LmOutput, Params, VisualPrompts

Seen = tuple[Array | None, Array | None]
"""Visual tokens of the optical and the SAR image before fusion, [B I N D] each; None for a sensor that is missing."""

Pyramids = tuple[ImageFeatures, Array | None]
"""What :func:`earthmind_jax.models.earthmind.sensor_features` makes: features, and which sensors are to be blended."""


@struct.dataclass
class Decoding:
    """State of the decoding loop.

    ``token`` [B] is the next token to feed, ``ids`` [B N] those fed so far (pad behind the end), ``hidden`` [B N D] the
    state each of them gave, ``logits`` [B N V] (or None) the scores from which each was chosen.
    """

    step: Array
    token: Array
    cache: KVCache
    done: Array
    ids: Array
    hidden: Array
    scores: Array
    logits: Array | None


def encode(
    config: EarthMindConfig,
    params: Params,
    tokens: Array,
    question: Array,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    seen: Seen | None,
) -> Fused:
    text = earthmind.embed(config, params, tokens)
    first, second = earthmind.encode_sensors(config, params, optical, sar) if seen is None else seen
    return earthmind.fuse(config, params, first, second, optical_valid, sar_valid, text, question, training=False)


def prefill(
    config: EarthMindConfig,
    params: Params,
    tokens: Array,
    visual_index: Array,
    lengths: Array,
    visual: Array | None,
    cache: KVCache | None,
    *,
    capacity: int,
    size: int,
    keep_logits: bool,
) -> Decoding:
    batch = tokens.shape[0]
    text = earthmind.embed(config, params, tokens)
    rows = None if visual is None else visual.reshape(batch, -1, visual.shape[-1])
    embeds = earthmind.place(text, rows, visual_index)
    embeds = earthmind.refine(config, params, embeds, rows, tokens, visual_index)
    fresh = cache is None
    cache = init_cache(config.lm, batch, capacity, config.precision.compute) if cache is None else cache
    out = earthmind.language(config, params, embeds, lengths, cache=cache, fresh=fresh)
    return prefilled(config, params, out, lengths, size, keep_logits)


def prefilled(
    config: EarthMindConfig, params: Params, out: LmOutput, lengths: Array, size: int, keep_logits: bool = False
) -> Decoding:
    """The state that decoding begins with, behind a pass over prompts of ``lengths`` tokens."""
    batch = len(lengths)
    last = token_ops.gather_rows(out.hidden, lengths[:, None] - 1)
    scores = earthmind.logits(config, params, last)[:, 0].astype(jnp.float32)
    assert out.cache is not None
    return Decoding(
        step=jnp.zeros((), jnp.int32),
        token=jnp.full((batch,), -1, jnp.int32),
        cache=out.cache,
        done=jnp.zeros((batch,), bool),
        ids=jnp.full((batch, size), config.tokens.pad, jnp.int32),
        hidden=jnp.zeros((batch, size, config.lm.width), out.hidden.dtype),
        scores=scores,
        logits=jnp.zeros((batch, size, scores.shape[-1]), jnp.float32) if keep_logits else None,
    )


def decode(
    config: EarthMindConfig,
    params: Params,
    state: Decoding,
    end: Array,
    stops: Array,
    forced: Array,
    temperature: Array,
    key: Array,
) -> Decoding:
    """Feed tokens until ``end`` (traced) steps are done or every row has stopped."""

    def unfinished(state: Decoding) -> Array:
        return (state.step < end) & ~state.done.all()

    def feed(state: Decoding) -> Decoding:
        i = state.step
        token = sampling.sample(state.scores, jax.random.fold_in(key, i), temperature=temperature)
        token = jnp.where(forced[i] >= 0, forced[i], token)
        token = jnp.where(state.done, config.tokens.pad, token)
        done = state.done | jnp.isin(token, stops)
        embeds = earthmind.embed(config, params, token[:, None])
        new = jnp.where(state.done, 0, 1).astype(jnp.int32)
        out = earthmind.language(config, params, embeds, new, cache=state.cache)
        scores = earthmind.logits(config, params, out.hidden)[:, 0].astype(jnp.float32)
        return state.replace(
            step=i + 1,
            token=token,
            cache=out.cache,
            done=done,
            ids=state.ids.at[:, i].set(token),
            hidden=state.hidden.at[:, i].set(out.hidden[:, 0]),
            scores=scores,
            logits=None if state.logits is None else state.logits.at[:, i].set(state.scores),
        )

    return jax.lax.while_loop(unfinished, feed, state)


def masks(
    config: EarthMindConfig,
    params: Params,
    optical: Array | None,
    sar: Array | None,
    optical_valid: Array | None,
    sar_valid: Array | None,
    fused: Fused | None,
    seg_states: Array | None,
    marks: VisualPrompts | None,
    pyramids: Pyramids | None,
) -> tuple[Array, Array]:
    weights = None if fused is None else earthmind.grounding_weights(fused)
    prompts = None if seg_states is None else earthmind.seg_prompt(config, params, seg_states)
    image = sar if optical is None else optical
    if image is not None and image.ndim == 5:
        given = (optical, sar, prompts, optical_valid, sar_valid, weights)
        tracked = earthmind.track(config, params, *given, marks=marks)
        return tracked.logits, tracked.iou
    if pyramids is None:
        pyramids = earthmind.sensor_features(config, params, optical, sar, optical_valid, sar_valid)
    features, presence = pyramids
    if presence is not None:
        features = earthmind.blend_features(features, presence, weights)
    out = earthmind.ground(config, params, features, prompts, marks)
    return out.logits, out.iou
