"""Phi-3: the language model of InternVL2-4B (Phi-3-mini-128k)."""

from __future__ import annotations

from earthmind_jax.config import LmConfig, RopeConfig
from earthmind_jax.models.families.family import Family, HfConfig, check_fields, rope, sizes


def from_hf(config: HfConfig) -> LmConfig:
    """A published Phi-3 ``config.json`` as :class:`LmConfig`; raises :class:`UserError` for what we cannot mirror."""
    check_fields(config, "Phi-3", ("original_max_position_embeddings", "sliding_window"))
    return LmConfig(
        family="phi3",
        qkv_bias=False,
        rope=rope(config, "Phi-3", theta=1e4, max_position=4096),
        sliding_window=config.get("sliding_window"),
        **sizes({"rms_norm_eps": 1e-5, **config}, "Phi-3"),
    )


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    model_types=("phi3",),
    from_hf=from_hf,
    presets={},  # the rotary factors of InternVL2-4B are 96 numbers, which its config.json brings
    template="phi3_chat",
    tiny=LmConfig(
        family="phi3",
        vocab=320,
        width=64,
        depth=2,
        heads=4,
        kv_heads=4,
        head_dim=16,
        mlp=128,
        norm_eps=1e-5,
        rope=RopeConfig(
            theta=1e4,
            kind="longrope",
            max_position=4096,
            original_max_position=512,
            short_factor=(1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3, 1.3),
            long_factor=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
        ),
        qkv_bias=False,
        remat="none",
    ),
)
