"""What is published about training EarthMind, as configurations: the paper's (arXiv 2506.01667, section 3.3, appendix F
and G, table B) and the released code's (projects/llava_sam2/configs/earthmind_4b_sft.py), which differ.

``python -m configs.published`` prints the differences. Where the paper is silent, the released code's choice stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from earthmind_jax.config import (
    DataConfig,
    EarthMindConfig,
    FusionConfig,
    Group,
    LmConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    OptimConfig,
    Precision,
    RunConfig,
    SensorConfig,
    SourceConfig,
    VisionConfig,
    to_dict,
)
from earthmind_jax.data.buckets import bucketed
from earthmind_jax.models.families import FAMILIES
from earthmind_jax.models.sam2_presets import sam2_preset

LORA = LoraConfig(rank=128, alpha=256.0, dropout=0.05)
NEW_TOKENS = 5  # [SEG] <p> </p> <vp> </vp>, the last rows of the vocabulary

# Thousands of samples, appendix G.
GENERAL = {"llava": 665, "refcoco": 56, "gcg": 214, "osprey": 724}
EARTH = {"earthgpt_vqa": 1000, "vrsbench": 142, "dior_rsvg": 31, "rrsisd_refsegrs": 21, "multispectral": 500}
PAIRS = {"fusioneo": 20}
REPLAY = 1.0  # samples of earlier stages for each pair; the paper "selectively retains examples" and gives no number


def model(lm: LmConfig, *, fusion: FusionConfig, sensors: SensorConfig, sam2: str, template: str) -> EarthMindConfig:
    """InternViT-300M, a language model with adapters, SAM2; bfloat16 with float32 masters."""
    return EarthMindConfig(
        vision=VisionConfig(remat="full"),
        lm=dataclasses.replace(lm, lora=LORA, remat="full"),
        grounding=dataclasses.replace(sam2_preset(sam2), memory=False),
        fusion=fusion,
        sensors=sensors,
        precision=Precision(compute="bfloat16"),
        template=template,
    )


def paper_groups() -> tuple[Group, ...]:
    """Projector, adapters, mask decoder; and what did not exist before: fusion, ``text_hidden_fcs``, new tokens."""
    return (
        Group(pattern="(projector|lora|grounding/decoder|fusion|text_hidden_fcs)/", learning_rate=1.0),
        Group(pattern="lm/(embed|head)/", learning_rate=1.0, rows=NEW_TOKENS),
        Group(pattern=".*"),
    )


def released_groups() -> tuple[Group, ...]:
    """Also the whole token table and vocabulary head; weight decay on everything that learns."""
    learns = "(projector|lora|grounding/decoder|fusion|text_hidden_fcs|lm/embed|lm/head)/"
    return (Group(pattern=learns, learning_rate=1.0, weight_decay=0.05), Group(pattern=".*"))


PAPER = OptimConfig(method="adam", learning_rate=4e-5, warmup=0.3, clip=1.0, groups=paper_groups())
"""Table B. The warm-up of 0.3 may be a misprint of 0.03; it is what is printed. Clipping: released code."""

RELEASED = OptimConfig(
    method="adamw", learning_rate=4e-5, warmup=0.05, clip=1.0, accumulate=4, groups=released_groups()
)
"""earthmind_4b_sft.py; its learning rate moves with every part of a batch, ours with every update."""


def mixture(samples: Mapping[str, float]) -> tuple[SourceConfig, ...]:
    """Record files ``NAME.jsonl`` in proportion to their numbers of samples."""
    return tuple(SourceConfig(path=f"{name}.jsonl", weight=float(count)) for name, count in samples.items())


def stage(
    name: str, base: EarthMindConfig, samples: Mapping[str, float], *, batch: int, optim: OptimConfig, loss: LossConfig
) -> RunConfig:
    """One epoch over ``samples`` (thousands)."""
    data = DataConfig(
        batch_size=batch,
        text_length=base.max_length,
        sources=mixture(samples),
        drop_optical=0.0,
        drop_sar=0.0,
        workers=4,
    )
    return RunConfig(
        name=name,
        model=base,
        data=bucketed(data),
        optim=optim,
        loss=loss,
        mesh=MeshConfig(data=1, fsdp=-1),
        steps=round(1000 * sum(samples.values()) / batch),
        checkpoint_every=500,
    )


def replayed(new: Mapping[str, float], *earlier: Mapping[str, float]) -> dict[str, float]:
    """``new`` and :data:`REPLAY` times as many samples of all earlier stages, in their own proportion."""
    old = {name: count for stage in earlier for name, count in stage.items()}
    share = REPLAY * sum(new.values()) / sum(old.values())
    return {**new, **{name: round(share * count, 3) for name, count in old.items()}}


def curriculum(base: EarthMindConfig, optim: OptimConfig = PAPER, batch: int = 64) -> tuple[RunConfig, ...]:
    """The paper's three stages: general data, Earth observation, both sensors with replay."""
    loss = LossConfig()
    return (
        stage("general", base, GENERAL, batch=batch, optim=optim, loss=loss),
        stage("earth", base, EARTH, batch=batch, optim=optim, loss=loss),
        stage("pairs", base, replayed(PAIRS, GENERAL, EARTH), batch=batch, optim=optim, loss=loss),
    )


def earthmind_4b() -> EarthMindConfig:
    """As the paper describes it, with this project's default fusion."""
    return model(
        FAMILIES["qwen2"].presets["earthmind_4b"],
        fusion=FusionConfig(),
        sensors=SensorConfig(),
        sam2="sam2_hiera_large",
        template="phi3_chat",
    )


def released_4b() -> RunConfig:
    """The released fine-tuning: the gate of June 2025, SAR replicated to three channels and alone in the mask decoder,
    the pull between the sensors and the attention loss."""
    base = model(
        FAMILIES["qwen2"].presets["earthmind_4b"],
        fusion=FusionConfig(mode="release_2025_06", grounding="sar"),
        sensors=SensorConfig(sar_channels="replicate"),
        sam2="sam2_hiera_large",
        template="phi3_chat",
    )
    # Each source as often as it is listed there.
    sources = (
        *(SourceConfig(path=f"{name}.jsonl", repeat=3) for name in ("rrsisd", "refsegrs", "risbench")),
        *(
            SourceConfig(path=f"{name}.jsonl")
            for name in ("vrsbench_vqa", "earthgpt_vqa", "geochat_vqa", "multispectral")
        ),
        SourceConfig(path="dior_rsvg.jsonl", repeat=5),
        *(SourceConfig(path=f"{name}.jsonl") for name in ("geochat_region", "vrsbench_res", "pair_res", "pair_vqa")),
    )
    loss = LossConfig(sensor_mse=1.0, attention=0.1)
    run = stage("released", base, {"all": 2019.04}, batch=32, optim=RELEASED, loss=loss)
    return dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources))


def differences(one: object, other: object) -> list[tuple[str, object, object]]:
    """(field, its value in one, in the other) of every leaf in which two configurations differ."""

    def leaves(value: object, path: str = "") -> Iterable[tuple[str, object]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{path}.{key}" if path else key)
        else:
            yield path, value

    left, right = dict(leaves(to_dict(one))), dict(leaves(to_dict(other)))
    keys = [*left, *(key for key in right if key not in left)]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


if __name__ == "__main__":
    for field, paper, released in differences(curriculum(earthmind_4b())[-1], released_4b()):
        print(f"{field}\n    paper     {paper}\n    released  {released}")
