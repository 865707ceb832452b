"""Clicks and boxes for a model that has learnt masks from words: ``earthmind train configs/pointing.py --start
demo/checkpoint --out demo/pointing``."""

from __future__ import annotations

from configs.demo import SEGMENTATION, VIEWS
from earthmind_jax.config import DataConfig, EarthMindConfig, Group, LmConfig, LossConfig, OptimConfig, RunConfig


def get_config() -> RunConfig:
    learns = "grounding/(decoder/|prompt/points)"
    return RunConfig(
        name="pointing",
        from_start=True,
        model=EarthMindConfig(lm=LmConfig(remat="none"), max_length=1024),
        data=DataConfig(
            batch_size=8, text_length=256, masks_per_sample=6, turns=6, tasks=(SEGMENTATION,) * 6, views=VIEWS,
            drop_optical=0.1, drop_sar=0.1,
        ),
        optim=OptimConfig(
            method="muon", learning_rate=5e-3, warmup=0.1, final=0.05, betas=(0.9, 0.98),
            groups=(Group(pattern=learns, learning_rate=1.0, weight_decay=0.01), Group(pattern=".*")),
        ),
        loss=LossConfig(
            points=0, text=0.0, seg=0.0, phrase=1.0, mark=1.0, marks=8, mask_contrast=1.0, mark_shapes=0.25,
        ),
        steps=2500,
        checkpoint_every=500,
        keep=1,
    )  # fmt: skip
