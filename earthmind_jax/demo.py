"""``earthmind demo``: simulate, train from scratch, evaluate on unseen scenes, write maps and a report."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from configs import demo as settings
from earthmind_jax import checkpoint
from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.config import FUSION_MODES, one_of
from earthmind_jax.data.collate import SENSORS
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.simulate import make_scene
from earthmind_jax.data.simulate.materials import Cover
from earthmind_jax.data.simulate.qa import NOUNS
from earthmind_jax.data.simulate.write import write_scene
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError
from earthmind_jax.evaluate.report import ModeResult, Picture, render
from earthmind_jax.evaluate.simulated import (
    BATCH,
    BUCKETS,
    NEW,
    SETTINGS,
    Item,
    make_items,
    sar_share,
    score,
    summarise,
)
from earthmind_jax.evaluate.training import carry, compile_run, setup
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.panel import panel
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.train.loop import fit
from earthmind_jax.types import Params

NOTE = (
    "This model is small and was trained for a few minutes on simulated scenes alone. It shows how the parts work "
    "together; it is not a product, and its figures say nothing about real imagery."
)
SCENES = 80  # unseen scenes of each sky
SHOWN = 2  # scenes written as GeoTIFF pairs and pictured, one of each sky


def run(out: Path, *, modes: Sequence[str] = (), steps: int | None = None, seed: int = 0) -> None:
    """Everything the command does; ``modes`` are trained one after the other, the first becomes ``out/checkpoint``.

    An interrupted demo continues where it was when it is started again with the same arguments.

    Raises:
      UserError: ``out`` holds a finished demo, or a mode is unknown.
    """
    console, started = Console(stderr=True), time.perf_counter()
    for mode in modes:
        one_of("fusion mode", mode, FUSION_MODES)
    if (out / "report.html").exists():
        raise UserError(f"{out} holds a finished demo; choose another directory or remove it first.")
    chosen = tuple(modes) or (settings.model().fusion.mode,)
    console.print(NOTE, style="yellow")
    items = make_items(SCENES, seed)
    results: list[ModeResult] = []
    first: EarthMind | None = None
    for mode in chosen:
        model = _train(out, mode, steps, seed, console)
        if model is None:
            return
        results.append(_evaluate(model, mode, items, console))
        first = first or model
    assert first is not None
    pictures = _show(out, first, seed, console)
    minutes = (time.perf_counter() - started) / 60
    facts = [
        f"{len(items)} questions about {2 * SCENES} unseen scenes; seed {seed}",
        "stages: " + ", ".join(f"{s.name} ({steps or s.steps} steps)" for s in settings.stages()),
        f"{minutes:.1f} minutes in all",
        "model: " + json.dumps(checkpoint.read_config(out / "checkpoint").fusion.__dict__),
    ]
    with writing(out):
        write_text(out / "report.html", render("EarthMind demo", NOTE, results, pictures, facts))
    console.print(f"\nDone in {minutes:.1f} minutes. Open {out / 'report.html'}, or try:")
    s2, s1 = out / "scenes" / "scene_0_s2.tif", out / "scenes" / "scene_0_s1.tif"
    for line in (
        f"earthmind info {s2} {s1}",
        f'earthmind ask "What does the image show?" --checkpoint {out}/checkpoint --optical {s2} --sar {s1}',
        f"earthmind segment water --checkpoint {out}/checkpoint --optical {s2} --sar {s1} --out {out}/water",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print(NOTE, style="yellow")


def _train(out: Path, mode: str, steps: int | None, seed: int, console: Console) -> EarthMind | None:
    """Train one mode stage by stage (resuming its runs if there are some) and write its checkpoint.

    None where it was asked to stop before the end.
    """
    params: Params | None = None
    stages = settings.stages(mode, seed=seed)
    if steps is not None:
        stages = tuple(dataclasses.replace(stage, steps=steps, checkpoint_every=steps) for stage in stages)
    mesh = make_mesh(stages[0].mesh)
    # Compiling takes as long as a hundred steps and one core, so the next stage is compiled while one is trained. One
    # program at a time: each takes gigabytes to compile.
    with ThreadPoolExecutor(1) as pool:
        made = [setup(stages[0])]
        made += [setup(stage, made[0].tokenizer) for stage in stages[1:]]
        compiled = [pool.submit(compile_run, ready, mesh) for ready in made]
        for number, (ready, program) in enumerate(zip(made, compiled, strict=True), 1):
            stage = ready.config
            scenes = f"{stage.steps} steps of {stage.data.batch_size} scenes"
            console.print(f"Fusion mode {mode}, stage {number} ({stage.name}): {scenes}.")
            batches = training_pipeline(stage, ready.source, ready.tokenizer)
            directory = out / "runs" / mode / f"stage_{number}"
            params = None if params is None else carry(stage, params)
            state = fit(
                stage, directory, batches, ready.tokenizer, mesh, params=params, console=console, step_fn=program.result
            )
            if int(state.step) < stage.steps:
                return None
            params = state.params
    assert params is not None
    place = out / "checkpoint"
    if place.exists() and checkpoint.read_config(place).fusion.mode != mode:
        place = out / f"checkpoint_{mode}"
    if not place.exists():
        source = {"trained": "earthmind demo", "mode": mode, "seed": seed, "data": "simulated scenes alone"}
        checkpoint.save(place, ready.config.model, params, ready.tokenizer, source)
    return EarthMind.from_params(ready.config.model, params, ready.tokenizer, f"demo {mode}")


def _evaluate(model: EarthMind, mode: str, items: Sequence[Item], console: Console) -> ModeResult:
    table = Table(
        "sky",
        "sensors",
        "foreground mIoU",
        "answers right",
        "absent left empty",
        "single objects",
        title=f"{mode}, unseen scenes",
    )
    engine: Engine = model.engine
    scores = [s for setting in SETTINGS for s in score(engine, items, setting)]
    rows = summarise(scores)
    for row in rows:
        table.add_row(row.sky, row.setting, str(row.iou), str(row.accuracy), str(row.absent), str(row.objects))
    console.print(table)
    cloud, clear = sar_share(scores)
    console.print(f"Mean weight of SAR: {cloud:.2f} under cloud, {clear:.2f} where the ground is visible.")
    return ModeResult(mode, rows, cloud, clear)


def _show(out: Path, model: EarthMind, seed: int, console: Console) -> list[Picture]:
    """Write a few unseen scenes as GeoTIFF pairs, and segment them from the files."""
    pictures = []
    # In the shapes of the evaluation, so that nothing more is compiled.
    model = dataclasses.replace(model, batch_size=BATCH, buckets=BUCKETS, sensors=SENSORS)
    with writing(out):
        (out / "scenes").mkdir(parents=True, exist_ok=True)
    for i in range(SHOWN):
        scene = make_scene(
            np.random.default_rng((seed, 77, i)), size=128, gsd=10.0, cloud="cloudy" if i % 2 else "clear"
        )
        name = f"scene_{i}"
        write_scene(scene, out / "scenes", name)
        s2, s1 = out / "scenes" / f"{name}_s2.tif", out / "scenes" / f"{name}_s1.tif"
        targets = [c for c in (Cover.WATER, Cover.FOREST, Cover.FIELD, Cover.BARE) if scene.fractions[c] > 0.05]
        target = NOUNS[targets[0] if targets else Cover.FOREST][1]
        for label, sensors in (
            ("both", {"optical": s2, "sar": s1}),
            ("optical", {"optical": s2}),
            ("SAR", {"sar": s1}),
        ):
            answer = model.segment(target, max_new=NEW, **sensors)
            if label == "both":
                answer.save(out / "results" / name)
            pictures.append(Picture(panel(answer), f"{scene.cloud_kind} scene {i}, {label}: {target}"))
    console.print(f"Wrote {SHOWN} scenes and their maps to {out / 'scenes'} and {out / 'results'}.")
    return pictures
