"""The whole model: its encoders and language model, what joins them, how rasters reach them, and their dtypes."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config.checks import one_of, require
from earthmind_jax.config.language import LmConfig, SpecialTokens
from earthmind_jax.config.vision import GroundingConfig, VisionConfig

FUSION_MODES = (
    "hca", "hca_plus", "hca_gated", "hca_printed", "release_2025_06", "release_2025_10", "concat", "average", "cosine",
)  # fmt: skip
GROUNDING_SOURCES = ("optical", "sar", "fused")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtype policy. Norm statistics, softmax, RoPE tables, losses, fusion scores and mask logits are always float32."""

    param: str = "float32"  # trainable weights (masters)
    compute: str = "float32"  # activations, and storage of frozen weights
    logits: str = "float32"

    def __post_init__(self) -> None:
        for name in ("param", "compute", "logits"):
            one_of(f"precision.{name}", getattr(self, name), ("float32", "bfloat16", "float16"))


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How optical and SAR tokens become one sequence; the modes are described in :mod:`earthmind_jax.ops.fusion`."""

    mode: str = "hca_plus"
    grounding: str = "fused"  # which image(s) drive the mask decoder
    normalise: str = "rms"  # none | rms | l2: tokens before dot products (hca family)
    scale_by_tokens: bool = True  # scores relative to uniform: times N, so that their mean is 1
    raw_lambda: bool = False  # lambda itself instead of sigmoid(rho)
    temperature_init: float = 1.0
    map_rank: int = 0  # hca_plus sensor maps: 0 = full matrix, r = identity + rank r
    quality_hidden: int = 64  # hidden units of the quality head (hca_gated)
    block: int = 1024  # tokens per block of the exact blockwise scores
    across_tiles: bool = False  # scores over all tiles of a sample instead of within a tile

    def __post_init__(self) -> None:
        one_of("fusion mode", self.mode, FUSION_MODES)
        one_of("grounding source", self.grounding, GROUNDING_SOURCES)
        one_of("fusion.normalise", self.normalise, ("none", "rms", "l2"))

    @property
    def sensors_out(self) -> int:
        """Visual tokens that leave fusion, per place: 1 (N a tile) or 2 (2N: SAR's N, then optical's N)."""
        return 2 if self.mode in ("concat", "release_2025_06") else 1


@dataclass(frozen=True, kw_only=True)
class SensorConfig:
    """How rasters become the three-channel frames that the encoders see."""

    optical_bands: tuple[str, ...] = ("B04", "B03", "B02")  # consecutive triplets, each one frame
    optical_range: tuple[float, float] = (0.0, 0.3)  # reflectance mapped to 0..1
    sar_channels: str = "zero_pad"  # (VV, VH, 0); or replicate
    sar_bands: tuple[str, ...] = ("VV", "VH")
    sar_ranges: tuple[tuple[float, float], ...] = ((-25.0, 0.0), (-32.5, 0.0))  # dB mapped to 0..1, one per band
    max_tiles: int = 12
    thumbnail: bool = True
    window: int = 0  # side in pixels of the windows used on larger scenes; 0 = the whole scene at once

    def __post_init__(self) -> None:
        one_of("sensors.sar_channels", self.sar_channels, ("zero_pad", "replicate"))
        require(len(self.optical_bands) % 3 == 0, "sensors.optical_bands must come in triplets.")
        require(len(self.sar_ranges) == len(self.sar_bands), "sensors.sar_ranges needs one range for each SAR band.")


@dataclass(frozen=True, kw_only=True)
class VisualPromptConfig:
    """The learned encoder of marked regions (:mod:`earthmind_jax.models.visual_prompt`)."""

    width: int = 256
    heads: int = 8
    mlp: int = 1024
    tokens: int = 512  # of all regions of a conversation that are encoded; those beyond stay as they are
    regions: int = 64  # that are told apart

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, f"prompts.width {self.width} must be a multiple of heads {self.heads}.")
        require(self.tokens > 0 and self.regions > 0, "prompts.tokens and prompts.regions must be positive.")


@dataclass(frozen=True, kw_only=True)
class EarthMindConfig:
    """The whole model. ``grounding=None`` builds one that answers in text only."""

    vision: VisionConfig = VisionConfig()
    lm: LmConfig = LmConfig()
    grounding: GroundingConfig | None = GroundingConfig()
    fusion: FusionConfig = FusionConfig()
    prompts: VisualPromptConfig | None = None  # None: region tokens are plain copies, as published
    sensors: SensorConfig = SensorConfig()
    tokens: SpecialTokens = SpecialTokens()
    precision: Precision = Precision()
    template: str = "phi3_chat"
    max_length: int = 8192  # longest prompt plus answer, tokens
