"""The composition: encode -> fuse -> embed -> language model -> [SEG] -> masks, as pure functions over flat parameters.

Each function runs one published component through :mod:`earthmind_jax.models.functional`; together they are EarthMind's
forward pass. Inference calls them one by one (each its own jit), training calls :func:`forward`.

The parts are ``visual``, ``text`` and ``masks``, the pass of ``training`` over them, and their ``components``.
"""

from __future__ import annotations

from earthmind_jax.models.earthmind.components import init, param_axes, shapes
from earthmind_jax.models.earthmind.masks import (
    PROMPTED_FRAMES,
    blend_features,
    ground,
    image_features,
    repeat_features,
    sensor_features,
    track,
)
from earthmind_jax.models.earthmind.text import embed, head_kernel, language, logits, place, refine, seg_prompt
from earthmind_jax.models.earthmind.training import ForwardOutput, forward
from earthmind_jax.models.earthmind.visual import encode, encode_sensors, fuse, grounding_weights, whole_tile

__all__ = [
    "PROMPTED_FRAMES", "ForwardOutput", "blend_features", "embed", "encode", "encode_sensors", "forward", "fuse",
    "ground", "grounding_weights", "head_kernel", "image_features", "init", "language", "logits", "param_axes",
    "place", "refine", "repeat_features", "seg_prompt", "sensor_features", "shapes", "track", "whole_tile",
]  # fmt: skip
