"""SAM2 against its recorded outputs, and live against the transformers port with random weights."""

from __future__ import annotations

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from transformers_sam2 import draw_weights, head_options, published_names, vision_config

from checkpoints_convert.verify.recorded.grounding import recorded_prompts
from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import Hiera, block_specs, level_positions
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead, single_mask, stable_mask, three_masks
from earthmind_jax.models.sam2_presets import grounding_from_hydra
from earthmind_jax.models.sam2_prompt import PromptEncoder, box_points

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


def close(ours, theirs, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=tolerance, rtol=0)


def last(x):
    """Channels second -> channels last."""
    return np.moveaxis(np.asarray(x), 1, -1)


# ---------------------------------------------------------------------------------------------------------- recorded


PROMPTS = ("point1", "points", "box_as_points", "box", "box_and_points", "mask", "points_mask", "language")


class Case:
    """A recorded case: its configuration, inputs, outputs, and the shared weights as published and as ours."""

    def __init__(self, goldens, name: str) -> None:
        self.config = grounding_from_hydra(json.loads((goldens / name / "config.json").read_text()))
        self.inputs = dict(np.load(goldens / name / "inputs.npz"))
        self.outputs = dict(np.load(goldens / name / "outputs.npz"))
        self.tensors = _weights(goldens)
        self.params = convert(self.tensors, self.config)


@functools.cache
def _weights(goldens) -> dict[str, np.ndarray]:
    safetensors = pytest.importorskip("safetensors.numpy")
    prefix = "grounding_encoder.sam2_model."
    tensors = safetensors.load_file(goldens / "e_e2e_qwen2" / "weights.safetensors")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def encode(config: GroundingConfig, params: dict[str, np.ndarray], images: np.ndarray):
    """Image features, trunk stages and pyramid levels."""

    def inner(module, _):
        return module.name in ("trunk", "neck")

    apply = functools.partial(ImageEncoder(config).apply, capture_intermediates=inner)
    features, state = jax.jit(apply, compiler_options=QUICK)(functional.unflatten(params), images)
    return features, *(state["intermediates"][name]["__call__"][0] for name in ("trunk", "neck"))


@pytest.fixture(scope="module")
def recorded(goldens):
    return Case(goldens, "d_sam2_fb")


@pytest.fixture(scope="module")
def spoken(goldens):
    return Case(goldens, "d_sam2_earthmind_language")


@pytest.fixture(scope="module")
def frames(spoken):
    """The raw frames normalised with the released constants, which are rounded to bfloat16."""
    mean = np.array([0.484375, 0.455078125, 0.40625], np.float32)
    std = np.array([0.228515625, 0.2236328125, 0.224609375], np.float32)
    return (last(spoken.inputs["raw_uint8"]) / np.float32(255) - mean) / std


@pytest.fixture(scope="module")
def encoded(recorded, frames):
    """Features, stages and levels of the two recorded images followed by the seven frames: one compilation."""
    return encode(recorded.config, recorded.params, np.concatenate([last(recorded.inputs["image"]), frames]))


def test_every_parameter_is_mapped(recorded):
    key, language = jax.random.key(0), jnp.zeros((1, 2, recorded.config.width))
    encoder, image = ImageEncoder(recorded.config), jnp.zeros((1, 128, 128, 3))
    features, variables = jax.eval_shape(lambda: encoder.init_with_output(key, image))
    shapes = functional.flatten(meta.unbox(variables))
    shapes |= jax.eval_shape(lambda x: functional.init_module(MaskHead(recorded.config), key, x, language), features)
    assert {path: x.shape for path, x in recorded.params.items()} == {path: x.shape for path, x in shapes.items()}


def test_recorded_trunk_and_neck(recorded, encoded):
    _, stages, levels = encoded
    for name, ours in (("trunk", stages), ("fpn", levels), ("pos", [x[None] for x in level_positions(levels)])):
        for i, x in enumerate(ours):
            if f"{name}.{i}" in recorded.outputs:
                theirs = last(recorded.outputs[f"{name}.{i}"])
                close(x[: len(theirs)], theirs, FEATURES)


def test_recorded_image_features(recorded, encoded):
    features = jax.tree.map(lambda x: x[:2], encoded[0])
    close(features.high[0], last(recorded.outputs["feat_s0"]), FEATURES)
    close(features.high[1], last(recorded.outputs["feat_s1"]), FEATURES)
    close(features.embed, last(recorded.outputs["feat_s2"]), FEATURES)
    close(features.embed + recorded.params["no_mem_embed"], last(recorded.outputs["image_embed"]), FEATURES)


@pytest.mark.parametrize("name", PROMPTS)
def test_recorded_prompts(recorded, name):
    encoder = PromptEncoder(recorded.config, Precision())
    prompts = recorded_prompts(recorded.inputs)[name]
    ours = encoder.apply(functional.unflatten(recorded.params, "prompt"), (8, 8), 1, **prompts)
    close(ours.sparse[0], recorded.outputs[f"{name}.sparse"], FEATURES)
    close(ours.position, last(recorded.outputs["dense_pe"])[0], FEATURES)
    if "mask" in name:
        close(ours.dense[0], last(recorded.outputs[f"{name}.dense"]), FEATURES)


