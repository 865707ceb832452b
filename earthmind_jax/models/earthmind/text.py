"""The language model: text and visual tokens in, states, words and the prompts of ``[SEG]`` out."""

from __future__ import annotations

from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import functional
from earthmind_jax.models.earthmind.components import decoder_module, prompt_module, seg_module
from earthmind_jax.models.visual_prompt import region_numbers
from earthmind_jax.ops import tokens as token_ops
from earthmind_jax.types import KVCache, LmOutput, Params


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
