"""EarthMind-4B with the hyperparameters, losses and mixture of the released code."""

from __future__ import annotations

from configs.published import released_4b
from earthmind_jax.config import RunConfig


def get_config() -> RunConfig:
    return released_4b()
