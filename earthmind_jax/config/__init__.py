"""Every variant of the model and of a run, as frozen dataclasses.

No arrays and no Flax here: a config is hashable (so it can be a static argument of ``jax.jit``), survives a JSON
round trip (``to_json`` / ``from_json``) and is saved inside every checkpoint. A field that does not exist is an error
that names the nearest field.

A field stands with its part: ``vision``, ``language``, ``model``, ``data`` or ``training``. Import from here.
"""

from __future__ import annotations

from earthmind_jax.config.checks import nearest, one_of, require
from earthmind_jax.config.data import DataConfig, SourceConfig
from earthmind_jax.config.language import LmConfig, LoraConfig, RopeConfig, SpecialTokens
from earthmind_jax.config.model import (
    FUSION_MODES,
    GROUNDING_SOURCES,
    EarthMindConfig,
    FusionConfig,
    Precision,
    SensorConfig,
    VisualPromptConfig,
)
from earthmind_jax.config.training import Group, GuardConfig, LossConfig, MeshConfig, OptimConfig, RunConfig
from earthmind_jax.config.values import from_dict, from_json, replace_path, to_dict, to_json
from earthmind_jax.config.vision import GroundingConfig, VisionConfig

__all__ = [
    "FUSION_MODES",
    "GROUNDING_SOURCES",
    "DataConfig",
    "EarthMindConfig",
    "FusionConfig",
    "GroundingConfig",
    "Group",
    "GuardConfig",
    "LmConfig",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "OptimConfig",
    "Precision",
    "RopeConfig",
    "RunConfig",
    "SensorConfig",
    "SourceConfig",
    "SpecialTokens",
    "VisionConfig",
    "VisualPromptConfig",
    "from_dict",
    "from_json",
    "nearest",
    "one_of",
    "replace_path",
    "require",
    "to_dict",
    "to_json",
]
