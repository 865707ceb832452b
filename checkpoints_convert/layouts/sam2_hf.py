"""SAM2 and SAM2.1 as the transformers library names them (``Sam2Model``, ``Sam2VideoModel``): the published table under
other names. ``{i}`` and ``*`` of the patterns stay as they are."""

from __future__ import annotations

import re
from dataclasses import replace

from checkpoints_convert.layouts import sam2
from checkpoints_convert.rules import Ignored, Layout, Rule

# Published name (regular expression) -> that of transformers; all that apply, in this order.
RENAMES = (
    (r"^image_encoder\.trunk\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"(backbone\.blocks\..*)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"mlp\.layers\.0\.", "mlp.proj_in."),
    (r"mlp\.layers\.1\.", "mlp.proj_out."),
    (r"((?:hypernetworks_mlps\.[^.]+|_head|obj_ptr_proj))\.layers\.0\.", r"\1.proj_in."),
    (r"((?:hypernetworks_mlps\.[^.]+|_head|obj_ptr_proj))\.layers\.1\.", r"\1.layers.0."),
    (r"((?:hypernetworks_mlps\.[^.]+|_head|obj_ptr_proj))\.layers\.2\.", r"\1.proj_out."),
    (r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
     "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^sam_prompt_encoder\.point_embeddings\.\{i\}\.", "prompt_encoder.point_embed."),
    (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"transformer\.norm_final_attn\.", "transformer.layer_norm_final_attn."),
    (r"(transformer\.layers\..*)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"\.out_proj\.", ".o_proj."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
    (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
    (r"^no_obj_ptr$", "no_object_pointer"),
    (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^(memory_attention\.layers\..*)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
    *((rf"^memory_encoder\.mask_downsampler\.encoder\.{3 * layer}\.",
       f"memory_encoder.mask_downsampler.layers.{layer}.conv.") for layer in range(4)),
    *((rf"^memory_encoder\.mask_downsampler\.encoder\.{3 * layer + 1}\.",
       f"memory_encoder.mask_downsampler.layers.{layer}.layer_norm.") for layer in range(4)),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.(layers\.[^.]+)\.(?:gamma|g_weight)$", r"memory_encoder.memory_fuser.\1.scale"),
    (r"^memory_encoder\.fuser\.(.*)\.dwconv\.", r"memory_encoder.memory_fuser.\1.depthwise_conv."),
    (r"^memory_encoder\.fuser\.(.*)\.norm\.", r"memory_encoder.memory_fuser.\1.layer_norm."),
    (r"^memory_encoder\.fuser\.(.*)\.pwconv(\d)\.", r"memory_encoder.memory_fuser.\1.pointwise_conv\2."),
)  # fmt: skip


def transformers_name(published: str) -> str:
    """A published name, or a pattern of names, as transformers spells it."""
    for pattern, replacement in RENAMES:
        published = re.sub(pattern, replacement, published)
    return published


def _rule(rule: Rule) -> Rule:
    name = transformers_name(rule.source)
    # The four embeddings of points are one table there.
    return replace(rule, source=name, how="" if name == "prompt_encoder.point_embed.weight" else rule.how)


SAM2_HF = Layout(
    name="SAM2 of transformers",
    rules=tuple(dict.fromkeys(map(_rule, sam2.SAM2.rules))),
    ignored=(
        *dict.fromkeys(replace(entry, pattern=transformers_name(entry.pattern)) for entry in sam2.SAM2.ignored),
        Ignored("shared_image_embedding.positional_embedding", "the same numbers as those of the prompt encoder"),
    ),
    has=("vision_encoder.backbone.patch_embed.projection.weight", "mask_decoder.iou_token.weight"),
    covers=sam2.SAM2.covers,
)
