"""Which fusion? Every mode on the same scenes, several seeds, in two regimes, measured by the masks it leads to.

``scratch``: everything learns on pairs from the start. ``frozen``: first a model learns on optical images alone, then
its two image encoders are frozen and the rest learns on pairs; this is the paper's situation, in which encoders come
from another sensor. Masks are asked for by their names' embeddings, without the language model (the first stage of
``configs.demo``), so that what is compared is the fusion. Every finished run is a line of ``results.jsonl``, so an
interrupted experiment continues.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from configs import demo
from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.config import FUSION_MODES, Group, RunConfig, one_of
from earthmind_jax.data.pipeline import pipeline, training_pipeline
from earthmind_jax.data.simulate import Scene, make_questions, make_scene, to_sample
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.evaluate.metrics import Estimate
from earthmind_jax.evaluate.simulated import SEGMENTATION, SKIES, UNSEEN, sar_weight
from earthmind_jax.evaluate.training import Setup, carry, compile_run, setup
from earthmind_jax.models import earthmind
from earthmind_jax.train.state import create
from earthmind_jax.train.step import Step
from earthmind_jax.types import Batch, Params

REGIMES = ("frozen", "scratch")
FROZEN = (
    Group(pattern="vision/"),
    Group(pattern="grounding/(trunk|neck|prompt)/"),
    Group(pattern=".*", learning_rate=1.0, weight_decay=0.01),
)
SCENES = 60  # unseen, of each sky
STEPS = 150
ALONE = 200  # steps on optical images alone, before the encoders are frozen
BATCH = 20  # scenes of an evaluation batch


def run(out: Path, *, modes: Sequence[str] = (), seeds: int = 3, steps: int | None = None) -> None:
    """Train what is missing, then print and write the table.

    Raises:
      UserError: for an unknown mode.
    """
    for mode in modes:
        one_of("fusion mode", mode, FUSION_MODES)
    chosen, console, steps = tuple(modes) or FUSION_MODES, Console(stderr=True), steps or STEPS
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        path = out / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        done = {(r["regime"], r["mode"], r["seed"]) for r in lines if r["steps"] == steps}
        starts: dict[int, Params] = {}
        for regime in REGIMES:
            for mode in chosen:
                missing = [seed for seed in range(seeds) if (regime, mode, seed) not in done]
                if not missing:
                    continue
                if regime == "frozen":
                    _train_alone([seed for seed in missing if seed not in starts], starts)
                for result in _runs(regime, mode, missing, steps, starts):
                    with open(path, "a") as file:
                        file.write(json.dumps(result) + "\n")
                    lines.append(result)
                    console.print(result)
        table = render([r for r in lines if r["steps"] == steps and r["seed"] < seeds and r["mode"] in chosen])
        write_text(out / "table.md", table)
    print(table)


def stage(mode: str, seed: int, steps: int) -> RunConfig:
    """Pairs, and sometimes one sensor, to masks from words; whole scenes, so that new runs stand beside those kept."""
    first = demo.stages(mode, seed=seed)[0]
    data = dataclasses.replace(first.data, tasks=(SEGMENTATION,) * 8, views=())
    return dataclasses.replace(first, steps=steps, data=data)


def _train_alone(seeds: Sequence[int], starts: dict[int, Params]) -> None:
    """Models of optical images under clear skies, by seed; no fusion mode has a part in them."""
    program: Step | None = None
    for seed in seeds:
        config = stage("average", seed, ALONE)
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, drop_optical=0.0, drop_sar=1.0, sky="clear")
        )
        ready, mesh = setup(config), make_mesh()
        program = program or compile_run(ready, mesh)
        starts[seed] = _train(ready, program, mesh, None)


def _runs(regime: str, mode: str, seeds: Sequence[int], steps: int, starts: dict[int, Params]) -> Any:
    """The result of each seed; a mode is compiled once for all of them."""
    program: Step | None = None
    test: Test | None = None
    for seed in seeds:
        config = stage(mode, seed, steps)
        if regime == "frozen":
            config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, groups=FROZEN))
        ready, mesh = setup(config), make_mesh()
        program = program or compile_run(ready, mesh)
        test = test or Test.make(ready)
        start = carry(ready.config, starts[seed]) if regime == "frozen" else None
        params = _train(ready, program, mesh, start)
        yield {"regime": regime, "mode": mode, "seed": seed, "steps": steps, **test.scores(params)}


def _train(ready: Setup, program: Step, mesh: Mesh, start: Params | None) -> Params:
    """All parameters after the last step."""
    batches = training_pipeline(ready.config, ready.source, ready.tokenizer)
    with jax.set_mesh(mesh):
        state, _ = create(ready.config, mesh, start)
        for _ in range(ready.config.steps):
            state, metrics = program(state, put_batch(next(batches), mesh))
        jax.block_until_ready(metrics)
    return state.params


@dataclass(frozen=True)
class Test:
    """Unseen scenes of each sky as batches, and the compiled function that draws their masks."""

    scenes: dict[str, list[Scene]]
    batches: dict[str, list[Batch]]
    draw: Any

    @staticmethod
    def make(ready: Setup) -> Test:
        config, scenes, batches = ready.config, {}, {}
        data = dataclasses.replace(config.data, batch_size=BATCH, drop_optical=0.0, drop_sar=0.0)
        for s, sky in enumerate(SKIES):
            scenes[sky], samples = [], []
            for i in range(SCENES):
                rng = np.random.default_rng((UNSEEN, s, i))
                scene = make_scene(rng, cloud=sky)
                asked = [
                    qa for qa in make_questions(scene, rng, (SEGMENTATION,) * 8, lettered=False) if qa.mask is not None
                ]
                scenes[sky].append(scene)
                samples.append(to_sample(scene, asked[: data.masks_per_sample], f"{sky}-{i}"))
            stream = pipeline(samples, config.model, data, ready.tokenizer, shuffle=False, epochs=1, augment=False)
            batches[sky] = [next(stream) for _ in range(SCENES // BATCH)]

        @jax.jit
        def draw(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
            out = earthmind.forward(config.model, params, batch, phrases=True, speaks=False)
            mask, target = out.phrase_masks.logits > 0, batch.masks > 0.5
            both, either = (x.sum((-2, -1)) for x in (mask & target, mask | target))
            return both / either.clip(1), batch.mask_valid & out.phrase_valid, out.fused.weights

        return Test(scenes, batches, draw)

    def scores(self, params: Params) -> dict[str, float]:
        """Foreground mIoU of each sky (at the mask decoder's resolution), and the mean weight of SAR under cloud and
        where the ground is visible."""
        found: dict[str, float] = {}
        shares: list[tuple[float | None, float | None]] = []
        for sky, batches in self.batches.items():
            drawn = [[np.asarray(x) for x in self.draw(params, batch)] for batch in batches]
            found[f"{sky}_iou"] = float(np.concatenate([iou[valid] for iou, valid, _ in drawn]).mean())
            found[f"{sky}_masks"] = int(sum(valid.sum() for _, valid, _ in drawn))
            weights = np.concatenate([w for _, _, w in drawn])
            side = round(weights.shape[2] ** 0.5)
            weights = weights.reshape(*weights.shape[:2], side, side, 2)
            shares += [sar_weight(scene, w) for scene, w in zip(self.scenes[sky], weights, strict=True)]
        for name, values in zip(("sar_cloud", "sar_clear"), zip(*shares, strict=True), strict=True):
            found[name] = float(np.mean([v for v in values if v is not None]))
        return found


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with the 95 % interval of Student's t."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"), len(values))
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(len(values), 2.1)
    half = t * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(values))


HEAD = """| mode | seeds | cloudy mIoU | clear mIoU | weight of SAR, cloud / clear |
| --- | --- | --- | --- | --- |
"""


def render(results: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, best first: mean over seeds ± half the 95 % interval (Student's t)."""
    text = ""
    for regime in REGIMES:
        rows = []
        for mode in dict.fromkeys(r["mode"] for r in results):
            runs = [r for r in results if r["mode"] == mode and r["regime"] == regime]
            if not runs:
                continue
            cells = []
            for column in ("cloudy_iou", "clear_iou"):
                e = over_seeds([r[column] for r in runs])
                cells.append(f"{e.mean:.3f} ± {e.high - e.mean:.3f}" if e.count > 1 else f"{e.mean:.3f}")
            sar = " / ".join(f"{np.mean([r[k] for r in runs]):.2f}" for k in ("sar_cloud", "sar_clear"))
            best = float(np.mean([r["cloudy_iou"] for r in runs]))
            rows.append((best, f"| {mode} | {len(runs)} | {' | '.join(cells)} | {sar} |"))
        if rows:
            text += f"\n{regime}\n\n{HEAD}" + "\n".join(line for _, line in sorted(rows, reverse=True)) + "\n"
    return text
