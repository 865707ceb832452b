"""Fine-tune a checkpoint on your own records: adapters on the language model, projector, fusion and mask decoder.

``earthmind train configs/finetune.py --start CHECKPOINT --data records.jsonl`` takes the model from the checkpoint.
"""

from __future__ import annotations

from earthmind_jax.config import (
    DataConfig,
    EarthMindConfig,
    Group,
    LmConfig,
    LoraConfig,
    OptimConfig,
    Precision,
    RunConfig,
)
from earthmind_jax.data.buckets import bucketed


def get_config() -> RunConfig:
    learns = "(lora|projector|fusion|text_hidden_fcs|grounding/decoder)/"
    return RunConfig(
        name="fine-tuning",
        from_start=True,
        model=EarthMindConfig(
            lm=LmConfig(lora=LoraConfig(rank=16, alpha=32.0), remat="full"),
            precision=Precision(compute="bfloat16"),
            max_length=4096,
        ),
        data=bucketed(DataConfig(batch_size=8, text_length=4096, drop_optical=0.0, drop_sar=0.0)),
        optim=OptimConfig(learning_rate=1e-4, groups=(Group(pattern=learns, learning_rate=1.0), Group(pattern=".*"))),
        steps=1000,
        checkpoint_every=200,
    )
