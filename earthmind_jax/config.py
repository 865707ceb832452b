"""Every variant of the model and of a run, as frozen dataclasses.

No arrays and no Flax here: a config is hashable (so it can be a static argument of ``jax.jit``), survives a JSON
round trip (``to_json`` / ``from_json``) and is saved inside every checkpoint. A field that does not exist is an error
that names the nearest field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from earthmind_jax.errors import UserError

Config = TypeVar("Config")

FUSION_MODES = (
    "hca", "hca_plus", "hca_gated", "hca_printed", "release_2025_06", "release_2025_10", "concat", "average", "cosine",
)  # fmt: skip
GROUNDING_SOURCES = ("optical", "sar", "fused")


def nearest(name: str, choices: typing.Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the choice closest to ``name``, or an empty string when none is close."""
    match = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.4)
    return f" Did you mean '{match[0]}'?" if match else ""


def one_of(what: str, value: str, choices: typing.Sequence[str]) -> None:
    """Raise a :class:`UserError` naming the nearest choice unless ``value`` is among ``choices``."""
    if value not in choices:
        raise UserError(f"Unknown {what} '{value}'.{nearest(value, choices)} Choices: {', '.join(choices)}.")


def require(condition: bool, message: str) -> None:
    """Raise a :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


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


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    surplus: float = 0.03  # of its part of the weights that a device may hold on top, where they do not divide


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters whose path matches ``pattern``; first match wins. ``learning_rate=None`` freezes them."""

    pattern: str
    learning_rate: float | None = None  # multiplies optim.learning_rate
    weight_decay: float = 0.0
    rows: int = 0  # of the vocabulary only this many last rows learn (those of new tokens); 0: all

    def __post_init__(self) -> None:
        require(
            self.rows == 0 or (self.rows > 0 and self.learning_rate is not None),
            f"optim.groups: '{self.pattern}' has rows={self.rows}, which needs a positive number and a learning rate.",
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    method: str = "adamw"  # adam: without weight decay; muon: matrices by orthogonalised momentum, the rest by AdamW
    learning_rate: float = 4e-5
    warmup: float = 0.05  # share of the steps
    final: float = 0.0  # learning rate at the end, relative to the peak
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0
    accumulate: int = 1  # parts of a batch that go through one after the other; their gradients are averaged
    groups: tuple[Group, ...] = (Group(pattern=".*", learning_rate=1.0),)

    def __post_init__(self) -> None:
        one_of("optim.method", self.method, ("adamw", "adam", "muon"))
        require(self.accumulate > 0, f"optim.accumulate must be positive, not {self.accumulate}.")
        decayed = [group.pattern for group in self.groups if group.weight_decay]
        require(
            self.method != "adam" or not decayed,
            f"optim.method 'adam' has no weight decay, which groups {decayed} ask for; use 'adamw'.",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the published losses (EarthMind configs/earthmind_4b_sft.py)."""

    mask_bce: float = 2.0
    mask_dice: float = 0.5
    mask_contrast: float = 0.0  # pixels choose among the masks of their image (ours, for training from scratch)
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    sensor_mse: float = 0.0  # "cos_loss" of the June 2025 release, on pairs
    attention: float = 0.0  # "loss_attn" of the release, on samples of one sensor: [SEG] looks where its mask is
    text: float = 1.0  # next-token cross-entropy; 0 leaves the language model out of the step altogether
    answer_power: float = 0.0  # tokens weigh length ** -power of their answer (ops.losses.answer_weights)
    seg: float = 1.0  # multiplies the mask losses of [SEG]
    phrase: float = 0.0  # the same for masks drawn from the phrase's own embeddings (ours, for training from scratch)
    mark: float = 0.0  # the same for masks drawn from a click in the target, or its box, alone (as SAM2 learns)
    mark_parts: bool = True  # a mark means the connected part of its mask; false: all of it
    mark_shapes: float = 0.0  # share of the marks that mean their own shape, to learn places first (train/marks.py)
    align: float = 0.0  # squared distance of the [SEG] prompt from the phrase's prompt, which stays put (ours)
    region_word: float = 0.0  # visual tokens recognise the phrases of the masks they lie in (ours, as above)
    vocab_chunk: int = 1024  # tokens per chunk of the cross-entropy, on each shard of the batch

    def __post_init__(self) -> None:
        require(0 <= self.mark_shapes <= 1, f"loss.mark_shapes must be a share from 0 to 1, not {self.mark_shapes}.")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One part of a training mixture: a record file, a published data set or simulated scenes. Shares follow the
    weights, or where no source has one, the numbers of samples times ``repeat``."""

    path: str = ""  # record file, or directory of a data set, from that of the configuration file (or --data-root)
    dataset: str = ""  # name of the data set (earthmind data list); recognised where empty
    split: str = ""  # of the data set; its first where empty
    simulated: int = 0  # number of scenes
    weight: float | None = None
    repeat: int = 1  # counts as so many copies
    name: str = ""  # file name without its ending where empty

    def __post_init__(self) -> None:
        require(
            bool(self.path) != (self.simulated > 0),
            f"A source needs a path or a number of simulated scenes, and not both: path '{self.path}', "
            f"simulated {self.simulated}.",
        )
        require(bool(self.path) or not (self.dataset or self.split), "A source with a dataset or split needs its path.")
        require(self.weight is None or self.weight > 0, f"The weight of a source must be positive, not {self.weight}.")
        require(self.repeat > 0, f"repeat of a source must be positive, not {self.repeat}.")
        require(self.weight is None or self.repeat == 1, "A source has a weight or is repeated, not both.")

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or self.path.replace("\\", "/").rstrip("/").rpartition("/")[2].partition(".")[0] or "simulated"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    batch_size: int = 32
    text_length: int = 512  # longest prompt plus answer, tokens
    text_buckets: tuple[int, ...] = ()  # lengths that batches are padded to, the last text_length; empty: that alone
    tile_buckets: tuple[int, ...] = ()  # tiles that batches are padded to; empty: data.buckets.Buckets.tiles
    window: int = 1  # batches whose samples are sorted by size before they are dealt out; 1: as they come
    masks_per_sample: int = 5
    prompt_points: int = 8  # of the marks that steer one mask (records' "steer"), box corners included
    turns: int = 6  # questions packed into one conversation
    drop_optical: float = 0.15  # share of samples that show SAR alone
    drop_sar: float = 0.15
    workers: int = 0  # processes that prepare batches; 0: threads
    threads: int = 2
    sources: tuple[SourceConfig, ...] = ()  # empty: --data, or simulated scenes
    tasks: tuple[str, ...] = ()  # of simulated scenes; empty = all
    sky: str | None = None  # of simulated scenes: clear, partly, cloudy; None = mixed

    def __post_init__(self) -> None:
        for name in ("text_buckets", "tile_buckets"):
            sizes = getattr(self, name)
            increasing = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            require(increasing, f"data.{name} must be increasing positive numbers, not {list(sizes)}.")
        require(self.workers >= 0, f"data.workers must not be negative, as {self.workers} is.")
        require(self.threads > 0, f"data.threads must be at least 1, not {self.threads}.")
        require(self.prompt_points > 1, f"data.prompt_points must be at least 2, not {self.prompt_points}.")
        require(self.window > 0, f"data.window must be at least 1, not {self.window}.")
        titles = [source.title for source in self.sources]
        require(
            len(set(titles)) == len(titles), f"data.sources need names of their own, not {', '.join(titles)}: set name."
        )
        weighed = sum(source.weight is not None for source in self.sources)
        require(
            weighed in (0, len(self.sources)),
            "Either every source of data.sources has a weight or none; give the others one.",
        )


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run stops of itself; a loss or gradient that is not finite always stops it."""

    divergence: float = 10.0  # times the running median of the reported losses; 0 = never
    reports: int = 5  # in a row that the loss must be above it
    window: int = 100  # reports that the median is of

    def __post_init__(self) -> None:
        require(self.divergence == 0 or self.divergence > 1, "guard.divergence must be above 1, or 0 for never.")
        require(self.reports > 0 and self.window > 0, "guard.reports and guard.window must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: everything that ``earthmind train`` needs."""

    name: str = "run"
    model: EarthMindConfig = EarthMindConfig()
    from_start: bool = False  # train the model of --start; of this one lm.lora, remat, precision and max_length count
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    mesh: MeshConfig = MeshConfig()
    guard: GuardConfig = GuardConfig()
    steps: int = 1000
    checkpoint_every: int = 200
    keep: int = 2  # newest saved steps
    keep_period: int = 0  # and those at multiples of this; 0 = none
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.checkpoint_every > 0, f"checkpoint_every must be at least 1, not {self.checkpoint_every}.")
        require(self.keep > 0, f"keep must be at least 1, not {self.keep}.")
        require(self.keep_period >= 0, f"keep_period must be 0 or more, not {self.keep_period}.")


def to_dict(config: Any) -> Any:
    """A config as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: Any) -> str:
    """A config as indented JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_dict(cls: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """Build ``cls`` from plain values; an unknown key is a :class:`UserError` naming the nearest key."""
    require(isinstance(values, dict), f"Configuration '{where.rstrip('.') or cls.__name__}' must be an object.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    kwargs = {}
    for key, value in values.items():
        if key not in names:
            raise UserError(f"Unknown configuration key '{where}{key}'.{nearest(key, names)}")
        kwargs[key] = _convert(hints[key], value, f"{where}{key}")
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise UserError(f"Configuration '{where.rstrip('.') or cls.__name__}' is incomplete: {error}.") from error


def from_json(cls: type[Config], text: str) -> Config:
    """Inverse of :func:`to_json`."""
    return from_dict(cls, json.loads(text))


def replace_path(config: Config, path: str, value: Any) -> Config:
    """``config`` with the field at dotted ``path`` set, e.g. ``("model.lm.depth", 2)``; strings may be JSON."""
    head, _, rest = path.partition(".")
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if head not in names:
        raise UserError(f"Unknown configuration key '{head}' in '{path}'.{nearest(head, names)}")
    if rest:
        return dataclasses.replace(config, **{head: replace_path(getattr(config, head), rest, value)})  # type: ignore[type-var]
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    hint = typing.get_type_hints(type(config))[head]
    return dataclasses.replace(config, **{head: _convert(hint, value, path)})  # type: ignore[type-var]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if dataclasses.is_dataclass(hint):
        require(isinstance(value, dict), f"Configuration key '{where}' must be an object, not {value!r}.")
        return from_dict(hint, value, f"{where}.")  # type: ignore[arg-type]
    if origin is tuple:
        require(isinstance(value, list | tuple), f"Configuration key '{where}' must be a list, not {value!r}.")
        args = typing.get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        require(len(kinds) == len(value), f"Configuration key '{where}' needs {len(kinds)} values, not {len(value)}.")
        return tuple(_convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f"Configuration key '{where}' must be {hint.__name__}, not {value!r}.")
    return value
