"""SAM2 and SAM2.1 as published (``SAM2Base``, the ``model`` entry of ``sam2*_hiera_*.pt``)."""

from __future__ import annotations

from checkpoints_convert.rules import Ignored, Layout, Rule, under

_CONV = "O I h w -> h w I O"
_CONV_TRANSPOSED = "I O h w -> h w I O"
_DENSE = "O I -> I O"


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def _linear(source: str, target: str, how: str = _DENSE) -> tuple[Rule, ...]:
    return Rule(f"{source}.weight", f"{target}/kernel", how), Rule(f"{source}.bias", f"{target}/bias")


def _perceptron(source: str, target: str, layers: int) -> tuple[Rule, ...]:
    return sum((_linear(f"{source}.layers.{j}", f"{target}/fc{j + 1}") for j in range(layers)), ())


def _attention(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"{source}.{x}_proj.weight", f"{target}/{x}/kernel", "(N h) D -> D N h") for x in "qkv"),
        *(Rule(f"{source}.{x}_proj.bias", f"{target}/{x}/bias", "(N h) -> N h") for x in "qkv"),
        *_linear(f"{source}.out_proj", f"{target}/out", "D (N h) -> N h D"),
    )


TRUNK = (
    Rule("pos_embed", "pos_embed", "1 C h w -> h w C"),
    Rule("pos_embed_window", "pos_embed_window", "1 C h w -> h w C"),
    *_linear("patch_embed.proj", "patch_embed", _CONV),
    *under(
        "blocks.{i}.",
        (
            *_norm("norm1", "norm1"),
            Rule("attn.qkv.weight", ("attn/q/kernel", "attn/k/kernel", "attn/v/kernel"), "{N h|N h|N h} D -> D N h"),
            Rule("attn.qkv.bias", ("attn/q/bias", "attn/k/bias", "attn/v/bias"), "{N h|N h|N h} -> N h"),
            *_linear("attn.proj", "attn/out", "D (N h) -> N h D"),
            *_linear("proj", "proj"),  # where the width changes
            *_norm("norm2", "norm2"),
            *_perceptron("mlp", "mlp", 2),
        ),
        "block_{i}/",
    ),
)

PROMPT = (
    Rule("pe_layer.positional_encoding_gaussian_matrix", "gaussian"),
    Rule("point_embeddings.{i}.weight", "points", "1 D -> D"),
    Rule("not_a_point_embed.weight", "not_a_point", "1 D -> D"),
    Rule("no_mask_embed.weight", "no_mask", "1 D -> D"),
    *_linear("mask_downscaling.0", "mask/conv1", _CONV),
    *_norm("mask_downscaling.1", "mask/norm1"),
    *_linear("mask_downscaling.3", "mask/conv2", _CONV),
    *_norm("mask_downscaling.4", "mask/norm2"),
    *_linear("mask_downscaling.6", "mask/conv3", _CONV),
)

DECODER = (
    Rule("obj_score_token.weight", "object_token"),
    Rule("iou_token.weight", "iou_token"),
    Rule("mask_tokens.weight", "mask_tokens"),
    *under(
        "transformer.",
        (
            *under(
                "layers.{i}.",
                (
                    *_attention("self_attn", "self_attn"),
                    *_attention("cross_attn_token_to_image", "token_to_image"),
                    *_attention("cross_attn_image_to_token", "image_to_token"),
                    *_norm("norm1", "norm1"),
                    *_norm("norm2", "norm2"),
                    *_norm("norm3", "norm3"),
                    *_norm("norm4", "norm4"),
                    *_perceptron("mlp", "mlp", 2),
                ),
                "layer_{i}/",
            ),
            *_attention("final_attn_token_to_image", "final_attn"),
            *_norm("norm_final_attn", "norm_final"),
        ),
        "transformer/",
    ),
    *_linear("output_upscaling.0", "upscale1", _CONV_TRANSPOSED),
    *_norm("output_upscaling.1", "upscale_norm"),
    *_linear("output_upscaling.3", "upscale2", _CONV_TRANSPOSED),
    *_linear("conv_s0", "conv_s0", _CONV),
    *_linear("conv_s1", "conv_s1", _CONV),
    *_perceptron("output_hypernetworks_mlps.{i}", "hyper", 3),
    *_perceptron("iou_prediction_head", "iou_head", 3),
    *_perceptron("pred_obj_score_head", "object_head", 3),
)

