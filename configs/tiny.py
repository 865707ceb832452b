"""Every subsystem at toy size, for tests and documentation: compiles and steps in seconds on a CPU."""

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
    """A whole EarthMind of about 200 thousand parameters."""
    return EarthMindConfig(
        vision=VisionConfig(image_size=32, patch_size=4, width=32, depth=2, heads=2, mlp=64),
        lm=LmConfig(
            vocab=320, width=48, depth=2, heads=4, kv_heads=2, head_dim=16, mlp=96, rope=RopeConfig(max_position=512),
            remat="none",
        ),
        grounding=GroundingConfig(
            image_size=64, embed_dim=8, heads=1, stages=(1, 1, 2, 1), global_blocks=(3,), windows=(8, 4, 4, 2),
            pos_grid=(4, 4), width=32, decoder_heads=4, decoder_mlp=64, iou_hidden=32,
        ),
        fusion=FusionConfig(mode=mode, grounding=grounding),
        sensors=SensorConfig(max_tiles=1, window=32),
        template="qwen_chat",
        max_length=512,
    )  # fmt: skip


def get_config() -> RunConfig:
    return RunConfig(
        name="tiny",
        model=model(),
        data=DataConfig(batch_size=8, text_length=192, masks_per_sample=2, turns=3),
        optim=OptimConfig(
            learning_rate=1e-3,
            groups=(Group(pattern="grounding/prompt/"), Group(pattern=".*", learning_rate=1.0)),
        ),
        loss=LossConfig(points=128),
        steps=20,
        checkpoint_every=10,
    )
