"""SAM2's memory live against the video model of the transformers port, with random weights: its parts, and tracking."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_sam2 import draw_weights, head_options, published_names, vision_config

from checkpoints_convert.convert import conversion_plan, convert
from checkpoints_convert.layouts.sam2 import SAM2
from checkpoints_convert.plan import apply_plan
from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.models import functional
from earthmind_jax.models.sam2 import ImageEncoder
from earthmind_jax.models.sam2_memory import MemoryEncoder
from earthmind_jax.models.sam2_memory_attention import MemoryAttention, Recollection
from earthmind_jax.models.sam2_tracker import Tracker
from earthmind_jax.ops import position

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
port_module = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")

MASKS, FEATURES = 1e-3, 2e-4  # absolute tolerances: mask logits; features, pointers and scores
# The port's memories are 64 wide whatever its configuration says, so that a pointer is two tokens here.
CONFIG = GroundingConfig(
    image_size=128, embed_dim=8, heads=1, stages=(1, 1, 2, 1), global_blocks=(3,), windows=(8, 4, 6, 3),
    pos_grid=(3, 4), width=128, decoder_heads=4, decoder_mlp=48, iou_hidden=24, stability=True, memory=True,
    memory_layers=2, memory_mlp=96, memory_binarize=True, memory_dtype="float32",
)  # fmt: skip
FRAMES, OBJECTS = 10, 2  # more frames than memories: the oldest leave the ring


class Float32Memories:
    """torch, but for the one cast of memories to bfloat16 in the port."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Tensors(dict):
    """Tensors in memory as the converter reads them."""

    where = "memory"

    def read(self, name: str) -> np.ndarray:
        return self[name]

    def tree(self) -> dict[str, Any]:
        return {name: (value.shape, value.dtype) for name, value in self.items()}


@functools.cache
def port(version: str) -> tuple[Any, GroundingConfig, dict[str, jax.Array]]:
    """The port, the same configuration as ours, and its weights through the converter."""
    config, newer = replace(CONFIG, version=version), version == "2.1"
    prompt, decoder = head_options(config)
    theirs = transformers.Sam2VideoConfig(
        vision_config=vision_config(config),
        prompt_encoder_config=port_module.Sam2VideoPromptEncoderConfig(**prompt),
        mask_decoder_config=port_module.Sam2VideoMaskDecoderConfig(**decoder),
        image_size=config.image_size, num_maskmem=config.memory_frames, enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer, max_object_pointers_in_encoder=config.memory_pointers,
        memory_attention_hidden_size=config.width, memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.memory_mlp, memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=config.width, memory_encoder_output_channels=config.memory_dim,
        mask_downsampler_embed_dim=config.width, memory_fuser_embed_dim=config.width,
        memory_fuser_intermediate_dim=4 * config.width,
        rope_parameters={"rope_type": "axial", "rope_theta": 10000.0},
    )  # fmt: skip
    torch.set_num_threads(1)  # tiny sizes: threads only wait for each other
    model = port_module.Sam2VideoModel(theirs).eval().requires_grad_(False)
    draw_weights(model, spread=0.12)
    tensors = Tensors(published_names({name: value.numpy() for name, value in model.state_dict().items()}))
    plan = conversion_plan(tensors, SAM2, config)
    assert not plan.ignored
    return model, config, apply_plan(plan, tensors, lambda path, array: jnp.asarray(array))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def last(x: Any) -> np.ndarray:
    """Channels second -> channels last."""
    return np.moveaxis(np.asarray(x), 1, -1)


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=tolerance, rtol=0)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_saved_directory_converts_to_the_same(version, tmp_path):
    model, config, params = port(version)
    model.save_pretrained(tmp_path)
    found, converted = convert(tmp_path)
    untold = {"memory_binarize": config.memory_binarize, "memory_dtype": config.memory_dtype}
    assert replace(found, **untold) == config
    assert set(converted) == set(params)
    for path, value in converted.items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_memory_encoder():
    model, config, params = port("2.0")
    features, masks = normal(0, 2, 128, 8, 8), 10 * normal(1, 2, 1, 128, 128)
    theirs, code = model.memory_encoder(torch.from_numpy(features), torch.from_numpy(masks))
    encoder = MemoryEncoder(config, Precision())
    ours = functional.apply_module(encoder, params, "grounding/memory/encoder", last(features), masks)
    assert float(theirs.std()) > 0.1
    close(ours[:, 0], last(theirs), FEATURES)
    close(position.sine(8, 8, 64), last(code)[0], FEATURES)


