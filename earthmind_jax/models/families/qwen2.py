"""Qwen2 and Qwen2.5: the language models of InternVL2-1B, InternVL2.5-1B / 4B and EarthMind-4B."""

from __future__ import annotations

from earthmind_jax.config import LmConfig, RopeConfig, require
from earthmind_jax.models.families.family import Family, HfConfig, check_fields, rope, sizes


def from_hf(config: HfConfig) -> LmConfig:
    """A published Qwen2 ``config.json`` as :class:`LmConfig`; raises :class:`UserError` for what we cannot mirror."""
    check_fields(config, "Qwen2", ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"))
    return LmConfig(
        family="qwen2",
        qkv_bias=True,
        rope=rope(config, "Qwen2", theta=1e4, max_position=32768),
        sliding_window=_window(config),
        **sizes(config, "Qwen2"),
    )


def _window(config: HfConfig) -> int | None:
    """Width of the sliding window of all layers, or None. A window on some layers only is refused."""
    depth, window = config.get("num_hidden_layers", 0), config.get("sliding_window")
    if not config.get("use_sliding_window") or window is None:
        return None
    kinds = config.get("layer_types")
    if kinds is not None:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = config.get("max_window_layers", 28)  # the window begins at this layer
        slides = [layer >= first for layer in range(depth)]
    require(
        all(slides) or not any(slides),
        "Cannot convert a Qwen2 model whose sliding window covers some layers only (max_window_layers).",
    )
    return window if any(slides) else None


def _qwen(width: int, depth: int, heads: int, head_dim: int, mlp: int, vocab: int) -> LmConfig:
    return LmConfig(
        family="qwen2",
        vocab=vocab,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=2,
        head_dim=head_dim,
        mlp=mlp,
        norm_eps=1e-6,
        rope=RopeConfig(theta=1e6, max_position=32768),
        qkv_bias=True,
        tie=False,  # InternVL stores a head of its own at every size
    )


FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    from_hf=from_hf,
    presets={
        "qwen2_0_5b": _qwen(896, 24, 14, 64, 4864, 151655),  # InternVL2-1B
        "qwen2_5_0_5b": _qwen(896, 24, 14, 64, 4864, 151674),  # InternVL2.5-1B
        "qwen2_5_1_5b": _qwen(1536, 28, 12, 128, 8960, 151674),
        "qwen2_5_3b": _qwen(2048, 36, 16, 128, 11008, 151674),  # InternVL2.5-4B
        "earthmind_4b": _qwen(2048, 36, 16, 128, 11008, 151679),  # five more tokens: [SEG] <p> </p> <vp> </vp>
    },
    template="qwen_chat",
    tiny=LmConfig(
        family="qwen2", vocab=320, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, mlp=128, remat="none"
    ),
)
