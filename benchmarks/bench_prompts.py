"""What 32 prompts on one image cost beside one: from words (``[SEG]``), and from points with the mask decoder alone.

    python benchmarks/bench_prompts.py                         # a model of 448 px tiles with random weights
    python benchmarks/bench_prompts.py --checkpoint demo/checkpoint [--side 256]

Each measurement runs in a process of its own and prints one JSON line: the median time of a request with everything
compiled, the peak memory of the process, and what one prompt costs of the same kind; the last line has the ratios.
With random weights every answer is made to say ``[SEG]`` first and then one word, so that all do the same work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (1, 32)
ROUNDS = 3
WORDS = (
    "water", "forest", "cropland", "grassland", "built-up land", "bare soil", "river", "lake", "road", "bridge",
    "airport", "harbour", "ship", "vehicle", "storage tank", "stadium", "roundabout", "solar panels", "quarry", "beach",
    "wetland", "orchard", "greenhouse", "railway", "parking lot", "dam", "island", "reef", "snow", "glacier", "cloud",
    "burnt area",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint directory instead of random weights")
    parser.add_argument("--side", type=int, help="of the image in pixels, above the model's own drawn in windows")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "SENSORS", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, sensors, count = options.one
        print(json.dumps(measure(options.checkpoint, options.side, kind, tuple(sensors.split("+")), int(count))))
        return
    ratios = {}
    for kind in ("words", "points"):
        for sensors in ("optical", "optical+sar"):
            found = [_run(options, kind, sensors, count) for count in COUNTS]
            ratios[f"{kind}, {sensors}"] = round(found[1]["seconds"] / found[0]["seconds"], 2)
    print(json.dumps({"32 prompts / 1 prompt": ratios}))


def _run(options: argparse.Namespace, kind: str, sensors: str, count: int) -> dict[str, Any]:
    named = {"--checkpoint": options.checkpoint, "--side": options.side}
    given = [word for name, value in named.items() if value is not None for word in (name, str(value))]
    command = [sys.executable, __file__, *given, "--one", kind, sensors, str(count)]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    print(line, flush=True)
    return json.loads(line)


def measure(
    checkpoint: Path | None, side: int | None, kind: str, sensors: tuple[str, ...], count: int
) -> dict[str, Any]:
    """Seconds of one request of ``count`` prompts, and GiB of the process at most."""
    from earthmind_jax.geo.prompts import Prompt

    model = _random() if checkpoint is None else _loaded(checkpoint)
    side = side or model.config.vision.image_size
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (side, side, 3), np.uint8) for name in sensors}
    if kind == "words":
        request = lambda: model.segment(list(WORDS[:count]), **images, max_new=16)  # noqa: E731
    else:
        marks = [Prompt.point(*rng.uniform(1, side - 1, 2)) for _ in range(count)]
        request = lambda: model.segment(**images, marks=marks)  # noqa: E731
    request()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        answer = request()
        times.append(time.perf_counter() - start)
    assert len(answer.masks) == count
    return {
        "prompts": count, "from": kind, "sensors": "+".join(sensors), "seconds": round(statistics.median(times), 4),
        "GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }  # fmt: skip


def _loaded(checkpoint: Path) -> Any:
    from earthmind_jax.infer.predictor import EarthMind

    return EarthMind.load(checkpoint)


def _random() -> Any:
    """Tiles of 448 px (an InternViT of the published width, four blocks deep), grounding images of 512 px (the trunk of
    SAM2 tiny) and a small language model."""
    import functools

    import jax

    from configs import tiny
    from earthmind_jax.config import EarthMindConfig, GroundingConfig, LmConfig, RopeConfig, VisionConfig
    from earthmind_jax.data.collate import with_tokens
    from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
    from earthmind_jax.data.tokenizer import train_bpe
    from earthmind_jax.infer.predictor import EarthMind
    from earthmind_jax.models import api

    tokenizer = train_bpe([*WORDS, *SEGMENTATION_QUESTIONS, "user assistant"] * 3, 400)
    config = EarthMindConfig(
        vision=VisionConfig(depth=4),
        lm=LmConfig(
            vocab=512, width=128, depth=2, heads=4, kv_heads=2, head_dim=32, mlp=256,
            rope=RopeConfig(max_position=1024), remat="none",
        ),
        grounding=GroundingConfig(
            image_size=512, embed_dim=96, heads=1, stages=(1, 2, 7, 2), global_blocks=(5, 7, 9),
        ),
        sensors=dataclasses.replace(tiny.model().sensors, window=0),
        template="qwen_chat",
        max_length=1024,
    )  # fmt: skip
    config = with_tokens(config, tokenizer)
    params = jax.jit(functools.partial(api.init, config))(jax.random.key(0))
    model = EarthMind.from_params(config, params, tokenizer)
    seg, end = config.tokens.seg, model.engine.stop_ids[0]
    forced = {0: seg, 1: tokenizer.encode("water")[0], 2: end}
    model.engine.generate = functools.partial(model.engine.generate, forced=forced)
    return model


if __name__ == "__main__":
    main()
