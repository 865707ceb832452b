"""The two image encoders: InternViT, whose tokens the language model reads, and SAM2, which draws masks."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config.checks import one_of, require


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """InternViT (published names in brackets): patch encoder with class token, layer scale and pre-norm blocks."""

    image_size: int = 448  # square tile side, pixels
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    norm: str = "layer_norm"  # or rms_norm (6B)
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    qk_norm: bool = False  # RMS over the full width, before the split into heads (6B)
    layer_scale_init: float = 0.1  # ls1 / ls2
    select_layer: int = -1  # which hidden state feeds the projector
    downsample: int = 2  # pixel shuffle factor (downsample_ratio 0.5)
    pixel_shuffle_version: str = "v2"
    scan: bool = True
    remat: str = "none"  # none | full | dots

    def __post_init__(self) -> None:
        one_of("vision.norm", self.norm, ("layer_norm", "rms_norm"))
        one_of("vision.pixel_shuffle_version", self.pixel_shuffle_version, ("v1", "v2"))
        one_of("vision.remat", self.remat, ("none", "full", "dots"))
        require(self.width % self.heads == 0, f"vision.width {self.width} must be a multiple of heads {self.heads}.")
        require(
            self.image_size % (self.patch_size * self.downsample) == 0,
            f"vision.image_size {self.image_size} must be a multiple of patch_size x downsample "
            f"= {self.patch_size * self.downsample}.",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patches(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def grid(self) -> int:
        """Visual tokens along one side of a tile, after pixel shuffle."""
        return self.patches // self.downsample

    @property
    def tokens(self) -> int:
        """Visual tokens of one tile (N)."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """SAM2 / SAM2.1: Hiera trunk, FPN neck, prompt encoder, mask decoder and, for frames that follow, the memory."""

    image_size: int = 1024
    embed_dim: int = 144
    heads: int = 2
    stages: tuple[int, ...] = (2, 6, 36, 4)
    global_blocks: tuple[int, ...] = (23, 33, 43)
    windows: tuple[int, ...] = (8, 4, 16, 8)
    pos_grid: tuple[int, int] = (7, 7)  # window_pos_embed_bkg_spatial_size
    q_pool_stages: int = 3  # stages after the first that start with 2x2 query pooling
    mlp_ratio: float = 4.0
    width: int = 256  # d_model of neck, prompt encoder and decoder
    top_down_levels: tuple[int, ...] = (2, 3)
    decoder_heads: int = 8
    decoder_depth: int = 2
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    iou_sigmoid: bool = True
    multimask_outputs: int = 3
    stability: bool = False  # dynamic_multimask_via_stability
    stability_delta: float = 0.05
    stability_threshold: float = 0.98
    memory: bool = False  # hold the memory that follows objects through frames
    memory_dim: int = 64
    memory_frames: int = 7  # num_maskmem: the prompted frames' slot and those of the frames before this one
    memory_layers: int = 4
    memory_mlp: int = 2048
    memory_pointers: int = 16  # max_obj_ptrs_in_encoder
    memory_binarize: bool = False  # binarize_mask_from_pts_for_mem_enc: prompted masks are remembered as 0 and 1
    memory_dtype: str = "bfloat16"  # in which memories wait for later frames; the published code rounds them to it
    version: str = "2.0"  # 2.1 adds object-pointer time codes and the occlusion embedding

    def __post_init__(self) -> None:
        require(len(self.stages) == len(self.windows) == 4, "grounding.stages and grounding.windows need four entries.")
        require(self.image_size % 32 == 0, f"grounding.image_size {self.image_size} must be a multiple of 32.")
        require(self.embed_dim % self.heads == 0, "grounding.embed_dim must be a multiple of heads.")
        require(
            self.width % 8 == 0 and self.width % (2 * self.decoder_heads) == 0,
            "grounding.width must be a multiple of 8 and of twice decoder_heads.",
        )
        require(self.q_pool_stages == 3, "grounding.q_pool_stages must be 3: the decoder needs strides 4, 8, 16.")
        require(all(w % 2 == 0 for w in self.windows[:3]), "grounding.windows must be even before the last stage.")
        one_of("grounding.memory_dtype", self.memory_dtype, ("float32", "bfloat16", "float16"))
        require(self.memory_frames > 1, f"grounding.memory_frames must be at least 2, not {self.memory_frames}.")
        require(self.memory_pointers > 1, f"grounding.memory_pointers must be at least 2, not {self.memory_pointers}.")
        require(
            not self.memory or (self.memory_dim % 4 == 0 and self.width % self.memory_dim == 0),
            f"grounding.memory_dim {self.memory_dim} must be a multiple of four and divide the width {self.width}.",
        )
        one_of("grounding.version", self.version, ("2.0", "2.1"))

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits, pixels."""
        return self.image_size // 4

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of the four trunk stages, high to low resolution."""
        return tuple(self.embed_dim * 2**stage for stage in range(4))
