"""Points and boxes for the demo's model, which has learnt to draw what words name.

``earthmind train configs/pointing.py --start demo/checkpoint --out demo/pointing``, then ``--checkpoint
demo/pointing/2-objects``. The mask decoder learns alone, so answers stay; masks of phrases beside those of marks keep
what it draws for words. First a mark means its own shape, until the decoder knows where in the image a mark is, then
what lies there.

What it takes, as mean IoU of unseen clicks and boxes after 1250 steps of eight images and 48 marks on features that
stay: Muon (0.43, 0.60; AdamW 0.36, 0.51), and a smoother code of places (0.43, 0.61; as it is 0.41, 0.57).
The demo's frequencies are as SAM2 draws them: places are alike over 0.08 of the image's side (the deviation of the
kernel), less than one of its 8 x 8 cells, and each pair of cells would have to be learnt by itself.
"""

from __future__ import annotations

from configs.demo import SEGMENTATION, VIEWS
from earthmind_jax.config import DataConfig, EarthMindConfig, Group, LmConfig, LossConfig, OptimConfig, RunConfig

SMOOTHER = 0.3


def get_config() -> tuple[RunConfig, ...]:
    """Places, then objects."""
    return _stage("places", 300, scenes=4, marks=12, shapes=1.0), _stage("objects", 1600, scenes=8, marks=8)


def _stage(name: str, steps: int, scenes: int, marks: int, shapes: float = 0.0) -> RunConfig:
    first = shapes > 0
    groups = (
        Group(pattern="grounding/prompt/gaussian", learning_rate=0.0, scale=SMOOTHER if first else 1.0),
        Group(pattern="grounding/(decoder/|prompt/points)", learning_rate=1.0, weight_decay=0.01),
        Group(pattern=".*"),
    )
    return RunConfig(
        name=name,
        from_start=True,
        model=EarthMindConfig(lm=LmConfig(remat="none"), max_length=1024),
        data=DataConfig(
            batch_size=scenes, text_length=256, masks_per_sample=4, turns=6, tasks=(SEGMENTATION,) * 6, views=VIEWS,
            drop_optical=0.1, drop_sar=0.1,
        ),
        optim=OptimConfig(
            method="muon", learning_rate=5e-3, warmup=0.1, final=0.5 if first else 0.02, betas=(0.9, 0.98),
            groups=groups,
        ),
        loss=LossConfig(
            points=0, text=0.0, seg=0.0, phrase=1.0, mark=1.0, marks=marks, mark_shapes=shapes, mask_contrast=1.0,
        ),
        steps=steps,
        checkpoint_every=400,
        keep=1,
    )  # fmt: skip
