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

from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.config import FUSION_MODES, Group, RunConfig, one_of
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.evaluate.metrics import Estimate
from earthmind_jax.evaluate.simulated import Item, make_items, sar_share, score, summarise
from earthmind_jax.evaluate.training import Setup, setup, train
from earthmind_jax.infer.engine import Engine
from earthmind_jax.models import api
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
    from configs import demo

    for mode in modes:
        one_of("fusion mode", mode, FUSION_MODES)
    chosen, console = tuple(modes) or FUSION_MODES, Console(stderr=True)
    steps = steps or BENCH_STEPS
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        path = out / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        done = {(r["regime"], r["mode"], r["seed"]) for r in lines if r["steps"] == steps}
        items = make_items(SCENES)
        for seed in range(seeds):
            first: Params | None = None
            for mode in chosen:
                base = demo.get_config(mode, steps, seed)
                for regime in REGIMES:
                    if (regime, mode, seed) in done:
                        continue
                    if regime == "scratch":
                        ready, params = _run_pairs(base, None)
                    else:
                        if first is None:
                            first = _optical_alone(demo.get_config("average", steps, seed))
                        ready, params = _run_pairs(base, first)
                    result = {"regime": regime, "mode": mode, "seed": seed, "steps": steps}
                    result |= _evaluate(ready, params, items)
                    with open(path, "a") as file:
                        file.write(json.dumps(result) + "\n")
                    lines.append(result)
                    console.print(result)
        table = render([r for r in lines if r["steps"] == steps and r["seed"] < seeds])
        write_text(out / "table.md", table)
    print(table)


BENCH_STEPS = 300
HEAD = (
    "| mode | seeds | cloudy IoU | clear IoU | cloudy accuracy | clear accuracy | SAR weight cloud / clear |\n"
    "|---|---|---|---|---|---|---|\n"
)


def _optical_alone(config: RunConfig) -> Params:
    """Stage 1 of the frozen regime: optical images only."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, drop_optical=0.0, drop_sar=1.0))
    return train(setup(config), make_mesh())


def _run_pairs(config: RunConfig, first: Params | None) -> tuple[Setup, Params]:
    """Train on pairs: from scratch, or from stage 1 with both encoders frozen."""
    if first is None:
        ready = setup(config)
        return ready, train(ready, make_mesh())
    # Stage 2 sees other scenes than stage 1, as another data set would be.
    ready = setup(dataclasses.replace(config, seed=config.seed + 1000))
    ready = dataclasses.replace(ready, config=_freeze(ready.config))
    import jax

    fresh = jax.jit(lambda: api.init(ready.config.model, jax.random.key(config.seed)))()
    params = {path: first.get(path, value) for path, value in fresh.items()}
    return ready, train(ready, make_mesh(), params)


def _freeze(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=FROZEN))


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
