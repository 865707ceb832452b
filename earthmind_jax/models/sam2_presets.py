"""SAM2 and SAM2.1 sizes, and the reading of their published configuration trees."""

from __future__ import annotations

from typing import Any

from earthmind_jax.config import GroundingConfig, nearest, one_of, require
from earthmind_jax.errors import UserError

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "heads": 1, "stages": (1, 2, 7, 2), "global_blocks": (5, 7, 9), "windows": (8, 4, 14, 7)},
    "small": {
        "embed_dim": 96, "heads": 1, "stages": (1, 2, 11, 2), "global_blocks": (7, 10, 13), "windows": (8, 4, 14, 7),
    },
    "base_plus": {
        "embed_dim": 112, "heads": 2, "stages": (2, 3, 16, 3), "global_blocks": (12, 16, 20), "windows": (8, 4, 14, 7),
        "pos_grid": (14, 14),
    },
    "large": {
        "embed_dim": 144, "heads": 2, "stages": (2, 6, 36, 4), "global_blocks": (23, 33, 43), "windows": (8, 4, 16, 8),
    },
}  # fmt: skip

PRESETS: dict[str, GroundingConfig] = {
    f"{release}_hiera_{size}": GroundingConfig(**fields, version=version)
    for release, version in (("sam2", "2.0"), ("sam2.1", "2.1"))
    for size, fields in _SIZES.items()
}
"""Published sizes by the stem of their checkpoint file, e.g. ``"sam2.1_hiera_base_plus"``."""


def sam2_preset(name: str) -> GroundingConfig:
    """The configuration of a published checkpoint; a :class:`UserError` names the nearest for an unknown ``name``."""
    one_of("SAM2 size", name, tuple(PRESETS))
    return PRESETS[name]


_TRUNK, _NECK = "image_encoder.trunk.", "image_encoder.neck."
_LAYER = "memory_attention.layer."
_EXTRA = "sam_mask_decoder_extra_args."

# Option of the published tree -> (field of GroundingConfig, value when the tree does not say).
_FIELDS: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 512),
    "num_maskmem": ("memory_frames", 7),
    "max_obj_ptrs_in_encoder": ("memory_pointers", 16),
    "binarize_mask_from_pts_for_mem_enc": ("memory_binarize", False),
    "iou_prediction_use_sigmoid": ("iou_sigmoid", False),
    _TRUNK + "embed_dim": ("embed_dim", 96),
    _TRUNK + "num_heads": ("heads", 1),
    _TRUNK + "stages": ("stages", (2, 3, 16, 3)),
    _TRUNK + "global_att_blocks": ("global_blocks", (12, 16, 20)),
    _TRUNK + "window_spec": ("windows", (8, 4, 14, 7)),
    _TRUNK + "window_pos_embed_bkg_spatial_size": ("pos_grid", (14, 14)),
    _TRUNK + "q_pool": ("q_pool_stages", 3),
    _NECK + "d_model": ("width", None),
    _NECK + "fpn_top_down_levels": ("top_down_levels", (0, 1, 2, 3)),
    "memory_encoder.out_dim": ("memory_dim", None),
    "memory_attention.num_layers": ("memory_layers", None),
    _LAYER + "dim_feedforward": ("memory_mlp", None),
    _EXTRA + "dynamic_multimask_via_stability": ("stability", False),
    _EXTRA + "dynamic_multimask_stability_delta": ("stability_delta", 0.05),
    _EXTRA + "dynamic_multimask_stability_thresh": ("stability_threshold", 0.98),
}

# Option -> (the one supported value, value when the tree does not say).
_FIXED: dict[str, tuple[Any, Any]] = {
    "image_encoder.scalp": (1, 0),
    _TRUNK + "drop_path_rate": (0.0, 0.0),
    _TRUNK + "q_stride": ((2, 2), (2, 2)),
    _TRUNK + "dim_mul": (2.0, 2.0),
    _TRUNK + "head_mul": (2.0, 2.0),
    _NECK + "fpn_interp_model": ("nearest", "bilinear"),
    _NECK + "fuse_type": ("sum", "sum"),
    _NECK + "kernel_size": (1, 1),
    _NECK + "stride": (1, 1),
    _NECK + "padding": (0, 0),
    _NECK + "position_encoding.normalize": (True, True),
    _NECK + "position_encoding.scale": (None, None),
    _NECK + "position_encoding.temperature": (10000, 10000),
    "memory_encoder.position_encoding.normalize": (True, True),
    "memory_encoder.position_encoding.scale": (None, None),
    "memory_encoder.position_encoding.temperature": (10000, 10000),
    "memory_encoder.mask_downsampler.kernel_size": (3, 4),
    "memory_encoder.mask_downsampler.stride": (2, 4),
    "memory_encoder.mask_downsampler.padding": (1, 0),
    "memory_encoder.mask_downsampler.total_stride": (16, 16),
    "memory_encoder.fuser.layer.kernel_size": (7, 7),
    "memory_encoder.fuser.layer.padding": (3, 3),
    "memory_encoder.fuser.layer.use_dwconv": (True, True),
    "memory_encoder.fuser.num_layers": (2, None),
    "memory_encoder.fuser.input_projection": (False, False),
    "memory_attention.pos_enc_at_input": (True, None),
    _LAYER + "activation": ("relu", None),
    _LAYER + "pos_enc_at_attn": (False, None),
    _LAYER + "pos_enc_at_cross_attn_keys": (True, None),
    _LAYER + "pos_enc_at_cross_attn_queries": (False, None),
    _LAYER + "self_attention.rope_theta": (10000.0, 10000.0),
    _LAYER + "self_attention.num_heads": (1, None),
    _LAYER + "self_attention.downsample_rate": (1, 1),
    _LAYER + "cross_attention.rope_theta": (10000.0, 10000.0),
    _LAYER + "cross_attention.num_heads": (1, None),
    _LAYER + "cross_attention.downsample_rate": (1, 1),
    _LAYER + "cross_attention.rope_k_repeat": (True, False),
    "backbone_stride": (16, 16),
    "directly_add_no_mem_embed": (True, False),
    "use_high_res_features_in_sam": (True, False),
    "multimask_output_in_sam": (True, False),
    "multimask_min_pt_num": (0, 1),
    "multimask_max_pt_num": (1, 1),
    "multimask_output_for_tracking": (True, False),
    "use_multimask_token_for_obj_ptr": (True, False),
    "use_mask_input_as_output_without_sam": (True, False),
    "sigmoid_scale_for_mem_enc": (20.0, 1.0),
    "sigmoid_bias_for_mem_enc": (-10.0, 0.0),
    "use_obj_ptrs_in_encoder": (True, False),
    "max_cond_frames_in_attn": (-1, -1),
    "memory_temporal_stride_for_eval": (1, 1),
    "non_overlap_masks_for_mem_enc": (False, False),
    "only_obj_ptrs_in_the_past_for_eval": (True, False),
    "pred_obj_scores": (True, False),
    "pred_obj_scores_mlp": (True, False),
    "fixed_no_obj_ptr": (True, False),
    "soft_no_obj_ptr": (False, False),
    "use_mlp_for_obj_ptr_proj": (True, False),
}

