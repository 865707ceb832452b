"""SAM2 of the transformers library: its configurations, random weights, and the published names of its tensors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from earthmind_jax.config import GroundingConfig

CONFIG = GroundingConfig(
    image_size=128, embed_dim=12, heads=2, stages=(1, 2, 3, 2), global_blocks=(4,), windows=(8, 4, 6, 3),
    pos_grid=(6, 5), width=32, decoder_heads=4, decoder_mlp=48, iou_hidden=24,
)  # fmt: skip
RENAMES = (
    (r"vision_encoder\.backbone\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"(blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"prompt_encoder\.shared_embedding\.positional_embedding",
     "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.mask_embed\.", "sam_prompt_encoder.mask_downscaling."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"mask_downscaling\.conv1", "mask_downscaling.0"),
    (r"mask_downscaling\.layer_norm1", "mask_downscaling.1"),
    (r"mask_downscaling\.conv2", "mask_downscaling.3"),
    (r"mask_downscaling\.layer_norm2", "mask_downscaling.4"),
    (r"mask_downscaling\.conv3", "mask_downscaling.6"),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"o_proj", "out_proj"),
    (r"mlp\.proj_in", "mlp.layers.0"),
    (r"mlp\.proj_out", "mlp.layers.1"),
    (r"((?:hypernetworks_mlps\.\d|_head))\.layers\.0\.", r"\1.layers.1."),
    (r"((?:hypernetworks_mlps\.\d|_head))\.proj_in", r"\1.layers.0"),
    (r"((?:hypernetworks_mlps\.\d|_head))\.proj_out", r"\1.layers.2"),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^object_pointer_proj\.proj_in", "obj_ptr_proj.layers.0"),
    (r"^object_pointer_proj\.layers\.0\.", "obj_ptr_proj.layers.1."),
    (r"^object_pointer_proj\.proj_out", "obj_ptr_proj.layers.2"),
    (r"^(memory_attention)\.layer_norm", r"\1.norm"),
    (r"mask_downsampler\.final_conv", "mask_downsampler.encoder.12"),
    (r"memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"memory_fuser", "fuser"),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"(fuser\.layers\.\d)\.layer_norm", r"\1.norm"),
    (r"(fuser\.layers\.\d)\.scale", r"\1.gamma"),
)  # fmt: skip


def published_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of the transformers port under the names of the published checkpoints."""
    tensors = {}
    for name, value in state.items():
        if name == "prompt_encoder.point_embed.weight":
            tensors |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": value[i : i + 1] for i in range(4)}
        elif found := re.fullmatch(r"(memory_encoder\.mask_downsampler)\.layers\.(\d)\.(conv|layer_norm)(\.\w+)", name):
            place = 3 * int(found[2]) + (found[3] == "layer_norm")
            tensors[f"{found[1]}.encoder.{place}{found[4]}"] = value
        elif not name.startswith("shared_image_embedding"):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            tensors[name] = value
    return tensors


def vision_config(config: GroundingConfig) -> Any:
    """The port's configuration of trunk and neck."""
    import transformers

    side, widths = config.image_size, list(config.stage_widths)
    trunk = transformers.Sam2HieraDetConfig(
        hidden_size=config.embed_dim, num_attention_heads=config.heads, image_size=[side, side],
        window_positional_embedding_background_size=list(config.pos_grid), blocks_per_stage=list(config.stages),
        embed_dim_per_stage=widths, num_attention_heads_per_stage=[config.heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(config.windows), global_attention_blocks=list(config.global_blocks),
    )  # fmt: skip
    return transformers.Sam2VisionConfig(
        backbone_config=trunk, backbone_channel_list=widths[::-1], fpn_hidden_size=config.width,
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_top_down_levels=list(config.top_down_levels),
    )  # fmt: skip


def head_options(config: GroundingConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the port's configurations of prompt encoder and mask decoder."""
    prompt = {"hidden_size": config.width, "image_size": config.image_size}
    decoder = {
        "hidden_size": config.width,
        "mlp_dim": config.decoder_mlp,
        "num_attention_heads": config.decoder_heads,
        "iou_head_hidden_dim": config.iou_hidden,
    }
    return prompt, decoder


def draw_weights(model: Any, spread: float = 0.2) -> None:
    """Random weights in place: matrices of standard deviation ``spread``, norms around one, tables and tokens 1."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:
                tensor.copy_(noise * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            else:
                tensor.copy_(noise * (1.0 if "embed" in name or "token" in name.split(".")[-2:][0] else spread))
        model.shared_image_embedding.positional_embedding.copy_(
            model.prompt_encoder.shared_embedding.positional_embedding
        )
