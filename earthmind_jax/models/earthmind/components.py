"""The modules of a model's parts, and all their parameters: made, named and sharded by path."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import functional
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.fusion import Fusion
from earthmind_jax.models.intern_vit import InternViT
from earthmind_jax.models.projector import Projector, TextHiddenFcs
from earthmind_jax.models.pyramid import MAPPED_MODES, PyramidMaps
from earthmind_jax.models.sam2 import ImageEncoder, MaskHead
from earthmind_jax.models.sam2_memory import Memory, start_bank
from earthmind_jax.models.visual_prompt import VisualPromptEncoder
from earthmind_jax.types import ImageFeatures, Params


def init(cfg: EarthMindConfig, key: Array, only: Collection[str] | None = None) -> Params:
    """New parameters of the whole model, flat. Wrap in ``jax.jit`` with output shardings to create them in place.

    Args:
      only: paths to return, the same numbers as among all; under ``jax.jit`` the others are never computed.
    """
    params: Params = {}
    for i, (prefix, module, dummy) in enumerate(_components(cfg)):
        params |= functional.add_prefix(functional.init_module(module, jax.random.fold_in(key, i), *dummy), prefix)
    return params if only is None else {path: params[path] for path in only}


@functools.lru_cache(maxsize=32)
def param_axes(cfg: EarthMindConfig) -> dict[str, tuple[str | None, ...]]:
    """Logical axis names of every parameter, by path."""
    axes: dict[str, tuple[str | None, ...]] = {}

    def collect() -> None:
        for prefix, module, dummy in _components(cfg):
            axes.update(functional.add_prefix(functional.module_axes(module, *dummy), prefix))

    jax.eval_shape(collect)  # so that the arguments to trace with are never made
    return axes


@functools.lru_cache(maxsize=32)
def shapes(cfg: EarthMindConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, by path; allocates nothing."""
    return jax.eval_shape(lambda: init(cfg, jax.random.key(0)))


def _components(cfg: EarthMindConfig) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """(path prefix, module, arguments to trace it with) of every component."""
    v, width = cfg.vision, cfg.lm.width
    tokens = jnp.zeros((1, 1, v.tokens, width))
    parts: list[tuple[str, nn.Module, tuple[Any, ...]]] = [
        ("vision", vision_module(cfg), (jnp.zeros((1, v.image_size, v.image_size, 3)),)),
        ("projector", projector_module(cfg), (jnp.zeros((1, v.patches, v.patches, v.width)),)),
        ("lm", decoder_module(cfg), (jnp.zeros((1, 1), jnp.int32),)),
        ("fusion", fusion_module(cfg), (tokens, tokens)),
    ]
    if cfg.grounding is not None:
        g = cfg.grounding
        features = ImageFeatures(
            embed=jnp.zeros((1, g.image_size // 16, g.image_size // 16, g.width)),
            high=tuple(
                jnp.zeros((1, g.image_size // stride, g.image_size // stride, g.width // narrow))
                for stride, narrow in ((4, 8), (8, 4))
            ),
        )
        parts += [
            ("text_hidden_fcs", seg_module(cfg), (jnp.zeros((1, width)),)),
            ("grounding", encoder_module(cfg), (jnp.zeros((1, g.image_size, g.image_size, 3)),)),
            ("grounding", mask_module(cfg), (features, jnp.zeros((1, 1, g.width)))),
        ]
        if g.memory:
            memories = jnp.zeros((1, 1, 1, *features.embed.shape[1:3], g.memory_dim))
            bank = start_bank(g, memories, jnp.zeros((1, 1, 1, g.width)), jnp.ones((1,), jnp.int32))
            parts.append(("grounding/memory", Memory(g, cfg.precision), (features.embed, bank)))
        if has_pyramid_maps(cfg):
            parts.append(("pyramid", PyramidMaps(cfg.precision), (features, jnp.zeros((1,), bool))))
    if cfg.prompts is not None:  # last: the others begin with the same numbers with it and without
        place = jnp.zeros((1, 1), jnp.int32)
        parts.append(("visual_prompt", prompt_module(cfg), (tokens[0], place, place)))
    return parts


def vision_module(cfg: EarthMindConfig) -> InternViT:
    return InternViT(cfg.vision, cfg.precision)


def projector_module(cfg: EarthMindConfig) -> Projector:
    return Projector(cfg.lm.width, cfg.vision.downsample, cfg.vision.pixel_shuffle_version, cfg.precision)


def decoder_module(cfg: EarthMindConfig) -> Decoder:
    return Decoder(cfg.lm, cfg.precision)


def fusion_module(cfg: EarthMindConfig) -> Fusion:
    return Fusion(cfg.fusion, cfg.lm.width, cfg.precision)


def prompt_module(cfg: EarthMindConfig) -> VisualPromptEncoder:
    assert cfg.prompts is not None
    return VisualPromptEncoder(cfg.prompts, cfg.lm.width, cfg.vision.grid, cfg.precision)


def seg_module(cfg: EarthMindConfig) -> TextHiddenFcs:
    assert cfg.grounding is not None
    return TextHiddenFcs(cfg.grounding.width, cfg.precision)


def encoder_module(cfg: EarthMindConfig) -> ImageEncoder:
    assert cfg.grounding is not None
    return ImageEncoder(cfg.grounding, cfg.precision)


def mask_module(cfg: EarthMindConfig) -> MaskHead:
    assert cfg.grounding is not None
    return MaskHead(cfg.grounding, cfg.precision)


def has_pyramid_maps(cfg: EarthMindConfig) -> bool:
    """Whether both sensors' pyramids are mapped before they are blended."""
    return cfg.fusion.mode in MAPPED_MODES and cfg.fusion.grounding == "fused"