# Options that repeat the width, the memory width, or a value that only tracking and post-processing look at.
_WIDTH = (
    "memory_attention.d_model", _LAYER + "d_model", _LAYER + "self_attention.embedding_dim",
    _LAYER + "cross_attention.embedding_dim", "memory_encoder.in_dim", "memory_encoder.fuser.layer.dim",
    "memory_encoder.mask_downsampler.embed_dim", _NECK + "position_encoding.num_pos_feats",
)  # fmt: skip
_MEMORY_WIDTH = (_LAYER + "cross_attention.kv_in_dim", "memory_encoder.position_encoding.num_pos_feats")
_INERT = (
    "compile_image_encoder", "fill_hole_area", "non_overlap_masks",
    "clear_non_cond_mem_around_input", "clear_non_cond_mem_for_multi_obj", "add_all_frames_to_correct_as_cond",
    _LAYER + "dropout", _LAYER + "self_attention.dropout", _LAYER + "cross_attention.dropout",
    _LAYER + "self_attention.feat_sizes", _LAYER + "cross_attention.feat_sizes",
    "memory_encoder.fuser.layer.layer_scale_init_value", _TRUNK + "weights_path", _TRUNK + "return_interm_layers",
)  # fmt: skip

# True in SAM2.1, false in SAM2.0; the value when the tree does not say.
_VERSION = {
    "no_obj_embed_spatial": False, "add_tpos_enc_to_obj_ptrs": True, "proj_tpos_enc_in_obj_ptrs": False,
    "use_signed_tpos_enc_to_obj_ptrs": False,
}  # fmt: skip


def grounding_from_hydra(tree: dict[str, Any]) -> GroundingConfig:
    """The configuration described by a published ``sam2*_hiera_*.yaml`` tree (its ``model`` node, as plain values).

    Options that change the mathematics in a way this implementation does not follow, and options it does not know,
    raise a :class:`UserError` that names the option and the supported value.
    """
    options = _flatten(tree.get("model", tree))
    fields = {field: options.pop(path, default) for path, (field, default) in _FIELDS.items()}
    missing = [path for path, (field, _) in _FIELDS.items() if fields[field] is None]
    require(not missing, f"The SAM2 configuration does not set '{missing[0] if missing else ''}'; add it.")
    for path, (supported, default) in _FIXED.items():
        value = options.pop(path, default)
        require(
            value == supported, f"The SAM2 option '{path}' is {value!r}; only {supported!r} is supported, so change it."
        )
    flags = {path: bool(options.pop(path, default)) for path, default in _VERSION.items()}
    require(
        len(set(flags.values())) == 1,
        f"The SAM2 options {', '.join(flags)} must all be false (SAM2.0) or all be true (SAM2.1), not {flags}.",
    )
    config = GroundingConfig(**fields, version="2.1" if all(flags.values()) else "2.0")
    _check_widths(options, config)
    for path in _INERT:
        options.pop(path, None)
    if options:
        unknown = next(iter(options))
        known = [*_FIELDS, *_FIXED, *_VERSION, *_WIDTH, *_MEMORY_WIDTH, *_INERT]
        raise UserError(f"Unknown SAM2 option '{unknown}'.{nearest(unknown, known)}")
    return config


def _check_widths(options: dict[str, Any], config: GroundingConfig) -> None:
    """Options that repeat a width must agree with it."""
    channels = tuple(reversed(config.stage_widths))
    repeats = {_NECK + "backbone_channel_list": channels}
    repeats |= dict.fromkeys(_WIDTH, config.width) | dict.fromkeys(_MEMORY_WIDTH, config.memory_dim)
    for path, expected in repeats.items():
        value = options.pop(path, expected)
        require(value == expected, f"The SAM2 option '{path}' is {value!r}, which must be {expected!r} here.")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as dotted paths; lists become tuples, and constructor names (``_target_`` ...) are left out."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        if key.startswith("_"):
            continue
        if isinstance(value, dict):
            options |= _flatten(value, f"{prefix}{key}.")
        else:
            options[prefix + key] = tuple(value) if isinstance(value, list) else value
    return options
