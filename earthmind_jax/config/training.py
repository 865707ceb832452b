"""A training run: the model and its data, devices, optimiser, losses, and when it saves and stops."""

from __future__ import annotations

from dataclasses import dataclass

from earthmind_jax.config.checks import one_of, require
from earthmind_jax.config.data import DataConfig
from earthmind_jax.config.model import EarthMindConfig


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
    scale: float = 1.0  # what the parameters are multiplied by once, before the first step

    def __post_init__(self) -> None:
        require(
            self.rows == 0 or (self.rows > 0 and self.learning_rate is not None),
            f"optim.groups: '{self.pattern}' has rows={self.rows}, which needs a positive number and a learning rate.",
        )
        require(
            self.scale == 1 or self.learning_rate is not None,
            f"optim.groups: '{self.pattern}' has scale={self.scale:g}, which needs a learning rate (0 lets it stay).",
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
    marks: int = 0  # drawn in each image, more than one of a mask where it has fewer; 0: one of each mask
    mark_parts: bool = True  # a mark means the connected part of its mask; false: all of it
    mark_shapes: float = 0.0  # share of the marks that mean their own shape, to learn places first (train/marks.py)
    align: float = 0.0  # squared distance of the [SEG] prompt from the phrase's prompt, which stays put (ours)
    region_word: float = 0.0  # visual tokens recognise the phrases of the masks they lie in (ours, as above)
    vocab_chunk: int = 1024  # tokens per chunk of the cross-entropy, on each shard of the batch

    def __post_init__(self) -> None:
        require(self.marks >= 0, f"loss.marks must not be negative, as {self.marks} is.")
        require(0 <= self.mark_shapes <= 1, f"loss.mark_shapes must be a share from 0 to 1, not {self.mark_shapes}.")


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
