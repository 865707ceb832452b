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
            embed_init=0.5, remat="none",
        ),
        grounding=GroundingConfig(
            image_size=128, embed_dim=16, heads=1, stages=(1, 2, 2, 1), global_blocks=(4,), windows=(8, 4, 8, 4),
            pos_grid=(4, 4), width=64, decoder_heads=4, decoder_mlp=128, iou_hidden=64,
        ),
        fusion=FusionConfig(mode=mode, grounding=grounding),
        # Short-wave infrared, near infrared, red: the composite that separates water, soil and vegetation best.
        sensors=SensorConfig(optical_bands=("B11", "B08", "B04"), optical_range=(0.0, 0.45), max_tiles=1, window=64),
        template="qwen_chat",
        max_length=1024,
    )  # fmt: skip


def get_config(mode: str = "hca_plus", steps: int = 500, seed: int = 0) -> RunConfig:
    return RunConfig(
        name="demo",
        model=model(mode),
        data=DataConfig(batch_size=16, text_length=192, masks_per_sample=3, turns=6),
        optim=OptimConfig(
            learning_rate=2e-3,
            warmup=0.06,
            final=0.02,
            betas=(0.9, 0.98),
            groups=(Group(pattern="grounding/prompt/"), Group(pattern=".*", learning_rate=1.0, weight_decay=0.01)),
        ),
        loss=LossConfig(points=0),
        steps=steps,
        checkpoint_every=steps,
        keep=1,
        seed=seed,
    )