MEMORY = (
    *under(
        "memory_encoder.",
        (
            # A convolution, a norm and an activation, four times, and the last convolution.
            *(
                rule
                for k in range(4)
                for rule in _linear(f"mask_downsampler.encoder.{3 * k}", f"mask/conv{k + 1}", _CONV)
            ),
            *(rule for k in range(4) for rule in _norm(f"mask_downsampler.encoder.{3 * k + 1}", f"mask/norm{k + 1}")),
            *_linear("mask_downsampler.encoder.12", "mask/out", _CONV),
            *_linear("pix_feat_proj", "pixels", _CONV),
            *under(
                "fuser.layers.{i}.",
                (
                    *_linear("dwconv", "depthwise", _CONV),
                    *_norm("norm", "norm"),
                    *_linear("pwconv1", "fc1"),
                    *_linear("pwconv2", "fc2"),
                ),
                "fuser_{i}/",
            ),
            *_linear("out_proj", "out", _CONV),
        ),
        "encoder/",
    ),
    *under(
        "memory_attention.",
        (
            *under(
                "layers.{i}.",
                (
                    *(
                        rule
                        for x in ("q", "k", "v", "out")
                        for rule in _linear(f"self_attn.{x}_proj", f"self_attn/{x}")
                    ),
                    *(
                        rule
                        for x in ("q", "k", "v", "out")
                        for rule in _linear(f"cross_attn_image.{x}_proj", f"cross_attn/{x}")
                    ),
                    *_norm("norm1", "norm1"),
                    *_norm("norm2", "norm2"),
                    *_norm("norm3", "norm3"),
                    *_linear("linear1", "fc1"),
                    *_linear("linear2", "fc2"),
                ),
                "layer_{i}/",
            ),
            *_norm("norm", "norm"),
        ),
        "attention/",
    ),
    Rule("maskmem_tpos_enc", "time", "T 1 1 D -> T D"),
    Rule("no_mem_pos_enc", "no_mem_position", "1 1 D -> D"),
    Rule("no_obj_ptr", "no_pointer", "1 D -> D"),
    Rule("no_obj_embed_spatial", "absent", "1 D -> D"),
    *_perceptron("obj_ptr_proj", "pointer_map", 3),
    *_linear("obj_ptr_tpos_proj", "pointer_time"),
    *_linear("mask_downsample", "mask_downsample", _CONV),
)

_WITHOUT_SCALE = (
    *under("image_encoder.trunk.", TRUNK, "trunk/"),
    # The published neck counts its convolutions from the coarsest level.
    *_linear("image_encoder.neck.convs.0.conv", "neck/lateral_3", _CONV),
    *_linear("image_encoder.neck.convs.1.conv", "neck/lateral_2", _CONV),
    *_linear("image_encoder.neck.convs.2.conv", "neck/lateral_1", _CONV),
    *_linear("image_encoder.neck.convs.3.conv", "neck/lateral_0", _CONV),
    *under("sam_prompt_encoder.", PROMPT, "prompt/"),
    *under("sam_mask_decoder.", DECODER, "decoder/"),
    Rule("no_mem_embed", "no_mem_embed", "1 1 D -> D"),
    *under("", MEMORY, "memory/"),
)


def rules(scale: str) -> tuple[Rule, ...]:
    """The rules of SAM2, where the layer scale of the memory encoder is called ``scale``."""
    return (*_WITHOUT_SCALE, Rule(f"memory_encoder.fuser.layers.{{i}}.{scale}", "memory/encoder/fuser_{i}/scale"))


_REASON = "part of the memory that tracks objects through videos, which this configuration does not hold"

IGNORED = tuple(
    Ignored(pattern, _REASON)
    for pattern in (
        "memory_attention.*",
        "memory_encoder.*",
        "maskmem_tpos_enc",
        "no_mem_pos_enc",
        "no_obj_ptr",
        "no_obj_embed_spatial",
        "obj_ptr_proj.*",
        "obj_ptr_tpos_proj.*",
        "mask_downsample.*",
    )
)

SAM2 = Layout(
    name="SAM2",
    rules=under("", rules("gamma"), "grounding/"),
    ignored=IGNORED,
    has=("image_encoder.trunk.patch_embed.proj.weight", "sam_mask_decoder.iou_token.weight"),
    covers=("grounding/*",),
)
