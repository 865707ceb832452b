"""Which fusion? Every mode on the same scenes, several seeds, in two regimes.

``scratch``: everything learns on pairs from the start. ``frozen``: first a model learns on optical images alone, then
its two image encoders are frozen and the rest learns on pairs; this is the paper's situation, in which encoders come
from another sensor. Every finished run is a line of ``results.jsonl``, so an interrupted experiment continues.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from configs import demo
from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.config import FUSION_MODES, Group, one_of
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.evaluate.metrics import Estimate
from earthmind_jax.evaluate.simulated import Item, make_items, sar_share, score, summarise
from earthmind_jax.evaluate.training import Setup, carry, setup, train
from earthmind_jax.infer.engine import Engine
from earthmind_jax.types import Params

REGIMES = ("scratch", "frozen")
FROZEN = (
    Group(pattern="vision/"),
    Group(pattern="grounding/(trunk|neck|prompt)/"),
    Group(pattern=".*", learning_rate=1.0, weight_decay=0.01),
)
SCENES = 60  # of each sky


def run(out: Path, *, modes: Sequence[str] = (), seeds: int = 3, steps: int | None = None) -> None:
    """Train what is missing, then print and write the table."""
    for mode in modes:
        one_of("fusion mode", mode, FUSION_MODES)
    chosen, console = tuple(modes) or FUSION_MODES, Console(stderr=True)
    steps = steps or STEPS
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        path = out / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        done = {(r["regime"], r["mode"], r["seed"]) for r in lines if r["steps"] == steps}
        items = make_items(SCENES)
        for regime in REGIMES:
            for seed in range(seeds):
                start: Params | None = None
                for mode in chosen:
                    if (regime, mode, seed) in done:
                        continue
                    if start is None:
                        # What comes before the fusion is the same for every mode, so it is trained once.
                        start = _start(regime, seed, steps)
                    ready, params = _on_pairs(regime, mode, seed, steps, start)
                    result = {"regime": regime, "mode": mode, "seed": seed, "steps": steps}
                    result |= _evaluate(ready, params, items)
                    with open(path, "a") as file:
                        file.write(json.dumps(result) + "\n")
                    lines.append(result)
                    console.print(result)
        table = render([r for r in lines if r["steps"] == steps and r["seed"] < seeds])
        write_text(out / "table.md", table)
    print(table)


def _start(regime: str, seed: int, steps: int) -> Params:
    """Parameters before pairs are seen: ``scratch`` has looked at single sensors, ``frozen`` knows optical alone."""
    first, second, third = demo.stages("average", seed=seed)
    params = train(setup(first), make_mesh())
    if regime == "scratch":
        ready = setup(second)
    else:
        alone = dataclasses.replace(third.data, drop_optical=0.0, drop_sar=1.0, sky="clear")
        ready = setup(dataclasses.replace(third, data=alone, steps=steps))
    return train(ready, make_mesh(), carry(ready.config, params))


def _on_pairs(regime: str, mode: str, seed: int, steps: int, start: Params) -> tuple[Setup, Params]:
    """The last stage, on pairs, with one fusion mode; in the frozen regime both image encoders stay as they are."""
    config = dataclasses.replace(demo.stages(mode, seed=seed)[-1], steps=steps)
    if regime == "frozen":
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=FROZEN))
    ready = setup(config)
    return ready, train(ready, make_mesh(), carry(ready.config, start))


def _evaluate(ready: Setup, params: Params, items: Sequence[Item]) -> dict[str, Any]:
    engine = Engine(ready.config.model, params, ready.tokenizer)
    scores = score(engine, items, "both")
    out: dict[str, Any] = {}
    for row in summarise(scores):
        out |= {f"{row.sky}_iou": row.iou.mean, f"{row.sky}_accuracy": row.accuracy.mean}
    out["sar_cloud"], out["sar_clear"] = sar_share(scores)
    return out


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with the 95 % interval of Student's t."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"), len(values))
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = t * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


def render(results: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown: mean over seeds ± half the 95 % interval (Student's t)."""
    columns = ("cloudy_iou", "clear_iou", "cloudy_accuracy", "clear_accuracy")
    text = ""
    for regime in REGIMES:
        rows = []
        for mode in dict.fromkeys(r["mode"] for r in results):
            runs = [r for r in results if r["mode"] == mode and r["regime"] == regime]
            if not runs:
                continue
            cells = []
            for column in columns:
                e = _over_seeds([r[column] for r in runs])
                cells.append(f"{e.mean:.3f} ± {e.high - e.mean:.3f}" if e.count > 1 else f"{e.mean:.3f}")
            sar = [f"{np.mean([r[k] for r in runs]):.2f}" for k in ("sar_cloud", "sar_clear")]
            rows.append(
                (
                    np.mean([r["cloudy_iou"] for r in runs]),
                    f"| {mode} | {len(runs)} | {' | '.join(cells)} | {' / '.join(sar)} |",
                )
            )
        if rows:
            text += f"\n{regime}\n\n{HEAD}"
            text += "\n".join(line for _, line in sorted(rows, reverse=True)) + "\n"
    return text
