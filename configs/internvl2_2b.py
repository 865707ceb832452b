"""InternVL2-2B with SAM2 large, by the paper's three-stage curriculum."""

from __future__ import annotations

import dataclasses

from configs.published import NEW_TOKENS, curriculum, model
from earthmind_jax.config import FusionConfig, RunConfig, SensorConfig
from earthmind_jax.models.families import FAMILIES


def get_config() -> tuple[RunConfig, ...]:
    lm = FAMILIES["internlm2"].presets["internlm2_1_8b"]
    lm = dataclasses.replace(lm, vocab=lm.vocab + NEW_TOKENS)
    return curriculum(
        model(lm, fusion=FusionConfig(), sensors=SensorConfig(), sam2="sam2_hiera_large", template="internlm2_chat")
    )
