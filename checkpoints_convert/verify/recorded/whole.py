"""``e_`` the whole model: preprocessing, prompt, generation with forced ``[SEG]``, and masks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report, channels_second
from checkpoints_convert.verify.recorded.grounding import upsampled
from checkpoints_convert.verify.recorded.language import MARGIN, Generated, decode, margins
from earthmind_jax.config import EarthMindConfig, GroundingConfig
from earthmind_jax.data import prompts, tiles
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.models import earthmind
from earthmind_jax.types import Params

NEAR_ZERO = 1e-3  # mask logits nearer to zero than this may fall on either side


def grounding_config(sam2: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> GroundingConfig:
    """The short form in which these cases give the sizes of SAM2; those of the memory are read off its tensors."""
    trunk, memory = sam2["tr"], {n.rpartition("sam2_model.")[2]: shape for n, shape in shapes.items()}
    return GroundingConfig(
        image_size=sam2["S"],
        width=sam2["d"],
        memory=True,
        memory_dim=sam2["mem"],
        memory_frames=memory["maskmem_tpos_enc"][0],
        memory_layers=sum(bool(re.fullmatch(r"memory_attention\.layers\.\d+\.linear1\.bias", n)) for n in memory),
        memory_mlp=memory["memory_attention.layers.0.linear1.bias"][0],
        embed_dim=trunk["embed_dim"],
        heads=trunk["num_heads"],
        stages=tuple(trunk["stages"]),
        global_blocks=tuple(trunk["global_att_blocks"]),
        windows=tuple(trunk["window_spec"]),
        pos_grid=tuple(trunk["window_pos_embed_bkg_spatial_size"]),
    )


@dataclass(frozen=True)
class Model:
    """The converted model of a case and its tokenizer."""

    case: Case

    @cached_property
    def _converted(self) -> tuple[EarthMindConfig, Params]:
        shapes = {name: shape for name, (shape, _) in self.case.weights.tree().items()}
        return self.case.convert(grounding=grounding_config(self.case.config["sam2"], shapes))

    @property
    def config(self) -> EarthMindConfig:
        return self._converted[0]

    @property
    def params(self) -> Params:
        return self._converted[1]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.case.path)

    @cached_property
    def encode(self) -> Any:
        return jax.jit(lambda pixels: earthmind.encode(self.config, self.params, pixels))

    @cached_property
    def masks(self) -> Any:
        """Masks [F M h w] and candidates' IoU [F M 3] of pictures [F G G 3] and prompts [M d]."""

        def run(images: Any, vectors: Any) -> Any:
            found = earthmind.track(self.config, self.params, None, images[None], vectors[None])
            return found.logits[0], found.candidates[0, :, :, 1:]

        return jax.jit(run)


@dataclass(frozen=True)
class Inputs:
    """What one run sees: 8-bit tiles of each sensor [I S S 3], grounding pictures [F H W 3], and marked regions."""

    optical: np.ndarray | None
    sar: np.ndarray | None
    frames: np.ndarray | None
    regions: list[list[tuple[int, int]]]
    blocks: int  # image blocks in the prompt


def run_inputs(model: Model, run: str) -> Inputs:
    """The inputs of a run, by its name: text_only, video, multi (SAR and RGB), region, image*."""
    x, c = model.case.inputs, model.case.config
    size, limits = c["image_size"], (c["min_dynamic_patch_used"], c["max_dynamic_patch_used"], c["use_thumbnail"])
    if run == "text_only":
        return Inputs(None, None, None, [], 0)
    if run == "video":
        seen = np.stack([tiles.direct_resize(frame, size) for frame in x["video"][: earthmind.PROMPTED_FRAMES]])
        return Inputs(seen, None, x["video"], [], len(seen))
    optical = tiles.dynamic_tiles(x["image"], size, *limits)
    if run == "multi":
        return Inputs(optical, tiles.dynamic_tiles(x["sar_image"], size, *limits), x["sar_image"][None], [], 1)
    regions = []
    if run == "region":
        height, width = x["image"].shape[:2]
        grid = tiles.closest_grid((width, height), *limits[:2], size)
        side = model.config.vision.grid
        regions = [
            tiles.region_cells(mask, side, grid, limits[2], at_least_one=False) for mask in x["region_mask_prompts"]
        ]
    return Inputs(optical, None, x["image"][None], regions, 1)


def whole_model(case: Case, report: Report) -> None:
    """Every run of the case."""
    model = Model(case)
    for run, options in case.config["runs"].items():
        _run(model, report, run, options)


def _run(model: Model, report: Report, run: str, options: dict[str, Any]) -> None:
    case, config, params = report.case, model.config, model.params
    exact = case.tolerance(2e-4, "{} on hidden")
    inputs = run_inputs(model, run)
    embeds, ids = _prompt(model, report, run, options["text"], inputs, exact)
    recorded = case.outputs[f"{run}.generated_ids"][0]
    generated = decode(config.lm, params, embeds, recorded)
    forced = {int(step): token for step, token in options["force"].items()}
    _generation(model, report, run, generated, recorded, forced, exact)
    if f"{run}.encode_feature" in case.outputs:
        # The second pass over the bare token embeddings, image tokens included.
        out = earthmind.language(config, params, earthmind.embed(config, params, ids), attention=True)
        report.close(f"{run}.encode_feature", out.hidden[0], exact)
        report.close(f"{run}.encode_attention_last_mean", out.attention[-1], exact)
    if f"{run}.seg_hidden_states" not in case.outputs:
        return
    # Row i of the last n - 1 states is that of the i-th generated token, when it was fed.
    fed = generated.hidden[len(generated.hidden) - len(recorded) + 1 :]
    states = fed[recorded[:-1] == model.tokenizer.id("[SEG]")]
    report.close(f"{run}.seg_hidden_states", states, exact)
    vectors = earthmind.seg_prompt(config, params, jnp.asarray(states)[None])[0]
    report.close(f"{run}.text_hidden_fcs", vectors, exact)
    _grounding(model, report, run, inputs, vectors)


