"""The language model: its size and family, rotary position embedding, adapters and special tokens."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config.checks import one_of, require


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding; ``kind`` names the published scaling."""

    theta: float = 1e6
    kind: str = "default"  # default | linear | dynamic (NTK) | longrope (su)
    factor: float = 1.0
    max_position: int = 32768
    original_max_position: int = 0  # longrope switch point
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        one_of("rope.kind", self.kind, ("default", "linear", "dynamic", "longrope"))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the linear layers of the language model in whose path ``targets`` (regex) is found.

    Paths are "blocks/attn/{q,k,v,o}", "blocks/mlp/{gate,up,down}" and "head".
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.0
    targets: str = r"(attn|mlp)/"  # all but the head

    def __post_init__(self) -> None:
        require(self.rank > 0, f"lora.rank must be positive, not {self.rank}.")


@dataclass(frozen=True, kw_only=True)
class LmConfig:
    """A causal language model. Every published family is a setting of these fields."""

    family: str = "qwen2"
    vocab: int = 151655
    width: int = 896
    depth: int = 24
    heads: int = 14
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 4864
    norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    qkv_bias: bool = True
    tie: bool = False
    sliding_window: int | None = None
    lora: LoraConfig | None = None
    embed_init: float = 0.02  # standard deviation of new token embeddings (initializer_range)
    scan: bool = True
    remat: str = "full"

    def __post_init__(self) -> None:
        require(
            self.heads % self.kv_heads == 0, f"lm.heads {self.heads} must be a multiple of kv_heads {self.kv_heads}."
        )
        require(self.head_dim % 2 == 0, f"lm.head_dim {self.head_dim} must be even.")
        one_of("lm.remat", self.remat, ("none", "full", "dots"))


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids resolved from the tokenizer when it is loaded; -1 where the tokenizer has no such token."""

    pad: int = 0
    bos: int = -1
    eos: int = -1
    image_start: int = -1  # <img>
    image_end: int = -1  # </img>
    image_context: int = -1  # <IMG_CONTEXT>
    seg: int = -1  # [SEG]
    p_start: int = -1
    p_end: int = -1
    vp_start: int = -1  # <vp>
    vp_end: int = -1
