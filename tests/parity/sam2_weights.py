"""Published SAM2 weights as our parameters, written apart from the converter, and what tests of them share."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest
from transformers_sam2 import CONFIG, draw_weights, head_options, published_names, vision_config

from earthmind_jax.config import GroundingConfig
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import block_specs
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead, single_mask, stable_mask, three_masks

QUICK = {"xla_backend_optimization_level": 0}  # sizes are tiny and compilation is most of the time
MASKS, FEATURES = 1e-3, 2e-4  # absolute tolerances: mask logits; features and scores
# Published name (regex) -> our path. Kernels are transposed, and split into heads, by `convert`.
NAMES = (
    (r"image_encoder\.trunk\.patch_embed\.proj", "trunk/patch_embed"),
    (r"image_encoder\.trunk\.(pos_embed|pos_embed_window)", r"trunk/\1"),
    (r"image_encoder\.trunk\.blocks\.(\d+)\.attn\.proj", r"trunk/block_\1/attn/out"),
    (r"image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.0", r"trunk/block_\1/mlp/fc1"),
    (r"image_encoder\.trunk\.blocks\.(\d+)\.mlp\.layers\.1", r"trunk/block_\1/mlp/fc2"),
    (r"image_encoder\.trunk\.blocks\.(\d+)\.(norm1|norm2|proj|attn\.qkv)", r"trunk/block_\1/\2"),
    (r"sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "prompt/gaussian"),
    (r"sam_prompt_encoder\.not_a_point_embed\.weight", "prompt/not_a_point"),
    (r"sam_prompt_encoder\.no_mask_embed\.weight", "prompt/no_mask"),
    (r"sam_prompt_encoder\.mask_downscaling\.0", "prompt/mask/conv1"),
    (r"sam_prompt_encoder\.mask_downscaling\.1", "prompt/mask/norm1"),
    (r"sam_prompt_encoder\.mask_downscaling\.3", "prompt/mask/conv2"),
    (r"sam_prompt_encoder\.mask_downscaling\.4", "prompt/mask/norm2"),
    (r"sam_prompt_encoder\.mask_downscaling\.6", "prompt/mask/conv3"),
    (r"sam_mask_decoder\.obj_score_token\.weight", "decoder/object_token"),
    (r"sam_mask_decoder\.(iou_token|mask_tokens)\.weight", r"decoder/\1"),
    (r"sam_mask_decoder\.(conv_s0|conv_s1)", r"decoder/\1"),
    (r"sam_mask_decoder\.output_upscaling\.0", "decoder/upscale1"),
    (r"sam_mask_decoder\.output_upscaling\.1", "decoder/upscale_norm"),
    (r"sam_mask_decoder\.output_upscaling\.3", "decoder/upscale2"),
    (r"sam_mask_decoder\.transformer\.norm_final_attn", "decoder/transformer/norm_final"),
    (r"sam_mask_decoder\.transformer\.final_attn_token_to_image\.(\w+)_proj", r"decoder/transformer/final_attn/\1"),
    (
        r"sam_mask_decoder\.transformer\.layers\.(\d+)\.(?:cross_attn_)?(self_attn|token_to_image|image_to_token)\.(\w+)_proj",
        r"decoder/transformer/layer_\1/\2/\3",
    ),
    (r"sam_mask_decoder\.transformer\.layers\.(\d+)\.(norm\d)", r"decoder/transformer/layer_\1/\2"),
    (r"sam_mask_decoder\.transformer\.layers\.(\d+)\.mlp\.layers\.0", r"decoder/transformer/layer_\1/mlp/fc1"),
    (r"sam_mask_decoder\.transformer\.layers\.(\d+)\.mlp\.layers\.1", r"decoder/transformer/layer_\1/mlp/fc2"),
    (r"no_mem_embed", "no_mem_embed"),
)
PERCEPTRONS = {"iou_prediction_head": "iou_head", "pred_obj_score_head": "object_head"}
MEMORY = re.compile(r"memory_|maskmem_|no_mem_pos_enc|no_obj_|obj_ptr|mask_downsample\.")


def convert(tensors: dict[str, np.ndarray], config: GroundingConfig) -> dict[str, np.ndarray]:
    """Published SAM2 tensors as our flat parameters, without those of the memory."""
    params: dict[str, np.ndarray] = {}
    left = {name: value for name, value in tensors.items() if not MEMORY.match(name)}
    for i in range(4):  # lateral convolutions are published lowest resolution first
        for leaf in ("weight", "bias"):
            _put(params, f"neck/lateral_{3 - i}", leaf, left.pop(f"image_encoder.neck.convs.{i}.conv.{leaf}"))
    rows = [left.pop(f"sam_prompt_encoder.point_embeddings.{i}.weight")[0] for i in range(4)]
    params["prompt/points"] = np.stack(rows)
    for layer in range(3):
        for leaf in ("weight", "bias"):
            name = "sam_mask_decoder.output_hypernetworks_mlps.{}.layers.{}.{}"
            stack = np.stack([left.pop(name.format(i, layer, leaf)) for i in range(1 + config.multimask_outputs)])
            stack = stack.swapaxes(1, 2) if leaf == "weight" else stack
            params[f"decoder/hyper/fc{layer + 1}/{'kernel' if leaf == 'weight' else 'bias'}"] = stack
            for theirs, ours in PERCEPTRONS.items():
                value = left.pop(f"sam_mask_decoder.{theirs}.layers.{layer}.{leaf}")
                _put(params, f"decoder/{ours}/fc{layer + 1}", leaf, value)
    heads = {f"trunk/block_{i}/attn": spec.heads for i, spec in enumerate(block_specs(config))}
    for name, value in left.items():
        module, leaf = name.rsplit(".", 1) if name.endswith((".weight", ".bias")) else (name, "")
        for pattern, path in NAMES:
            if re.fullmatch(pattern, name):
                value = value[0].transpose(1, 2, 0) if "pos_embed" in name else value
                single = path.endswith(("not_a_point", "no_mask")) or name == "no_mem_embed"
                params[re.sub(pattern, path, name)] = value.reshape(-1) if single else value
                break
            if leaf and re.fullmatch(pattern, module):
                path = re.sub(pattern, path, module).replace(".", "/")
                count = heads.get(path.rsplit("/", 1)[0], config.decoder_heads)
                _put(params, path, leaf, value, count)
                break
        else:
            raise KeyError(f"no rule for {name}")
    return params


def _put(params: dict[str, np.ndarray], path: str, leaf: str, value: np.ndarray, heads: int = 1) -> None:
    name = path.rsplit("/", 1)[-1]
    if name == "qkv":
        for part, third in zip("qkv", np.split(value, 3), strict=True):
            _put(params, path.removesuffix("qkv") + part, leaf, third, heads)
    elif leaf == "bias":
        params[f"{path}/bias"] = value.reshape(heads, -1) if name in ("q", "k", "v") else value
    elif value.ndim == 1:
        params[f"{path}/scale"] = value
    elif value.ndim == 4:
        params[f"{path}/kernel"] = value.transpose(2, 3, 0, 1) if "upscale" in path else value.transpose(2, 3, 1, 0)
    elif name in ("q", "k", "v"):
        params[f"{path}/kernel"] = value.T.reshape(value.shape[1], heads, -1)
    elif name == "out":
        params[f"{path}/kernel"] = value.T.reshape(heads, -1, value.shape[0])
    else:
        params[f"{path}/kernel"] = value.T


def port_and_ours():
    """A tiny model of the transformers port with random weights, and those weights as our parameters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    prompt, decoder = head_options(CONFIG)
    config = transformers.Sam2Config(
        vision_config=vision_config(CONFIG),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(**prompt),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**decoder),
    )
    torch.set_num_threads(1)  # tiny sizes: threads only wait for each other
    torch.manual_seed(0)
    model = transformers.Sam2Model(config).eval().requires_grad_(False)
    draw_weights(model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    return model, convert(published_names(state), CONFIG)


def close(ours, theirs, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=tolerance, rtol=0)


def last(x):
    """Channels second -> channels last."""
    return np.moveaxis(np.asarray(x), 1, -1)


def encode(config: GroundingConfig, params: dict[str, np.ndarray], images: np.ndarray):
    """Image features, trunk stages and pyramid levels."""

    def inner(module, _):
        return module.name in ("trunk", "neck")

    apply = functools.partial(ImageEncoder(config).apply, capture_intermediates=inner)
    features, state = jax.jit(apply, compiler_options=QUICK)(functional.unflatten(params), images)
    return features, *(state["intermediates"][name]["__call__"][0] for name in ("trunk", "neck"))


def choices(config: GroundingConfig, params: dict[str, np.ndarray], features, prompts, stabilities=()):
    """The three candidates, the single mask, and the stable mask for each (delta, threshold)."""
    return _choices(config, tuple(stabilities), functional.unflatten(params), features, prompts)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _choices(config: GroundingConfig, stabilities, variables, features, prompts):
    decoded = MaskHead(config).apply(variables, features, **prompts, method="decode")
    return three_masks(decoded), single_mask(decoded), [stable_mask(decoded, *setting) for setting in stabilities]
