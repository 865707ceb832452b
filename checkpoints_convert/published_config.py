"""Our configuration as the ``config.json`` of a published checkpoint; the inverse of ``source_config``."""

from __future__ import annotations

import dataclasses
from typing import Any

from checkpoints_convert.source_config import lm_from_hf, vision_from_hf
from earthmind_jax.config import EarthMindConfig, LmConfig, RopeConfig, VisionConfig
from earthmind_jax.data import templates
from earthmind_jax.errors import UserError
from earthmind_jax.models.families import FAMILIES

ARCHITECTURES = {"internvl": "InternVLChatModel", "earthmind": "Sa2VAChatModel"}


def published_config(config: EarthMindConfig, layout: str) -> dict[str, Any]:
    """The configuration of a model in the layout ``internvl`` or ``earthmind``.

    Raises:
      UserError: the published format has no way to say what this model computes.
    """
    chat = {
        "architectures": [ARCHITECTURES[layout]],
        "model_type": "internvl_chat" if layout == "internvl" else "sa2va_chat",
        "vision_config": vision_to_hf(config.vision),
        "llm_config": lm_to_hf(config.lm),
        "select_layer": config.vision.select_layer,
        "force_image_size": config.vision.image_size,
        "downsample_ratio": 1 / config.vision.downsample,
        "ps_version": config.vision.pixel_shuffle_version,
        "template": _template(config, layout),
        "dynamic_image_size": True,
        "use_thumbnail": config.sensors.thumbnail,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": config.sensors.max_tiles,
    }
    ours, again = _mathematics(config.vision), _mathematics(vision_from_hf(chat["vision_config"], chat))
    _check(ours, again, "vision")
    lm = lm_from_hf(chat["llm_config"], head=not config.lm.tie, own=True)
    _check(_mathematics(config.lm), _mathematics(lm), "lm")
    return chat


def _template(config: EarthMindConfig, layout: str) -> str:
    """The name that the published code of ``layout`` knows; InternVL's own code has none of EarthMind's templates."""
    theirs = {ours: name for name, ours in templates.INTERNVL.items()}
    if layout == "internvl":
        return theirs.get(config.template, "phi3-chat" if config.lm.family == "phi3" else "internvl2_5")
    return FAMILIES[config.lm.family].template if config.template in theirs else config.template


def vision_to_hf(config: VisionConfig) -> dict[str, Any]:
    """``vision_config`` of InternVL."""
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_type": config.norm,
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
        "qk_normalization": config.qk_norm,
        "initializer_factor": config.layer_scale_init,
    }


def lm_to_hf(config: LmConfig) -> dict[str, Any]:
    """``llm_config`` of InternVL: what :func:`earthmind_jax.models.families.from_hf` reads back."""
    family = FAMILIES[config.family]
    fields: dict[str, Any] = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_types[0],
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.rope.max_position,
        "tie_word_embeddings": config.tie,
    }
    if config.head_dim * config.heads != config.width:
        fields["head_dim"] = config.head_dim
    if config.sliding_window is not None:
        fields |= {"sliding_window": config.sliding_window}
        fields |= {"use_sliding_window": True, "max_window_layers": 0} if config.family == "qwen2" else {}
    return fields | _scaling(config.rope)


def _scaling(rope: RopeConfig) -> dict[str, Any]:
    if rope.kind == "default":
        return {}
    if rope.kind == "longrope":
        scaling = {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
        original = {"original_max_position_embeddings": rope.original_max_position}
        return {"rope_scaling": {"type": "longrope", **scaling}, **original}
    return {"rope_scaling": {"type": rope.kind, "factor": rope.factor}}


def _mathematics(config: VisionConfig | LmConfig) -> dict[str, Any]:
    """The fields that a checkpoint decides; the rest is how it is computed or trained."""
    fields = dataclasses.asdict(config)
    for name in ("scan", "remat", "lora", "embed_init"):
        fields.pop(name, None)
    return fields


def _check(ours: dict[str, Any], again: dict[str, Any], what: str) -> None:
    different = [f"{what}.{name} = {value!r}" for name, value in ours.items() if again[name] != value]
    if different:
        raise UserError(
            f"The published configuration cannot say {', '.join(different)}: this model cannot be exported."
        )
