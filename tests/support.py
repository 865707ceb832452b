"""A tiny model, its tokenizer and a few samples, for the tests of whole roads (training, inference, sharding)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs import tiny
from earthmind_jax.cli import main
from earthmind_jax.config import EarthMindConfig, Group, LossConfig, RunConfig
from earthmind_jax.data.collate import Buckets, collate, with_tokens
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.models import earthmind
from earthmind_jax.types import Batch

QUESTIONS = ("Where is the river?", "Is there a lake in the image?", "Show the ships near the harbour, all of them.")
TEXTS = (*QUESTIONS, "It is [SEG].", "Sure, [SEG] and [SEG].", "Yes, there is a lake.", "user assistant")
BOTH = ("optical", "sar")


@functools.cache
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS * 3, 310)


@functools.cache
def model(mode: str = "hca_plus", grounding: str | None = "fused") -> EarthMindConfig:
    """``configs.tiny`` with the ids of :func:`tokenizer`; without a mask decoder where ``grounding`` is None."""
    config = with_tokens(tiny.model(mode, grounding or "fused"), tokenizer())
    return config if grounding else dataclasses.replace(config, grounding=None)


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command ``earthmind``."""
    try:
        main([str(a) for a in arguments])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def refused(capsys: Any, *arguments: object, says: str) -> None:
    """The command line refuses the arguments, in one line with these words."""
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert says.lower() in err.lower(), err


ALL = (Group(pattern=".*", learning_rate=1.0),)


def run_config(config: EarthMindConfig | None = None, groups: Sequence[Group] = ALL, **changes: Any) -> RunConfig:
    """Six steps of ``config`` (default: the tiny model without mask decoder, which compiles soonest)."""
    run = tiny.get_config()
    return dataclasses.replace(
        run,
        model=config or model(grounding=None),
        data=dataclasses.replace(run.data, text_length=96),
        optim=dataclasses.replace(run.optim, groups=tuple(groups)),
        loss=LossConfig(points=64),
        **{"steps": 6, "checkpoint_every": 3, **changes},
    )


@functools.cache
def params(config: EarthMindConfig) -> dict[str, np.ndarray]:
    """Parameters without special values: nothing is zero or the identity. Drawn by numpy, so nothing is compiled."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        name = path.rpartition("/")[2]
        values = rng.standard_normal(shape, np.float32)
        if name == "kernel":
            return values / np.float32(np.sqrt(max(np.prod(shape[:-1]) / (shape[0] if "blocks/" in path else 1), 1)))
        return 1 + 0.1 * values if name == "scale" else 0.1 * values

    return {path: np.asarray(draw(path, x.shape), x.dtype) for path, x in earthmind.shapes(config).items()}


def sample(seed: int, sensors: Sequence[str] = BOTH, *, answer: str | None = "It is [SEG].", size: int = 32) -> Sample:
    """One scene of 8-bit noise with one question, another one for each seed."""
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in BOTH}
    masks = rng.random(((answer or "").count("[SEG]"), size, size)) > 0.5
    turn = Turn(QUESTIONS[seed % len(QUESTIONS)], answer, masks if len(masks) else None)
    return Sample(f"sample-{seed}", (turn,), **{name: images[name] for name in sensors})


def batch(
    samples: Sequence[Sample],
    config: EarthMindConfig | None = None,
    *,
    sensors: Sequence[str] | None = None,
    text: int = 128,
    tiles: int = 1,
    masks: int = 2,
) -> Batch:
    """Samples as one batch of ``text`` tokens and ``tiles`` tiles; ``sensors`` as in ``stack``."""
    config = config or model()
    data = dataclasses.replace(tiny.get_config().data, masks_per_sample=masks)
    return collate(samples, config, data, tokenizer(), Buckets((tiles,), (text,)), sensors=sensors)


class Repeat:
    """A data source that deals out ``batches`` in turn, and whose position is its whole state."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.position = batches, 0

    def __iter__(self) -> Repeat:
        return self

    def __next__(self) -> Batch:
        self.position += 1
        return self.batches[(self.position - 1) % len(self.batches)]

    def get_state(self) -> dict[str, Any]:
        return {"batches": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["batches"]


def scenes(config: EarthMindConfig | None = None, count: int = 8, start: int = 0) -> Batch:
    """A training batch: most samples have both sensors, some one only."""
    kinds = (BOTH, BOTH, ("optical",), BOTH, ("sar",))
    made = [sample(start + i, kinds[i % len(kinds)]) for i in range(count)]
    return batch(made, config or model(grounding=None), sensors=BOTH, text=96)
