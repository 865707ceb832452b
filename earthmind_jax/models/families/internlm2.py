"""InternLM2 and InternLM2.5: the language models of InternVL2-2B / 8B and InternVL2.5-2B / 8B."""

from __future__ import annotations

from earthmind_jax.config import LmConfig, RopeConfig, require
from earthmind_jax.models.families.family import Family, HfConfig, check_fields, rope, sizes


def from_hf(config: HfConfig) -> LmConfig:
    """A published InternLM2 ``config.json`` as :class:`LmConfig`; raises :class:`UserError` for what we cannot mirror.

    Beyond ``max_position_embeddings`` the published rotary embedding keeps the frequencies of the longest sequence that
    it has seen, so that its results depend on earlier calls. Here every call goes by its own length.
    """
    check_fields(config, "InternLM2", ("bias",))
    # The published default is a bias on wqkv and wo, which no released model has.
    require(config.get("bias") is not True, "Cannot convert an InternLM2 model with bias = True: it is not supported.")
    return LmConfig(
        family="internlm2",
        qkv_bias=False,
        rope=rope(config, "InternLM2", theta=1e4, max_position=2048),
        **sizes(config, "InternLM2"),
    )


def _internlm2(width: int, depth: int, heads: int, mlp: int) -> LmConfig:
    return LmConfig(
        family="internlm2",
        vocab=92553,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp=mlp,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1e6, kind="dynamic", factor=2.0, max_position=32768),
        qkv_bias=False,
    )


FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    model_types=("internlm2",),
    from_hf=from_hf,
    presets={
        "internlm2_1_8b": _internlm2(2048, 24, 16, 8192),  # InternVL2-2B and InternVL2.5-2B
        "internlm2_5_7b": _internlm2(4096, 32, 32, 14336),  # InternVL2-8B and InternVL2.5-8B
    },
    template="internlm2_chat",
    tiny=LmConfig(
        family="internlm2",
        vocab=320,
        width=64,
        depth=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        mlp=128,
        norm_eps=1e-5,
        rope=RopeConfig(theta=1e6, kind="dynamic", factor=2.0, max_position=2048),
        qkv_bias=False,
        remat="none",
    ),
)