@pytest.mark.parametrize("name", PROMPTS)
def test_recorded_masks(goldens, recorded, encoded, name):
    """Three candidates, the single mask, and the single mask with the fallback of `d_sam2_fb_stability`."""
    stability = Case(goldens, "d_sam2_fb_stability")
    features, prompts = jax.tree.map(lambda x: x[:1], encoded[0]), recorded_prompts(recorded.inputs)[name]
    settings = (stability.config.stability_delta, stability.config.stability_threshold)
    three, one, (stable,) = choices(recorded.config, recorded.params, features, prompts, (settings,))
    _close_masks(three, recorded.outputs, f"{name}.multimask_on")
    _close_masks(one, recorded.outputs, f"{name}.multimask_off")
    _close_masks(stable, stability.outputs, f"{name}.multimask_off")
    close(three.tokens[0], recorded.outputs[f"{name}.multimask_on.tokens"], FEATURES)
    close(one.tokens[0], recorded.outputs[f"{name}.multimask_off.tokens"], FEATURES)
    if name == "language":
        every = jnp.concatenate([one.logits, three.logits], axis=2)
        close(every[0], recorded.outputs["language.predict_masks.all4"], MASKS)
        close(jnp.concatenate([one.iou, three.iou], 2)[0], recorded.outputs["language.predict_masks.iou"], FEATURES)


def choices(config: GroundingConfig, params: dict[str, np.ndarray], features, prompts, stabilities=()):
    """The three candidates, the single mask, and the stable mask for each (delta, threshold)."""
    return _choices(config, tuple(stabilities), functional.unflatten(params), features, prompts)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _choices(config: GroundingConfig, stabilities, variables, features, prompts):
    decoded = MaskHead(config).apply(variables, features, **prompts, method="decode")
    return three_masks(decoded), single_mask(decoded), [stable_mask(decoded, *setting) for setting in stabilities]


def _close_masks(masks, out: dict[str, np.ndarray], name: str) -> None:
    close(masks.logits[0], out[f"{name}.low_res_masks"], MASKS)
    close(masks.iou[0], out[f"{name}.iou"], FEATURES)
    close(masks.object_score[0], out[f"{name}.object_score_logits"][:, 0], FEATURES)


@pytest.fixture(scope="module")
def ground(spoken, encoded):
    """Masks of the seven frames for the three language vectors, as a function of the parameters."""
    language = np.broadcast_to(spoken.inputs["language_embd"], (7, 3, 32))
    run = jax.jit(MaskHead(spoken.config).apply, compiler_options=QUICK)
    features = jax.tree.map(lambda x: x[2:], encoded[0])
    return lambda params: jax.tree.map(np.asarray, run(functional.unflatten(params), features, language))


def test_recorded_preprocessing(spoken, frames):
    close(frames[:1], last(spoken.outputs["preprocessed"]), FEATURES)


@pytest.mark.parametrize(
    ("name", "calls"),  # (frame, language vector) of each call of the mask decoder
    [
        ("single", [(0, 0)]),
        ("three_objects", [(0, 0), (0, 1), (0, 2)]),
        ("frames3", [(0, 0), (1, 0), (2, 0)]),
        ("video7_first5", [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]),
        ("single_negative_object", [(0, 0)]),
    ],
)
def test_recorded_language_prompts(spoken, ground, name, calls):
    params = dict(spoken.params)
    if name == "single_negative_object":
        params["decoder/object_head/fc3/bias"] = params["decoder/object_head/fc3/bias"] - 10
    masks = ground(params)
    for call, where in enumerate(calls):
        prefix = f"{name}.call{call}."
        out = {key.removeprefix(prefix): x for key, x in spoken.outputs.items() if key.startswith(prefix)}
        close(masks.logits[where], out["low_res_masks"][0, 0], MASKS)
        close(masks.iou[where], out["ious"].max(), FEATURES)
        if "object_score_logits" in out:
            close(masks.object_score[where], out["object_score_logits"][0, 0], FEATURES)
        close(_pointer(spoken.tensors, masks.tokens[where], masks.object_score[where]), out["obj_ptr"][0], FEATURES)


