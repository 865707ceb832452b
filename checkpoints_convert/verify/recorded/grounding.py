"""``d_`` SAM2: image features, prompts and masks; the language prompt of EarthMind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.reader import Source
from checkpoints_convert.verify.recorded.case import Case, Report, channels_last, channels_second
from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.data.tiles import sam_preprocess_image
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import FpnNeck, Hiera, level_positions
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead
from earthmind_jax.models.sam2_decoder import mask_logits
from earthmind_jax.models.sam2_prompt import PromptEncoder, box_points
from earthmind_jax.models.sam2_tracker import Tracker
from earthmind_jax.ops.resize import bilinear
from earthmind_jax.types import ImageFeatures, Params

INSIDE = "grounding_encoder.sam2_model."


def published(case: Case) -> Source:
    """The SAM2 tensors under the names of the published ``.pt`` files."""
    whole = case.weights
    inside = [name for name in whole.index if name.startswith(INSIDE)]
    sam2 = whole.below(INSIDE) if inside else whole
    return sam2.renamed({name: name.replace(".g_weight", ".gamma") for name in sam2.index})


def segment_anything(case: Case, report: Report) -> None:
    """Trunk, neck, position codes, every kind of prompt, and the masks with and without multimask output."""
    masks = case.tolerance(1e-3, "{} absolute on mask logits")
    features = case.tolerance(2e-4, "{} on features")
    config, params = case.convert(published(case))
    image = channels_last(case.inputs["image"])
    encoded = _image(report, config, params, image, features)
    first = jax.tree.map(lambda x: x[:1], encoded)
    for name, prompts in recorded_prompts(case.inputs).items():
        _masks(report, config, params, first, name, prompts, masks, features)


def _image(
    report: Report, config: GroundingConfig, params: Params, image: np.ndarray, tolerance: float
) -> ImageFeatures:
    """Image features; what is recorded of the stages on the way is compared, for as many images as were recorded."""
    encoder = ImageEncoder(config)

    @jax.jit
    def run(image: Any) -> Any:
        encoded = functional.apply_module(encoder, params, "grounding", image)
        if not any(name.startswith(("trunk.", "fpn.", "pos.")) for name in report.case.outputs):
            return encoded, (), (), ()
        stages = functional.apply_module(Hiera(config, encoder.precision), params, "grounding/trunk", image)
        levels = functional.apply_module(FpnNeck(config, encoder.precision), params, "grounding/neck", stages)
        return encoded, stages, levels, level_positions(levels)

    encoded, stages, levels, codes = run(image)
    ours = {
        **{f"trunk.{i}": x for i, x in enumerate(stages)},
        **{f"fpn.{i}": x for i, x in enumerate(levels)},
        **{f"pos.{i}": x[None] for i, x in enumerate(codes)},
        "feat_s0": encoded.high[0],
        "feat_s1": encoded.high[1],
        "feat_s2": encoded.embed,
        "image_embed": encoded.embed + params["grounding/no_mem_embed"],
    }
    for name, value in ours.items():
        if name in report.case.outputs:
            recorded = report.case.outputs[name]
            report.close(name, channels_second(value)[: len(recorded)], tolerance)
    return encoded


def recorded_prompts(inputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Prompts by the names of the outputs, objects on the second axis, as SAM2's image predictor makes them."""
    x = {name: value[None] for name, value in inputs.items() if name != "image"}
    points, labels, masks = x["points"], x["point_labels"], x["mask_prompts"][:, :, 0]
    corners, corner_labels = box_points(x["boxes"])
    return {
        "point1": {"points": x["point1"], "labels": x["point1_labels"]},
        "points": {"points": points, "labels": labels},
        "box_as_points": {"points": corners, "labels": corner_labels},
        "box": {"boxes": x["boxes"]},
        "box_and_points": {
            "points": jnp.concatenate([corners, points], 2),
            "labels": jnp.concatenate([corner_labels, labels], 2),
        },
        "mask": {"masks": masks},
        "points_mask": {"points": points, "labels": labels, "masks": masks},
        "language": {"language": x["language_embd"][:, :, 0]},
    }


def _masks(
    report: Report,
    config: GroundingConfig,
    params: Params,
    features: ImageFeatures,
    name: str,
    prompts: dict[str, Any],
    masks: float,
    scores: float,
) -> None:
    head, outputs = MaskHead(config), report.case.outputs
    encoder, grid = PromptEncoder(config, head.precision), features.embed.shape[1:3]

    @jax.jit
    def run(features: ImageFeatures, prompts: dict[str, Any]) -> dict[str, Any]:
        encoded = functional.apply_module(encoder, params, "grounding/prompt", grid, 1, **prompts)
        ours = {
            f"{name}.sparse": encoded.sparse[0],
            f"{name}.dense": jnp.moveaxis(encoded.dense[0], -1, 1),
            "dense_pe": jnp.moveaxis(encoded.position[None], -1, 1),
        }
        for switch in ("on", "off"):
            which = f"{name}.multimask_{switch}"
            if f"{which}.low_res_masks" in outputs:
                options = {**prompts, "multimask": switch == "on", "method": "predict"}
                out = functional.apply_module(head, params, "grounding", features, **options)
                ours |= {
                    f"{which}.low_res_masks": out.logits[0],
                    f"{which}.iou": out.iou[0],
                    f"{which}.object_score_logits": out.object_score[0][:, None],
                    f"{which}.tokens": out.tokens[0],
                }
        if f"{name}.predict_masks.all4" in outputs:
            decoded = functional.apply_module(head, params, "grounding", features, **prompts, method="decode")
            ours[f"{name}.predict_masks.all4"] = mask_logits(decoded.pixels, decoded.hyper)[0]
            ours[f"{name}.predict_masks.iou"] = decoded.iou[0]
        return ours

    for output, value in run(features, prompts).items():
        if output in outputs:
            report.close(output, value, masks if output.endswith((".low_res_masks", ".all4")) else scores)


