"""From published files to a model fine-tuned on one's own records, through the commands that a user types.

``python benchmarks/finetune.py`` trains a small base on records of simulated scenes under clear skies and writes it in
the published layout. Then: converts it, ``data check``, a dry run, ``train configs/finetune.py`` on records of scenes
under clouds, ``ask``, ``result`` merged, ``ask`` again. It prints one JSON line: mask IoU and right words of the
converted base and of the tuned model on held-out records, and the size of the adapters.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BASE = """
import dataclasses
from configs import tiny
from earthmind_jax.config import DataConfig, Group, LossConfig, OptimConfig

def get_config():
    run = tiny.get_config()
    model = tiny.model("concat", "sar")
    groups = (
        Group(pattern="grounding/prompt/"),
        Group(pattern="lm/(embed|head)/", learning_rate=4.0),
        Group(pattern=".*", learning_rate=1.0),
    )
    return dataclasses.replace(
        run,
        name="base",
        model=dataclasses.replace(model, lm=dataclasses.replace(model.lm, vocab=512, embed_init=0.15)),
        data=DataConfig(
            batch_size=8, text_length=256, masks_per_sample=4, turns=4, drop_optical=0.0, drop_sar=0.0,
        ),
        optim=OptimConfig(
            method="muon", learning_rate=2e-3, warmup=0.1, final=0.1, betas=(0.9, 0.98), groups=groups
        ),
        loss=LossConfig(points=0, phrase=1.0, align=2.0, mask_contrast=1.0, region_word=1.0, answer_power=0.5),
        checkpoint_every=1000,
    )
"""
TASKS = ("referring_segmentation", "referring_segmentation", "object_existence")
SMALL = (
    "model.lm.lora.rank=8", "model.lm.lora.alpha=16", "model.precision.compute=float32", "data.text_length=256",
    "data.text_buckets=[256]", "data.tile_buckets=[1]", "data.window=1", "data.turns=3",
)  # fmt: skip
"""What fits configs/finetune.py to a model and scenes of this size."""


def make_base(root: Path, steps: int) -> None:
    """A model trained for so many steps, ``root/trained``, which sees no scene twice."""
    (root / "base.py").write_text(BASE)
    (root / "seen").mkdir()
    write_records(root / "seen", "clear.jsonl", range(20_000, 20_000 + 8 * steps), "clear")
    given = ("--data", root / "seen" / "clear.jsonl", "--report-every", max(1, steps // 10))
    command("train", root / "base.py", "--out", root / "trained", *given, "--set", f"steps={steps}")


def road(root: Path, *, steps: int, scenes: int, held_out: int) -> dict[str, Any]:
    """All commands on ``root/trained``; what the base and the tuned model score on held-out records.

    Args:
      steps: of tuning.
      scenes, held_out: records to tune on, and to score.
    """
    from checkpoints_convert.streaming import convert_to_checkpoint
    from earthmind_jax import checkpoint

    command("export", root / "trained", root / "published", "--layout", "earthmind")

    base, tuned, records = root / "base", root / "tuned", root / "own.jsonl"
    write_records(root, records.name, range(scenes))
    write_records(root, "held_out.jsonl", range(10_000, 10_000 + held_out))
    # The command's own function: SAM2's configuration files have no words for a mask decoder this small.
    model = checkpoint.read_config(root / "trained")
    convert_to_checkpoint(root / "published", base, grounding=model.grounding, fusion=model.fusion)
    command("data", "check", records, "--tokenizer", base / "tokenizer")
    train = ("train", ROOT / "configs" / "finetune.py", "--start", base, "--data", records, "--out", tuned)
    settings = ("--set", *SMALL, f"steps={steps}", "optim.learning_rate=2e-3", "checkpoint_every=1000")
    command(*train, "--dry-run", *settings)
    command(*train, "--save", "adapters", "--report-every", max(1, steps // 10), *settings)
    pair = ("--optical", root / "own0_s2.tif", "--sar", root / "own0_s1.tif")
    ask = ("ask", "Please segment the water.", *pair, "--json")
    command(*ask, "--checkpoint", tuned)
    command("result", tuned, root / "merged", "--form", "merged")
    command(*ask, "--checkpoint", root / "merged")
    before, after, merged = (score(place, root / "held_out.jsonl") for place in (base, tuned, root / "merged"))
    return {
        "base": before,
        "tuned": after,
        "merged": merged,
        "adapters_bytes": size(tuned / "result"),
        "base_bytes": size(base),
    }


def command(*arguments: object) -> None:
    """Run ``earthmind`` with these arguments."""
    from earthmind_jax.cli import main

    print("$ earthmind", *arguments, file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        main([str(argument) for argument in arguments])


def write_records(root: Path, name: str, seeds: range, sky: str = "cloudy") -> None:
    """GeoTIFF pairs, masks and one line of ``name`` for each scene, its questions in an order of chance."""
    from earthmind_jax.data.simulate import make_questions, make_scene, write_scene

    for number, seed in enumerate(seeds):
        rng = np.random.default_rng((seed, 5))
        scene = make_scene(rng, size=32, cloud=sky)
        asked = make_questions(scene, rng, TASKS, lettered=False)
        rng.shuffle(asked)
        write_scene(scene, root, f"{Path(name).stem}{number}", questions=asked, records=name)


def score(place: Path, records: Path) -> dict[str, float]:
    """Mean IoU of the masks that were asked for, none drawn being 0, and the share of right answers in words."""
    from earthmind_jax.data.read import load_record
    from earthmind_jax.data.records import read_jsonl
    from earthmind_jax.infer.predictor import EarthMind

    model, masks, words = EarthMind.load(place), [], []
    for record in read_jsonl(records):
        files = {sensor: record.paths(sensor)[0] for sensor in ("optical", "sar")}
        for turn in load_record(record, model.config.sensors).turns:
            reply = model.ask(turn.question, max_new=24, **files)
            if turn.masks:
                truth = np.asarray(turn.masks[0]) > 0
                drawn = reply.masks[0].array if reply.masks else np.zeros_like(truth)
                masks.append(float((drawn & truth).sum() / max((drawn | truth).sum(), 1)))
            else:
                words.append(float(plain(reply.text) == plain(turn.answer or "")))
    return {"mask_iou": round(float(np.mean(masks)), 4), "words_right": round(float(np.mean(words)), 4)}


def plain(text: str) -> str:
    """Words alone."""
    return " ".join(re.findall(r"\w+", text.lower()))


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--keep", type=Path, help="directory for everything that is written")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        root = options.keep or Path(place)
        root.mkdir(parents=True, exist_ok=True)
        make_base(root, options.base_steps)
        found = road(root, steps=options.steps, scenes=options.scenes, held_out=options.held_out)
    print(json.dumps({"benchmark": "finetune", **found, "seconds": round(time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