def test_memory_attention():
    """Five memories, one of which nobody may look at, and three pointers, one of them likewise."""
    model, config, params = port("2.0")
    features, memories = normal(0, 2, 8, 8, 128), normal(1, 2, 1, 5, 8, 8, 64)
    pointers, pointer_code, memory_code = normal(2, 2, 1, 6, 64), normal(3, 2, 6, 64), normal(4, 5, 8, 8, 64)
    seen, known = np.array([1, 1, 0, 1, 1], bool), np.array([1, 1, 0, 0, 1, 1], bool)

    def sequence(places: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        both = np.concatenate([places[:, seen].reshape(2, -1, 64), tokens[:, known]], axis=1)
        return torch.from_numpy(both.swapaxes(0, 1).copy())

    flat = torch.from_numpy(features.reshape(2, 64, 128).swapaxes(0, 1).copy())
    code = torch.from_numpy(np.array(position.sine(8, 8, 128)).reshape(64, 1, 128))
    theirs = model.memory_attention(
        flat,
        sequence(memories[:, 0], pointers[:, 0]),
        code,
        sequence(np.broadcast_to(memory_code, (2, 5, 8, 8, 64)), pointer_code),
        num_object_pointer_tokens=int(known.sum()),
    )
    past = Recollection(memories, memory_code, jnp.asarray(seen), pointers, pointer_code, jnp.asarray(known))
    attention = MemoryAttention(config, Precision())
    ours = functional.apply_module(attention, params, "grounding/memory/attention", features, past)
    close(ours.reshape(2, 64, 128), theirs[0], FEATURES)


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """A scene of patches that drifts, with noise [F 3 128 128]."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.repeat(rng.normal(size=(3, 40, 40)), 8, 1), 8, 2)
    frames = [scene[:, 12 * i : 12 * i + 128, 16 * i : 16 * i + 128] for i in range(FRAMES)]
    return (np.stack(frames) + 0.1 * rng.normal(size=(FRAMES, 3, 128, 128))).astype(np.float32)


def prompts(kind: str, prompted: int) -> dict[str, np.ndarray]:
    """Prompts [P 1 M ...], another one for each object and frame."""
    rng = np.random.default_rng(5)
    lead = (prompted, 1, OBJECTS)
    if kind == "mask":
        masks = np.zeros((*lead, 128, 128), np.float32)
        for place in np.ndindex(lead):
            top, left = rng.integers(0, 60, 2)
            masks[place][top : top + 51, left : left + 37] = 1
        return {"masks": masks}
    if kind == "box":
        corners = rng.uniform(0, 60, (*lead, 2))
        return {"boxes": np.concatenate([corners, corners + rng.uniform(20, 60, (*lead, 2))], -1).astype(np.float32)}
    count = {"point": 1, "points": 3}[kind]
    labels = rng.integers(0, 2, (*lead, count)).astype(np.int32)
    return {"points": rng.uniform(0, 127, (*lead, count, 2)).astype(np.float32), "labels": labels}


def their_masks(model: Any, video: np.ndarray, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the port keeps of every frame and object, arrays [F M ...]."""
    session = port_module.Sam2VideoInferenceSession(video=torch.from_numpy(video), dtype=torch.float32)
    prompted = len(next(iter(given.values())))
    for frame in range(prompted):
        for m in range(OBJECTS):
            index = session.obj_id_to_idx(m)
            x = {name: torch.from_numpy(np.array(value[frame, :, m : m + 1])) for name, value in given.items()}
            if "masks" in x:
                session.add_mask_inputs(index, frame, x["masks"])
            else:
                corners = (
                    {"points": x["boxes"].reshape(1, 1, 2, 2), "labels": torch.tensor([[[2, 3]]])}
                    if "boxes" in x
                    else x
                )
                inputs = {"point_coords": corners["points"], "point_labels": corners["labels"]}
                session.add_point_inputs(index, frame, inputs)
            session.obj_with_new_inputs.append(m)
        model(session, frame_idx=frame)
    for frame in range(prompted, len(video)):
        model(session, frame_idx=frame)

    def kept(name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = [
            [
                session.get_output(m, frame, name, is_conditioning_frame=frame < prompted).numpy().reshape(shape)
                for m in range(OBJECTS)
            ]
            for frame in range(len(video))
        ]
        return np.array(found)

    return {
        "logits": kept("pred_masks", (32, 32)),
        "object_score": kept("object_score_logits", ()),
        "pointer": kept("object_pointer", (-1,)),
    }


def our_masks(config: GroundingConfig, params: Any, video: np.ndarray, given: dict[str, np.ndarray]) -> Any:
    tracker, encoder = Tracker(config, Precision()), ImageEncoder(config)

    @jax.jit
    def run(frames: jax.Array, given: dict[str, jax.Array]) -> Any:
        def encode(frame: jax.Array) -> Any:
            return functional.apply_module(encoder, params, "grounding", frame)

        return tracker.track(params, frames[:, None], given, encode=encode)

    return jax.tree.map(lambda x: np.asarray(x[0]), run(last(video), given))


def as_published(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask prompts as in the published code, from which the port departs twice: there the pointer comes from the single
    mask's token, and what is remembered is the prompt after its way through the low resolution."""
    use, forward = model._use_mask_as_output, model._single_frame_forward

    def use_mask(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(model, "_single_frame_forward", functools.partial(forward, multimask_output=False))
            out = use(*args)
        size = out.high_res_masks.shape[-2:]
        out.high_res_masks = torch.nn.functional.interpolate(out.pred_masks, size=size, mode="bilinear")
        return out

    monkeypatch.setattr(model, "_use_mask_as_output", use_mask)


@pytest.mark.parametrize(
    ("version", "kind", "prompted", "absent"),
    [
        ("2.0", "point", 1, 0.0),
        ("2.0", "points", 2, 0.3),
        ("2.0", "mask", 1, 0.3),
        ("2.1", "point", 3, 0.0),
        ("2.1", "box", 1, 0.0),
        ("2.1", "mask", 2, 0.25),
    ],
)
def test_tracking(version, kind, prompted, absent, video, monkeypatch):
    """Ten frames of two objects, of which ``absent`` asks for a share to be gone: masks, scores and pointers."""
    monkeypatch.setattr(port_module, "torch", Float32Memories())
    model, config, params = port(version)
    model = copy.deepcopy(model)  # its weights are changed below
    as_published(model, monkeypatch)
    given = prompts(kind, prompted)
    # Random scores hardly differ and never change sign: they are spread out and moved.
    head, path = model.mask_decoder.pred_obj_score_head.proj_out, "grounding/decoder/object_head/fc3/"
    head.weight.mul_(40)
    scores = their_masks(model, video, given)["object_score"]
    shift = -float(np.quantile(scores[prompted:], absent)) if absent else 0.5 - float(scores.min())
    head.bias.add_(shift)
    moved = {f"{path}kernel": 40 * params[f"{path}kernel"], f"{path}bias": params[f"{path}bias"] + shift}
    theirs, ours = their_masks(model, video, given), our_masks(config, params | moved, video, given)
    there = theirs["object_score"][prompted:] > 0
    assert there.any()
    assert there.all() == (absent == 0)
    for name, tolerance in (("object_score", FEATURES), ("pointer", FEATURES), ("logits", MASKS)):
        close(getattr(ours, name), theirs[name], tolerance)