def _prompt(
    model: Model, report: Report, run: str, text: str, inputs: Inputs, exact: float
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt embeddings [1 T D] and ids [1 T]."""
    config, params, outputs = model.config, model.params, report.case.outputs
    given = [x for x in (inputs.sar, inputs.optical) if x is not None]  # in the order of their calls
    tokens = [model.encode(tiles.normalise(x)[None]) for x in given]
    for index, x in enumerate(tokens):
        report.close(f"{run}.vit_embeds.{index}", x[0], exact)
    if f"{run}.pixel_values" in outputs:
        values = tiles.normalise(given[0])[[0, -1]]
        report.close(f"{run}.pixel_values", channels_second(values), report.case.tolerance(1e-5))
    rows, visual, regions = [], None, []
    if tokens:
        fused = earthmind.fuse(
            config,
            params,
            tokens[-1] if inputs.optical is not None else None,
            tokens[0] if inputs.sar is not None else None,
            None,
            None,
            jnp.zeros((1, 1, config.lm.width)),
            jnp.zeros((1, 1), bool),
        )
        visual = fused.tokens.reshape(1, -1, config.lm.width)
        places = np.flatnonzero(np.asarray(fused.valid))
        rows = np.split(places, inputs.blocks)
        per_tile = places.reshape(fused.valid.shape[1], -1)
        regions = [[per_tile[cell] for cell in region] for region in inputs.regions]
    prompt = prompts.build([(text, None)], model.tokenizer, config.template, visual=rows, regions=regions)
    ids = prompt.tokens[None]
    report.exact(f"{run}.input_ids", ids)
    embeds = earthmind.place(earthmind.embed(config, params, ids), visual, prompt.visual_index[None])
    report.close(f"{run}.inputs_embeds", embeds, exact)
    return np.asarray(embeds), ids


def _generation(
    model: Model,
    report: Report,
    run: str,
    generated: Generated,
    recorded: np.ndarray,
    forced: dict[int, int],
    exact: float,
) -> None:
    ours = np.array([forced.get(step, token) for step, token in enumerate(generated.ids)])
    clear = report.case.outputs[f"{run}.margin"][0] > MARGIN
    report.exact(f"{run}.generated_ids", ours[None], where=clear[None])
    report.close(f"{run}.step_logits", generated.logits[None], exact)
    report.close(f"{run}.margin", margins(generated.logits)[None], exact)
    report.close(f"{run}.last_hidden_cat", generated.hidden, exact)
    said = report.case.config["runs"][run]["prediction"]
    assert model.tokenizer.decode(recorded).strip() == said, f"{run}: the tokenizer reads {said!r} differently"


def _grounding(model: Model, report: Report, run: str, inputs: Inputs, vectors: jax.Array) -> None:
    case, config, outputs = report.case, model.config, report.case.outputs
    logits_tolerance = case.tolerance(2e-3, "{} on mask logits")
    scores = case.tolerance(2e-4, "{} on hidden")
    if inputs.frames is None or not len(vectors):
        return
    size = config.grounding.image_size
    pictures = np.stack([tiles.direct_resize(frame, size) for frame in inputs.frames])
    images = tiles.sam_preprocess_image(pictures, mirror_bf16=True)
    if f"{run}.g_resized_uint8" in outputs:
        report.exact(f"{run}.g_resized_uint8", np.moveaxis(pictures[0], -1, 0))
    if f"{run}.g_pixel_values_crop" in outputs:
        recorded = outputs[f"{run}.g_pixel_values_crop"]
        crop = channels_second(images[:1])[..., : recorded.shape[2], : recorded.shape[3]]
        report.close(f"{run}.g_pixel_values_crop", crop, case.tolerance(1e-5))
    low, ious = model.masks(images, vectors)
    prompted = min(len(images), earthmind.PROMPTED_FRAMES)
    # Memories that are rounded to bfloat16 may fall on either side.
    following = case.tolerance(1e-2, "{} for tracked frames")
    for frame in range(len(images)):
        for seg in range(len(vectors)):
            # One call for each [SEG] and, within it, each frame.
            names = [f"{run}.{what}.{seg * len(images) + frame}" for what in ("low_res_masks", "ious")]
            loose = frame >= prompted
            report.close(names[0], low[frame, seg][None, None], following if loose else logits_tolerance)
            report.close(names[1], ious[frame, seg][None], 5 * scores if loose else scores)
    for seg in range(len(vectors)):
        large = upsampled(low[:, seg][:, None], (size, size))  # [F 1 S S]
        recorded = outputs[f"{run}.sam_masks.{seg}"]
        loose = following if prompted < len(images) else logits_tolerance
        report.close(f"{run}.sam_masks.{seg}", large[-len(recorded) :], loose)
        final = np.asarray(upsampled(large, inputs.frames.shape[1:3]))[:, 0]
        near = np.full((len(final), 1, 1), NEAR_ZERO)
        near[prompted:] = following
        report.exact(f"{run}.prediction_masks.{seg}", final > 0, where=np.abs(final) >= near)
