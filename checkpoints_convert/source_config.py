"""The configuration of a published checkpoint: its ``config.json``, or the SAM2 tree, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from checkpoints_convert.layouts.earthmind import SAM2_PREFIX
from checkpoints_convert.rules import Layout, match
from checkpoints_convert.transformers_config import (
    SAM2_MODEL_TYPES,
    grounding_from_transformers,
    internvl_from_transformers,
)
from earthmind_jax.config import (
    EarthMindConfig,
    FusionConfig,
    GroundingConfig,
    LmConfig,
    SensorConfig,
    VisionConfig,
    require,
)
from earthmind_jax.data import templates
from earthmind_jax.errors import UserError
from earthmind_jax.models import families
from earthmind_jax.models.families.family import require_fields
from earthmind_jax.models.sam2_presets import PRESETS, grounding_from_hydra

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
"""Tensor name to (shape, dtype): what the weights themselves say."""

RELEASED = FusionConfig(mode="concat", grounding="sar")
"""How the published EarthMind inference treats a pair: tokens side by side, masks from the SAR image."""

_VISION_FIELDS = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip


def vision_from_hf(config: Mapping[str, Any], chat: Mapping[str, Any] | None = None) -> VisionConfig:
    """A published ``vision_config``; ``chat`` is the InternVL configuration around it, where there is one."""
    chat = chat or {}
    require_fields(config, "InternViT", _VISION_FIELDS)
    require(config.get("hidden_act", "gelu") == "gelu", f"InternViT with {config.get('hidden_act')} is not supported.")
    require(config.get("num_channels", 3) == 3, "InternViT with other than three channels is not supported.")
    size = config["image_size"]
    tile = chat.get("force_image_size") or size
    require(tile == size, f"force_image_size {tile} differs from vision_config.image_size {size}; they must agree.")
    return VisionConfig(
        image_size=size,
        patch_size=config["patch_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp=config["intermediate_size"],
        norm=config.get("norm_type", "rms_norm"),
        norm_eps=float(config.get("layer_norm_eps", 1e-6)),
        qkv_bias=bool(config.get("qkv_bias", False)),
        qk_norm=bool(config.get("qk_normalization", True)),
        layer_scale_init=float(config.get("initializer_factor", 0.1)),
        select_layer=int(chat.get("select_layer", -1)),
        downsample=round(1 / chat.get("downsample_ratio", 0.5)),
        pixel_shuffle_version=chat.get("ps_version", "v1"),
    )


def lm_from_hf(config: Mapping[str, Any], *, head: bool, own: bool) -> LmConfig:
    """A published language-model configuration.

    Args:
      head: the weights hold an output head.
      own: InternVL stores a head of its own whatever the language model's configuration says about tying.
    """
    lm = families.from_hf(config)
    return replace(lm, tie=not head if own else lm.tie or not head)


def grounding_from_shapes(shapes: Shapes) -> GroundingConfig:
    """The published SAM2 size whose shapes these are (names as in the SAM2 checkpoints).

    Raises:
      UserError: for a size that was never published; its configuration tree must then be given.
    """
    if "image_encoder.trunk.pos_embed" not in shapes:
        raise UserError("A SAM2 checkpoint of transformers needs its config.json beside it.")
    embed = shapes["image_encoder.trunk.pos_embed"][0][1]
    blocks = {index["i"] for name in shapes if (index := match("image_encoder.trunk.blocks.{i}.norm1.weight", name))}
    version = "2.1" if "no_obj_embed_spatial" in shapes else "2.0"
    for preset in PRESETS.values():
        if (preset.embed_dim, sum(preset.stages), preset.version) == (embed, len(blocks), version):
            return preset
    raise UserError(
        f"A SAM2 {version} trunk of width {embed} with {len(blocks)} blocks is not a published size: give its tree."
    )


def config_from_source(
    layout: Layout,
    shapes: Shapes,
    config: Mapping[str, Any] | None,
    *,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    fusion: FusionConfig | None = None,
    memory: bool | None = None,
    vocabulary: int | None = None,
) -> EarthMindConfig | VisionConfig | LmConfig | GroundingConfig:
    """The model that a checkpoint holds: a component's configuration, or the whole :class:`EarthMindConfig`.

    Args:
      layout, shapes: what was found in the weights.
      config: the published ``config.json``; for SAM2, its tree (None: recognised by its shapes).
      grounding: SAM2's configuration or tree inside a whole model; None: recognised by its shapes.
      memory: hold SAM2's memory; None: where the weights have it.
      fusion: for a whole model; None: :data:`RELEASED` where the checkpoint was trained with pairs, else the default.
      vocabulary: rows of the token embedding, where they are not those of ``config``.
    """
    held = any("memory_encoder." in name for name in shapes) if memory is None else memory
    if config is not None and str(config.get("model_type")) in SAM2_MODEL_TYPES:
        return replace(grounding_from_transformers(config, shapes), memory=held)
    if config is not None and "text_config" in config:
        config = internvl_from_transformers(config)
    if layout.covers == ("grounding/*",):
        # Its tree has no model_type: that of another model may lie beside the file.
        given = config and "model_type" not in config
        found = grounding_from_hydra(dict(config)) if given else grounding_from_shapes(shapes)
        return replace(found, memory=held)
    if config is None:
        raise UserError(f"A checkpoint of the layout '{layout.name}' needs its config.json beside it.")
    if layout.covers == ("vision/*",):
        return vision_from_hf(config)
    head = any(name.endswith(("lm_head.weight", "output.weight")) for name in shapes)
    if layout.covers == ("lm/*",):
        rows = {} if vocabulary is None else {"vocab_size": vocabulary}
        return lm_from_hf({**config, **rows}, head=head, own=False)
    require_fields(config, "InternVL", ("vision_config", "llm_config"))
    if isinstance(grounding, Mapping):
        grounding = grounding_from_hydra(dict(grounding))
    # A configuration that was given says itself whether it has a memory, unless told otherwise.
    told = grounding is None or memory is not None
    grounding = grounding or _grounding_inside(shapes)
    if grounding is not None and told:
        grounding = replace(grounding, memory=held)
    language = config["llm_config"] | ({} if vocabulary is None else {"vocab_size": vocabulary})
    return EarthMindConfig(
        vision=vision_from_hf(config["vision_config"], config),
        lm=lm_from_hf(language, head=head or "lm/*" not in layout.covers, own=True),
        grounding=grounding,
        fusion=fusion or (RELEASED if "fusion/local_query" in layout.covers else FusionConfig()),
        sensors=SensorConfig(
            max_tiles=config.get("max_dynamic_patch", 12), thumbnail=bool(config.get("use_thumbnail", True))
        ),
        template=_template(str(config.get("template") or ""), layout) or families.find(language).template,
    )


def _template(published: str, layout: Layout) -> str | None:
    """A base InternVL model has a template of its own; EarthMind models on it use that of their family."""
    if "fusion/local_query" not in layout.covers and published in templates.INTERNVL:
        return templates.INTERNVL[published]
    published = published.replace("-", "_")
    return published if published in templates.TEMPLATES else None


def _grounding_inside(shapes: Shapes) -> GroundingConfig | None:
    """SAM2 inside a whole model; where its trunk is elsewhere, the published size, as wide as the prompt for it is."""
    below = {n.removeprefix(SAM2_PREFIX): shape for n, shape in shapes.items() if n.startswith(SAM2_PREFIX)}
    if "image_encoder.trunk.pos_embed" in below:
        return grounding_from_shapes(below)
    prompt = shapes.get("text_hidden_fcs.2.weight")
    return None if prompt is None else replace(GroundingConfig(), width=prompt[0][0])
