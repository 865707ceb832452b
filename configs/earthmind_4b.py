"""EarthMind-4B (InternVL2.5-4B and SAM2 large) by the paper's three-stage curriculum."""

from __future__ import annotations

from configs.published import curriculum, earthmind_4b
from earthmind_jax.config import RunConfig


def get_config() -> tuple[RunConfig, ...]:
    """General data, Earth observation, both sensors with replay; record files below ``--data-root``."""
    return curriculum(earthmind_4b())