def language_prompts(case: Case, report: Report) -> None:
    """EarthMind's driving of SAM2: one object, several, frames that are each prompted, and frames that follow them."""
    masks = case.tolerance(1e-3, "{} absolute on mask logits")
    scores = min(2e-4, masks)
    config, params = case.convert(published(case), memory=True)
    frames = channels_last(case.inputs["raw_uint8"])
    images = sam_preprocess_image(frames, mirror_bf16=True)
    report.close("preprocessed", channels_second(images[:1]), 1e-5)
    report.close("preprocessed_if_mean_std_float32", channels_second(sam_preprocess_image(frames[:1])), 1e-5)
    runs = sorted({name.partition(".")[0] for name in case.outputs if "." in name})
    wanted = {run: _prompted(run, case.inputs["language_embd"]) for run in runs}
    encode = jax.jit(lambda x: functional.apply_module(ImageEncoder(config), params, "grounding", x))
    encoded = encode(images[: max(count for count, _, _ in wanted.values())])
    for run, (count, prompted, vectors) in wanted.items():
        ours = dict(params)
        if run == "single_negative_object":
            ours["grounding/decoder/object_head/fc3/bias"] = ours["grounding/decoder/object_head/fc3/bias"] - 10
        kept = "float32" if run.endswith("float32_memory") else config.memory_dtype
        features = jax.tree.map(lambda x, count=count: x[:count], encoded)
        language = np.broadcast_to(vectors, (prompted, *vectors.shape))
        _language(report, replace(config, memory_dtype=kept), ours, run, features, language, masks, scores)


def _prompted(run: str, vectors: np.ndarray) -> tuple[int, int, np.ndarray]:
    """The frames of a run, how many of them it prompts, and with which vectors [M D] (the same in every frame)."""
    if run == "three_objects":
        return 1, 1, vectors
    if found := re.match(r"frames(\d+)", run):
        return int(found.group(1)), int(found.group(1)), vectors[:1]
    if found := re.match(r"video(\d+)_first(\d+)", run):
        return int(found.group(1)), int(found.group(2)), vectors[1:2]  # the video was recorded with the second vector
    assert run.startswith("single"), f"a run of an unknown name: {run}"
    return 1, 1, vectors[:1]


def _language(
    report: Report,
    config: GroundingConfig,
    params: Params,
    run: str,
    features: ImageFeatures,
    language: np.ndarray,
    masks: float,
    scores: float,
) -> None:
    outputs, (prompted, objects) = report.case.outputs, language.shape[:2]
    tracker, head = Tracker(config, Precision(), empty_absent=False), MaskHead(config)

    @jax.jit
    def run_all(features: ImageFeatures, language: Any) -> Any:
        stack = jax.tree.map(lambda x: x[:, None], features)  # a batch of one
        found = tracker.track(params, stack, {"language": language[:, None]})
        first = jax.tree.map(lambda x: x[:prompted], features)
        three = functional.apply_module(head, params, "grounding", first, language=language, method="predict")
        return jax.tree.map(lambda x: x[0], found), three

    found, three = run_all(features, language)  # [F M ...] and [P M ...]
    large = upsampled(found.logits, (config.image_size,) * 2)
    for name in (name for name in outputs if name.startswith(f"{run}.call")):
        call, what = re.fullmatch(rf"{run}\.call(\d+)\.(\w+)", name).groups()
        # One call for each prompted frame and object, in this order; then one for each frame that follows.
        following = int(call) >= prompted * objects
        frame, first = (int(call) - prompted * (objects - 1), 0) if following else divmod(int(call), objects)
        where = (frame, slice(first, None if following else first + 1))
        ours = {
            "low_res_masks": found.logits[where][:, None],
            "ious": found.candidates[where][:, 1:],
            "object_score_logits": found.object_score[where][:, None],
            "obj_ptr": found.pointer[where],
        }
        if what == "low_res_multimasks":
            ours[what] = three.logits[where]
        is_mask = what.startswith("low_res")
        report.close(name, ours[what], _loosened(masks if is_mask else scores, following, config))
    recorded = outputs[f"{run}.masks"]  # the last of frame after frame, object after object
    flat = large.reshape(-1, 1, *large.shape[2:])
    report.close(f"{run}.masks", flat[-len(recorded) :], _loosened(masks, len(found.logits) > prompted, config))


def _loosened(tolerance: float, following: bool, config: GroundingConfig) -> float:
    """Memories that are rounded to bfloat16 may fall on either side: five times the tolerance on frames that follow."""
    return 5 * tolerance if following and config.memory_dtype != "float32" else tolerance


def upsampled(masks: Any, size: tuple[int, int]) -> jax.Array:
    """Mask logits [B M h w] -> [B M H W], bilinear."""
    return jnp.moveaxis(bilinear(jnp.moveaxis(jnp.asarray(masks), 1, -1), size), -1, 1)
