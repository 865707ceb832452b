"""Published checkpoints to our configuration and parameters, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.assemble import Assembled, assemble
from checkpoints_convert.layouts import detect, unknown
from checkpoints_convert.layouts.lora import with_adapters
from checkpoints_convert.plan import Plan, apply_plan, build_plan
from checkpoints_convert.reader import Source
from checkpoints_convert.rules import Layout
from checkpoints_convert.source_config import config_from_source
from earthmind_jax.config import EarthMindConfig, FusionConfig, GroundingConfig, LmConfig, LoraConfig, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind
from earthmind_jax.types import Params

AnyConfig = EarthMindConfig | VisionConfig | LmConfig | GroundingConfig


def convert(
    source: str | Path | Source,
    *,
    base: Sequence[str | Path | Source] = (),
    adapters: str | Path | None = None,
    merge: bool = False,
    lora_scale: float | None = None,
    config: AnyConfig | Mapping[str, Any] | None = None,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    fusion: FusionConfig | None = None,
    memory: bool | None = None,
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> tuple[AnyConfig, Params]:
    """Read a published checkpoint of any layout in :data:`~checkpoints_convert.layouts.LAYOUTS`.

    Args:
      source: a file, a directory, or an open :class:`Source`.
      base, adapters, merge, lora_scale: the other parts of a training checkpoint, and what becomes of LoRA factors; see
        :func:`~checkpoints_convert.assemble.assemble`. Factors that are kept are under ``lora/``.
      config: the published configuration as plain values, or ours; None reads ``config.json`` beside the weights.
      grounding: SAM2's configuration or published tree in a whole model, where it is not one of the published sizes.
      fusion: how the model is to fuse; decides whether ``local_query`` is taken or left.
      memory: take SAM2's memory, which follows objects through frames; None: where the weights have it. A ``config`` of
        ours says so itself (``GroundingConfig.memory``).
      dtype: of all parameters; None keeps that of the source, tensor by tensor.
      place: called with (path, array) for each finished parameter, e.g. to put it on devices; without it the parameters
        are numpy arrays in host memory.

    Returns:
      The configuration (of the model, or of the component that the file holds) and the parameters that the file
      brings, under the paths of the whole model. What it does not bring (:func:`absent`) is left to the caller.

    Raises:
      UserError: for a file that cannot be read, is of no known layout, or does not fit its configuration.
    """
    assembled = assemble(source, base, adapters, merge=merge, lora_scale=lora_scale)
    layout, config = configure(assembled, config, grounding=grounding, fusion=fusion, memory=memory)
    plan = conversion_plan(assembled.source, layout, config, dtype=dtype)
    return config, apply_plan(plan, assembled.source, place)


def configure(
    assembled: Assembled,
    config: AnyConfig | Mapping[str, Any] | None = None,
    *,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    fusion: FusionConfig | None = None,
    memory: bool | None = None,
) -> tuple[Layout, AnyConfig]:
    """The layout of a checkpoint and the configuration of its model; arguments and errors as :func:`convert`."""
    source = assembled.source
    layout = detect(source.index)
    if layout is None:
        raise UserError(unknown(source.where, source.index))
    if config is None or isinstance(config, Mapping):
        published = config if config is not None else published_beside(assembled)
        if published is None and layout.covers != ("grounding/*",):  # SAM2 says what it is by its shapes
            raise UserError(f"'{source.where}' of the layout '{layout.name}' needs its config.json beside the weights.")
        config = config_from_source(
            layout, source.tree(), published, grounding=grounding, fusion=fusion, memory=memory,
            vocabulary=assembled.vocabulary,
        )  # fmt: skip
    return layout, with_lora(config, assembled.lora)


def with_lora(config: AnyConfig, lora: LoraConfig | None) -> AnyConfig:
    """``config`` with the adapters ``lora`` in its language model."""
    if lora is None:
        return config
    if isinstance(config, EarthMindConfig):
        return replace(config, lm=replace(config.lm, lora=lora))
    if isinstance(config, LmConfig):
        return replace(config, lora=lora)
    raise UserError("LoRA factors need a language model to adapt, which this checkpoint does not hold.")


def conversion_plan(source: Source, layout: Layout, config: AnyConfig, *, dtype: Any = None) -> Plan:
    """What :func:`convert` will do: every tensor with its place, or the reason why it has none."""
    model = whole(config)
    if model.lm.lora is not None and "lm/*" in layout.covers:
        layout = with_adapters(layout)
    tree = {
        path: (shape.shape, dtype)
        for path, shape in earthmind.shapes(model).items()
        if any(fnmatchcase(path, pattern) for pattern in layout.covers)
    }
    return build_plan(
        tree, layout.rules, source.tree(), ignored=layout.ignored, fresh=layout.fresh, what=f"'{source.where}'"
    )


def absent(config: EarthMindConfig, params: Mapping[str, Any]) -> list[str]:
    """Paths of the model that ``params`` lack, e.g. those of a fusion mode that no published checkpoint has."""
    return sorted(set(earthmind.shapes(config)) - set(params))


def whole(config: AnyConfig) -> EarthMindConfig:
    """A model around a component's configuration, as small as can be."""
    if isinstance(config, EarthMindConfig):
        return config
    fields: dict[str, Any] = {"grounding": None, "fusion": FusionConfig(mode="concat", grounding="sar")}
    name = {VisionConfig: "vision", LmConfig: "lm", GroundingConfig: "grounding"}[type(config)]
    return EarthMindConfig(**{**fields, name: config})


def published_beside(assembled: Assembled) -> dict[str, Any] | None:
    """The published configuration beside the first part of a checkpoint that has one."""
    found = (read_config(place) for place in assembled.places)
    return next((values for values in found if values is not None), None)


def read_config(where: str | Path) -> dict[str, Any] | None:
    """The ``config.json`` in the directory of a checkpoint, or None where there is none."""
    path = Path(where)
    path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}).") from error
