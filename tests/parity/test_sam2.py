"""SAM2 against the recorded outputs of the published code."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from sam2_weights import FEATURES, MASKS, QUICK, choices, close, convert, encode, last

from checkpoints_convert.verify.recorded.grounding import recorded_prompts
from earthmind_jax.config import Precision
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import level_positions
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead
from earthmind_jax.models.sam2_presets import grounding_from_hydra
from earthmind_jax.models.sam2_prompt import PromptEncoder

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
