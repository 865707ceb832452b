"""The model of ``earthmind demo``: small enough to train from scratch in minutes on two CPU cores."""

from __future__ import annotations

from earthmind_jax.config import (
    DataConfig,
    EarthMindConfig,
    FusionConfig,
    GroundingConfig,
    Group,
    LmConfig,
    LossConfig,
    OptimConfig,
    RopeConfig,
    RunConfig,
    SensorConfig,
    VisionConfig,
)


def model(mode: str = "hca_plus", grounding: str = "fused") -> EarthMindConfig:
    """Scenes of 64 x 64 pixels as one tile of 64 visual tokens; masks at half the pixel resolution."""
    return EarthMindConfig(
        vision=VisionConfig(
            image_size=64, patch_size=8, width=96, depth=3, heads=3, mlp=288, downsample=1, layer_scale_init=1.0
        ),
        lm=LmConfig(
            vocab=512, width=96, depth=3, heads=3, kv_heads=3, head_dim=32, mlp=256, rope=RopeConfig(max_position=1024),
            embed_init=0.15, remat="none",
        ),
        grounding=GroundingConfig(
            image_size=128, embed_dim=16, heads=1, stages=(1, 2, 2, 1), global_blocks=(4,), windows=(8, 4, 8, 4),
            pos_grid=(4, 4), width=128, decoder_heads=4, decoder_mlp=256, iou_hidden=64, multimask_outputs=1,
        ),
        fusion=FusionConfig(mode=mode, grounding=grounding),
        # Short-wave infrared, near infrared, red: the composite that separates water, soil and vegetation best.
        sensors=SensorConfig(optical_bands=("B11", "B08", "B04"), optical_range=(0.0, 0.45), max_tiles=1, window=64),
        template="qwen_chat",
        max_length=1024,
    )  # fmt: skip


SEGMENTATION = "referring_segmentation"
QUESTIONS = (
    *[SEGMENTATION] * 4, *["absent_segmentation"] * 2, "object_segmentation", *["object_existence"] * 3,
    *["hallucination_detection"] * 2, "scene_classification", "object_counting", *["spatial_relationship"] * 2,
    "caption", "region_description",
)  # fmt: skip
# (side of a scene, side of the part that is shown), pixels. Half of them are scenes of the model's own size, which is
# what the evaluation shows; the others are windows of a larger image, where one thing may fill all of the window and
# the others are absent, and windows of twice the model's size, seen at half the detail.
VIEWS = ((64, 64),) * 4 + ((128, 64), (256, 64), (128, 128), (192, 128))


def stages(mode: str = "hca_plus", steps: tuple[int, int] = (350, 500), seed: int = 0) -> tuple[RunConfig, ...]:
    """The curriculum: first masks from words (the phrase's own embeddings), then questions, answers and masks.

    The first leaves the language model out; it stands for the pretraining that the published model's parts bring along.
    """
    whole = model(mode)
    groups = (
        Group(pattern="grounding/prompt/"),
        Group(pattern="lm/(embed|head)/", learning_rate=4.0),
        Group(pattern=".*", learning_rate=1.0, weight_decay=0.01),
    )

    def optim(rate: float, warmup: float, final: float) -> OptimConfig:
        return OptimConfig(
            method="muon", learning_rate=rate, warmup=warmup, final=final, betas=(0.9, 0.98), groups=groups
        )

    return (
        RunConfig(
            name="masks from words",
            model=whole,
            data=DataConfig(
                batch_size=8,
                text_length=256,
                masks_per_sample=6,
                turns=6,
                tasks=(SEGMENTATION,) * 8,
                views=VIEWS,
                drop_optical=0.2,
                drop_sar=0.2,
            ),
            optim=optim(2e-3, 0.1, 0.3),
            loss=LossConfig(points=0, text=0.0, seg=0.0, phrase=1.0, mask_contrast=1.0, region_word=1.0),
            steps=steps[0],
            checkpoint_every=steps[0],
            keep=1,
            seed=seed,
        ),
        RunConfig(
            name="questions, answers and masks",
            model=whole,
            data=DataConfig(
                batch_size=8,
                text_length=256,
                masks_per_sample=4,
                turns=8,
                tasks=QUESTIONS,
                views=VIEWS,
                drop_optical=0.1,
                drop_sar=0.1,
            ),
            optim=optim(2e-3, 0.05, 0.02),
            loss=LossConfig(points=0, phrase=1.0, align=2.0, mask_contrast=1.0, region_word=1.0, answer_power=0.5),
            steps=steps[1],
            checkpoint_every=steps[1],
            keep=1,
            seed=seed + 200,
        ),
    )  # fmt: skip


def get_config() -> RunConfig:
    """The last stage alone, for ``earthmind train``."""
    return stages()[-1]
