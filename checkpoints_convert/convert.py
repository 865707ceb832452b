"""Published checkpoints to our configuration and parameters, in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.layouts import LAYOUTS, detect
from checkpoints_convert.plan import Plan, apply_plan, build_plan
from checkpoints_convert.reader import Source, open_source
from checkpoints_convert.rules import Layout
from checkpoints_convert.source_config import config_from_source
from earthmind_jax.config import EarthMindConfig, FusionConfig, GroundingConfig, LmConfig, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind
from earthmind_jax.types import Params

AnyConfig = EarthMindConfig | VisionConfig | LmConfig | GroundingConfig


def convert(
    source: str | Path | Source,
    *,
    config: AnyConfig | Mapping[str, Any] | None = None,
    grounding: GroundingConfig | Mapping[str, Any] | None = None,
    fusion: FusionConfig | None = None,
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> tuple[AnyConfig, Params]:
    """Read a published checkpoint of any layout in :data:`~checkpoints_convert.layouts.LAYOUTS`.

    Args:
      source: a file, a directory, or an open :class:`Source`.
      config: the published configuration as plain values, or ours; None reads ``config.json`` beside the weights.
      grounding: SAM2's configuration or published tree in a whole model, where it is not one of the published sizes.
      fusion: how the model is to fuse; decides whether ``local_query`` is taken or left.
      dtype: of all parameters; None keeps that of the source, tensor by tensor.
      place: called with (path, array) for each finished parameter, e.g. to put it on devices; without it the parameters
        are numpy arrays in host memory.

    Returns:
      The configuration (of the model, or of the component that the file holds) and the parameters that the file
      brings, under the paths of the whole model. What it does not bring (:func:`absent`) is left to the caller.

    Raises:
      UserError: for a file that cannot be read, is of no known layout, or does not fit its configuration.
    """
    source = source if isinstance(source, Source) else open_source(source)
    layout, config = recognise(source, config, grounding=grounding, fusion=fusion)
    plan = conversion_plan(source, layout, config, dtype=dtype)
    return config, apply_plan(plan, source, place)


def recognise(
    source: Source, config: AnyConfig | Mapping[str, Any] | None = None, **options: Any
) -> tuple[Layout, AnyConfig]:
    """The layout of ``source`` and the configuration of what it holds.

    ``config`` and ``options`` are as for :func:`convert` and
    :func:`~checkpoints_convert.source_config.config_from_source`; raises :class:`UserError` as they do.
    """
    layout = detect(source.index)
    if layout is None:
        names = ", ".join(list(source.index)[:3])
        known = ", ".join(known.name for known in LAYOUTS)
        raise UserError(f"'{source.where}' has tensors ({names}, ...) of no known layout; known layouts: {known}.")
    if config is None or isinstance(config, Mapping):
        published = config if config is not None else read_config(source.where)
        if published is None and layout.covers != ("grounding/*",):  # SAM2 says what it is by its shapes
            raise UserError(f"'{source.where}' of the layout '{layout.name}' needs its config.json beside the weights.")
        config = config_from_source(layout, source.tree(), published, **options)
    return layout, config


def conversion_plan(source: Source, layout: Layout, config: AnyConfig, *, dtype: Any = None) -> Plan:
    """What :func:`convert` will do: every tensor with its place, or the reason why it has none."""
    tree = {
        path: (shape.shape, dtype)
        for path, shape in earthmind.shapes(whole(config)).items()
        if any(fnmatchcase(path, pattern) for pattern in layout.covers)
    }
    return build_plan(tree, layout.rules, source.tree(), ignored=layout.ignored, what=f"'{source.where}'")


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