def _pointer(tensors: dict[str, np.ndarray], token: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The object pointer that memory keeps of a mask token: shows that the token is that of the chosen mask."""
    if score <= 0:
        return tensors["no_obj_ptr"][0]
    for layer in range(3):
        token = token if layer == 0 else np.maximum(token, 0)
        token = tensors[f"obj_ptr_proj.layers.{layer}.weight"] @ token + tensors[f"obj_ptr_proj.layers.{layer}.bias"]
    return token


# -------------------------------------------------------------------------------------------------------------- live

CONFIG = GroundingConfig(
    image_size=128, embed_dim=12, heads=2, stages=(1, 2, 3, 2), global_blocks=(4,), windows=(8, 4, 6, 3),
    pos_grid=(6, 5), width=32, decoder_heads=4, decoder_mlp=48, iou_hidden=24,
)  # fmt: skip


@pytest.fixture(scope="module")
def port():
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
    model = transformers.Sam2Model(config).eval()
    draw_weights(model)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    model.requires_grad_(False)
    return model, convert(published_names(state), CONFIG)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def port_encoded(port, images):
    return encode(CONFIG, port[1], last(images))


def test_live_trunk_and_neck(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = port[0].vision_encoder.backbone(torch.from_numpy(images)).intermediate_hidden_states
        levels, codes = port[0].vision_encoder.neck(theirs)
    _, stages, ours = port_encoded
    positions = level_positions(ours)
    for i in range(4):
        close(stages[i], theirs[i], FEATURES)
        close(ours[i], last(levels[3 - i]), FEATURES)
        close(positions[i], last(codes[3 - i])[0], FEATURES)


def test_live_other_image_size(port, images):
    """A rectangle off the native grid: positions are resampled and windows padded."""
    torch = pytest.importorskip("torch")
    image = images[:1, :, :96, :64]
    with torch.no_grad():
        theirs = port[0].vision_encoder.backbone(torch.from_numpy(image)).intermediate_hidden_states
    stages = jax.jit(Hiera(CONFIG, Precision()).apply, compiler_options=QUICK)(
        functional.unflatten(port[1], "trunk"), last(image)
    )
    for ours, other in zip(stages, theirs, strict=True):
        close(ours, other, FEATURES)


def test_live_image_features(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        theirs = port[0].get_image_embeddings(torch.from_numpy(images))
    features = port_encoded[0]
    close(features.high[0], last(theirs[0]), FEATURES)
    close(features.high[1], last(theirs[1]), FEATURES)
    close(features.embed + port[1]["no_mem_embed"], last(theirs[2]), FEATURES)


def _random_points(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 127, (2, count, 3, 2)).astype(np.float32)
    return points, rng.integers(-1, 4, (2, count, 3)).astype(np.int32)


def test_live_prompt_encoder(port):
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(3)
    boxes = np.sort(np.random.default_rng(4).uniform(0, 127, (2, 3, 2, 2)).astype(np.float32), axis=2).reshape(2, 3, 4)
    masks = np.random.default_rng(5).normal(size=(2, 1, 32, 32)).astype(np.float32)
    encoder, variables = PromptEncoder(CONFIG, Precision()), functional.unflatten(params, "prompt")

    def encode_prompts(**prompts):
        return encoder.apply(variables, (8, 8), 2, **prompts)

    with torch.no_grad():
        tensors = [torch.from_numpy(x) for x in (points, labels, boxes, masks)]
        theirs, none = model.prompt_encoder(*tensors[:2], None, None)
        corners, dense = model.prompt_encoder(None, None, *tensors[2:])
        code = model.get_image_wide_positional_embeddings()
    ours = encode_prompts(points=points, labels=labels)
    close(ours.sparse, theirs, FEATURES)
    close(np.broadcast_to(ours.dense[:, 0], (2, 8, 8, 32)), last(none), FEATURES)
    close(ours.position, last(code)[0], FEATURES)
    close(encode_prompts(boxes=boxes).sparse, corners[:, :, :2], FEATURES)  # the port adds a padding token to boxes
    corner_points, corner_labels = box_points(boxes)
    close(encode_prompts(points=corner_points, labels=corner_labels).sparse, corners, FEATURES)
    close(encode_prompts(masks=masks).dense[:, 0], last(dense), FEATURES)


def test_live_masks(port, images, port_encoded):
    """Three candidates, and the single mask: always stable, by the published threshold, and never stable."""
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(5)
    thresholds = (0.0, 0.98, 1.1)
    three, one, stable = choices(
        CONFIG, params, port_encoded[0], {"points": points, "labels": labels}, [(0.05, t) for t in thresholds]
    )
    embeddings = model.get_image_embeddings(torch.from_numpy(images))

    def theirs(multimask, threshold):
        model.mask_decoder.dynamic_multimask_stability_thresh = threshold
        prompts = {"input_points": torch.from_numpy(points), "input_labels": torch.from_numpy(labels)}
        with torch.no_grad():
            return model(image_embeddings=embeddings, multimask_output=multimask, **prompts)

    _close_port(three, theirs(True, 0.98))
    for ours, threshold in zip(stable, thresholds, strict=True):
        _close_port(ours, theirs(False, threshold))
    close(stable[0].logits, one.logits, MASKS)


def test_live_mask_prompt(port, images, port_encoded):
    torch = pytest.importorskip("torch")
    model, params = port
    points, labels = _random_points(1)
    masks = np.random.default_rng(5).normal(size=(2, 1, 32, 32)).astype(np.float32)
    with torch.no_grad():
        theirs = model(*(torch.from_numpy(x) for x in (images, points, labels)), input_masks=torch.from_numpy(masks))
    prompts = {"points": points, "labels": labels, "masks": masks}
    _close_port(choices(CONFIG, params, port_encoded[0], prompts)[0], theirs)


def _close_port(ours, theirs) -> None:
    close(ours.logits, theirs.pred_masks, MASKS)
    close(ours.iou, theirs.iou_scores, FEATURES)
    close(ours.object_score, theirs.object_score_logits[..., 0], FEATURES)
