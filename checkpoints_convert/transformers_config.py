"""Configurations of the transformers library's own InternVL and SAM2 classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earthmind_jax.config import GroundingConfig, require
from earthmind_jax.models.families.family import require_fields

SAM2_MODEL_TYPES = ("sam2", "sam2_video")

# Our field -> (section of the configuration, field, value when it does not say).
_TRUNK = "vision_config.backbone_config"
_SAM2_FIELDS: dict[str, tuple[str, str, Any]] = {
    "image_size": ("prompt_encoder_config", "image_size", 1024),
    "embed_dim": (_TRUNK, "hidden_size", 96),
    "heads": (_TRUNK, "num_attention_heads", 1),
    "stages": (_TRUNK, "blocks_per_stage", (1, 2, 7, 2)),
    "global_blocks": (_TRUNK, "global_attention_blocks", (5, 7, 9)),
    "windows": (_TRUNK, "window_size_per_stage", (8, 4, 14, 7)),
    "pos_grid": (_TRUNK, "window_positional_embedding_background_size", (7, 7)),
    "q_pool_stages": (_TRUNK, "num_query_pool_stages", 3),
    "mlp_ratio": (_TRUNK, "mlp_ratio", 4.0),
    "width": ("vision_config", "fpn_hidden_size", 256),
    "top_down_levels": ("vision_config", "fpn_top_down_levels", (2, 3)),
    "decoder_heads": ("mask_decoder_config", "num_attention_heads", 8),
    "decoder_depth": ("mask_decoder_config", "num_hidden_layers", 2),
    "decoder_mlp": ("mask_decoder_config", "mlp_dim", 2048),
    "iou_hidden": ("mask_decoder_config", "iou_head_hidden_dim", 256),
    "multimask_outputs": ("mask_decoder_config", "num_multimask_outputs", 3),
    "stability": ("mask_decoder_config", "dynamic_multimask_via_stability", True),
    "stability_delta": ("mask_decoder_config", "dynamic_multimask_stability_delta", 0.05),
    "stability_threshold": ("mask_decoder_config", "dynamic_multimask_stability_thresh", 0.98),
    "memory_dim": ("", "memory_encoder_output_channels", 64),
    "memory_frames": ("", "num_maskmem", 7),
    "memory_layers": ("", "memory_attention_num_layers", 4),
    "memory_pointers": ("", "max_object_pointers_in_encoder", 16),
    "memory_mlp": ("", "memory_attention_feed_forward_hidden_size", 2048),
}

# (section, field) -> the one supported value, which is also that of a configuration that does not say.
_SAM2_FIXED: dict[tuple[str, str], Any] = {
    (_TRUNK, "patch_kernel_size"): (7, 7),
    (_TRUNK, "patch_stride"): (4, 4),
    (_TRUNK, "patch_padding"): (3, 3),
    (_TRUNK, "query_stride"): (2, 2),
    (_TRUNK, "num_channels"): 3,
    (_TRUNK, "hidden_act"): "gelu",
    (_TRUNK, "layer_norm_eps"): 1e-6,
    ("vision_config", "fpn_kernel_size"): 1,
    ("vision_config", "fpn_stride"): 1,
    ("vision_config", "fpn_padding"): 0,
    ("vision_config", "num_feature_levels"): 3,
    ("prompt_encoder_config", "patch_size"): 16,
    ("prompt_encoder_config", "mask_input_channels"): 16,
    ("prompt_encoder_config", "num_point_embeddings"): 4,
    ("mask_decoder_config", "attention_downsample_rate"): 2,
    ("mask_decoder_config", "iou_head_depth"): 3,
}


def grounding_from_transformers(config: Mapping[str, Any], names: Mapping[str, Any]) -> GroundingConfig:
    """``config.json`` of ``Sam2Model`` or ``Sam2VideoModel``; ``names``: the tensors, which tell SAM2.1 from SAM2.

    Raises:
      UserError: naming the option and the one supported value, for what our SAM2 would compute differently.
    """
    for (section, name), supported in _SAM2_FIXED.items():
        value = _plain(_section(config, section).get(name, supported))
        require(
            value == supported or (isinstance(supported, int) and value == (supported, supported)),
            f"The SAM2 option '{section}.{name}' is {value!r}; only {supported!r} is supported.",
        )
    fields = {ours: _plain(_section(config, s).get(name, default)) for ours, (s, name, default) in _SAM2_FIELDS.items()}
    fields["image_size"] = _side(fields["image_size"], "SAM2", "image_size")
    trunk = _section(config, _TRUNK)
    for name, first in (
        ("embed_dim_per_stage", fields["embed_dim"]),
        ("num_attention_heads_per_stage", fields["heads"]),
    ):
        stages = _plain(trunk.get(name, [first * 2**stage for stage in range(4)]))
        require(
            stages == tuple(first * 2**stage for stage in range(4)),
            f"The SAM2 option '{_TRUNK}.{name}' is {stages!r}; only doubling from {first} is supported.",
        )
    return GroundingConfig(**fields, version="2.1" if "occlusion_spatial_embedding_parameter" in names else "2.0")


def internvl_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of ``InternVLForConditionalGeneration``, in the terms of ``InternVLChatModel``.

    Raises:
      UserError: for a missing field, or one that our InternVL would compute differently.
    """
    require_fields(config, "InternVL", ("vision_config", "text_config"))
    vision = config["vision_config"]
    supported = {
        "use_mean_pooling": True, "use_absolute_position_embeddings": True, "use_mask_token": False,
    }  # fmt: skip
    for name, value in supported.items():
        require(vision.get(name, value) == value, f"InternVL with {name} = {vision.get(name)!r} is not supported.")
    for name, value in (("vision_feature_select_strategy", "default"), ("projector_hidden_act", "gelu")):
        require(config.get(name, value) == value, f"InternVL with {name} = {config.get(name)!r} is not supported.")
    layer = config.get("vision_feature_layer", -1)
    require(isinstance(layer, int), f"InternVL with vision_feature_layer = {layer!r} is not supported.")
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {
        "vision_config": {
            **{name: vision.get(name) for name in sizes},
            "image_size": _side(vision.get("image_size", 448), "InternVL", "image_size"),
            "patch_size": _side(vision.get("patch_size", 14), "InternVL", "patch_size"),
            "hidden_act": vision.get("hidden_act", "gelu"),
            "num_channels": vision.get("num_channels", 3),
            "norm_type": vision.get("norm_type", "layer_norm"),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "qkv_bias": vision.get("attention_bias", False),
            "qk_normalization": vision.get("use_qk_norm", False),
            "initializer_factor": vision.get("layer_scale_init_value", 0.1),
        },
        "llm_config": dict(config["text_config"]),
        "select_layer": layer,
        "downsample_ratio": config.get("downsample_ratio", 0.5),
        "ps_version": "v2",
    }


def _section(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for name in path.split(".") if path else ():
        config = config.get(name) or {}
    return config


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _side(value: Any, what: str, name: str) -> int:
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    require(len(set(sides)) == 1, f"{what} with {name} = {value!r} is not supported: it must be square.")
    return int(sides[0])
