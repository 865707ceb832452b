"""``a_`` InternViT; ``b_`` pixel shuffle and the projector."""

from __future__ import annotations

import re
from dataclasses import replace

import jax
import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report, channels_last
from earthmind_jax.models import earthmind, functional
from earthmind_jax.models.intern_vit import InternViT
from earthmind_jax.ops.resize import bicubic
from earthmind_jax.ops.windows import pixel_shuffle


def intern_vit(case: Case, report: Report) -> None:
    """Every hidden state at every input size, and the resized position embeddings."""
    tolerance = case.tolerance(2e-4, "{} absolute")
    config, params = case.convert()
    run = jax.jit(lambda pixels: functional.apply_module(InternViT(config), params, "vision", pixels, states=True))
    positions = params["vision/position_embedding"]
    grid = positions[1:].reshape(config.patches, config.patches, -1)

    def resized(height: int, width: int) -> np.ndarray:
        return np.asarray(bicubic(grid, (height // config.patch_size, width // config.patch_size))).reshape(
            1, -1, config.width
        )

    for name, pixels in case.inputs.items():
        size = name.removeprefix("pixel_values.")
        out = run(channels_last(pixels))
        for index, state in enumerate(out.states):
            report.close(f"{size}.hidden.{index}", state, tolerance)
        report.close(f"{size}.last_hidden_state", out.hidden, tolerance)
        report.close(f"{size}.pooler_output", out.hidden[:, 0], tolerance)
        report.close(f"{size}.pos_embed", resized(*pixels.shape[2:]), tolerance)
    for name in case.outputs:
        if found := re.fullmatch(r"resize_pos_embeddings_(\d+)", name):
            side = int(found.group(1))
            both = np.concatenate([positions[None, :1], resized(side, side)], axis=1)
            report.close(name, both, tolerance)


def projector(case: Case, report: Report) -> None:
    """Both versions of pixel shuffle, exact, and ``extract_feature`` from every selected layer."""
    tolerance = case.tolerance(2e-4, "{} for features")
    config, params = case.convert()
    pixels = channels_last(case.inputs["pixel_values"])
    out = jax.jit(lambda x: functional.apply_module(InternViT(config.vision), params, "vision", x))(pixels)
    factor = config.vision.downsample
    for name in case.outputs:
        version, _, what = name.partition(".")
        if what == "pixel_shuffle_half":
            report.exact(name, pixel_shuffle(case.inputs["feature_map"], factor, version))
        elif what == "vit_shuffled":
            side = (config.vision.patches,) * 2
            grid = out.hidden[:, 1:].reshape(out.hidden.shape[0], *side, config.vision.width)
            report.close(name, pixel_shuffle(grid, factor, version), tolerance)
        elif found := re.fullmatch(r"select(-?\d+)\.extract_feature", what):
            vision = replace(config.vision, select_layer=int(found.group(1)), pixel_shuffle_version=version)
            tokens = earthmind.encode(replace(config, vision=vision), params, pixels[:, None])
            report.close(name, tokens[:, 0], tolerance)
        elif name == "vit_last_hidden_state":
            report.close(name, out.hidden, tolerance)
