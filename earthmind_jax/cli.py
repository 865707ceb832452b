"""The one command, ``earthmind``.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one sentence on standard error says what to do).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax import cli_checkpoints, cli_data, cli_plan, cli_segment, cli_train
from earthmind_jax.cli_print import print_answer
from earthmind_jax.errors import UserError, WorkError

app = tyro.extras.SubcommandApp()
Named = tyro.conf.arg


@app.command
def demo(
    out: Path = Path("demo"),
    /,
    modes: tuple[str, ...] = (),
    steps: int = 0,
    seed: int = 0,
) -> None:
    """Train a small EarthMind on simulated scenes, evaluate it, and write pictures, maps and a report.

    Takes minutes on two CPU cores and downloads nothing. The weights are small and trained on simulation alone.

    Example: earthmind demo my_demo --modes hca_plus average

    Args:
        out: new directory for the checkpoint, report.html and the results.
        modes: fusion modes to train and compare; the default mode alone if none is named.
        steps: training steps for each mode (0: as many as the demo needs).
        seed: the same seed gives the same numbers.
    """
    # A small model on a CPU: LLVM's slowest passes cost more time than they save.
    os.environ["XLA_FLAGS"] = f"--xla_llvm_disable_expensive_passes=true {os.environ.get('XLA_FLAGS', '')}"
    from earthmind_jax.demo import run

    run(out, modes=modes, steps=steps or None, seed=seed)


@app.command
def ask(
    question: str,
    /,
    checkpoint: Path = Path("demo/checkpoint"),
    optical: Path | None = None,
    sar: Path | None = None,
    out: Path | None = None,
    max_new: int = 128,
    temperature: float = 0.0,
    as_json: Annotated[bool, Named(name="json")] = False,
) -> None:
    """Ask a question about an optical image, a SAR image, or a pair.

    Example: earthmind ask "Is there water in the image?" --optical s2.tif --sar s1.tif

    Args:
        question: in plain words; "Please segment the water in this image." draws a mask.
        checkpoint: checkpoint directory.
        optical: Sentinel-2 GeoTIFF, or an 8-bit picture.
        sar: Sentinel-1 GeoTIFF (VV, VH); brought onto the optical grid.
        out: directory for answer.json, panel.png, mask GeoTIFF and GeoJSON.
        max_new: longest answer, tokens.
        temperature: 0 is greedy.
        as_json: print JSON.
    """
    from earthmind_jax.infer.predictor import EarthMind

    model = EarthMind.load(checkpoint)
    if cli_segment.large(optical, sar):
        cli_segment.ask_large(model, question, optical, sar, out, max_new, temperature, as_json)
        return
    answer = model.ask(question, optical=optical, sar=sar, max_new=max_new, temperature=temperature)
    files = [] if out is None else answer.save(out, maps=all(m.crs is not None for m in answer.masks))
    print_answer(answer, files, as_json)


@app.command
def info(files: tuple[Path, ...], /, as_json: Annotated[bool, Named(name="json")] = False) -> None:
    """Say what rasters are taken for and why, or what a checkpoint holds; two rasters are also compared as a pair.

    Example: earthmind info s2.tif s1.tif

    Args:
        files: one or two rasters, or a checkpoint directory.
        as_json: print JSON.
    """
    if not files:
        raise UserError("Name one or two rasters, or a checkpoint directory.")
    facts = [_checkpoint_facts(f) if f.is_dir() else _raster_facts(f) for f in files]
    if len(files) == 2 and not any(f.is_dir() for f in files):
        facts.append(_pair_facts(facts, files))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for fact in facts:
        print("\n".join(f"{k:>12}  {_line(v)}" for k, v in fact.items()) + "\n")


@app.command
def bench(
    what: str,
    /,
    modes: tuple[str, ...] = (),
    seeds: int = 3,
    steps: int = 0,
    out: Path = Path("bench"),
) -> None:
    """Run an experiment. "fusion" trains every fusion mode in two regimes and prints the table with intervals.

    Example: earthmind bench fusion --modes hca_plus average concat --seeds 3

    Args:
        what: fusion.
        modes: fusion modes; all of them if none is named.
        seeds: runs of each mode.
        steps: training steps of each run (0: the default of the experiment).
        out: directory for results.jsonl (finished runs are not repeated) and table.md.
    """
    if what != "fusion":
        raise UserError(f"There is no experiment '{what}'; choose: fusion.")
    from earthmind_jax.evaluate.fusion_bench import run

    run(out, modes=modes, seeds=seeds, steps=steps or None)


for _name in ("convert", "compose", "export", "inspect", "verify"):
    app.command(getattr(cli_checkpoints, _name))
app.command(cli_segment.segment)
app.command(cli_train.train)
app.command(cli_train.result)
app.command(cli_plan.plan)
app.command(cli_data.app, name="data", help="Check the records that a model is to be trained on.")


def _raster_facts(path: Path) -> dict[str, Any]:
    from earthmind_jax.geo.radiometry import calibrate
    from earthmind_jax.geo.raster import read_raster

    raster = read_raster(path)
    if raster.sensor is not None:
        raster = calibrate(raster)
    return {
        "file": str(path),
        "taken for": raster.sensor or "unknown sensor",
        "unit": raster.unit,
        "bands": list(raster.bands),
        "size": f"{raster.shape[1]} x {raster.shape[0]} pixels, {raster.dtype}",
        "crs": "none" if raster.crs is None else raster.crs.to_string(),
        "pixel": "unknown" if raster.gsd is None else f"{raster.gsd:.2f} m",
        "no data": f"{1 - raster.valid.mean():.1%}",
        "notes": list(raster.notes),
    }


def _pair_facts(facts: list[dict[str, Any]], files: tuple[Path, ...]) -> dict[str, Any]:
    from earthmind_jax.geo.align import load_pair

    order = files if facts[0]["taken for"] != "s1" else files[::-1]
    pair = load_pair(order[0], order[1])
    ratio = None if pair.gsd_ratio is None else f"{pair.gsd_ratio:.2f} (SAR / optical)"
    return {
        "pair": f"{order[0].name} + {order[1].name}",
        "overlap": f"{pair.overlap:.1%}",
        "pixel ratio": ratio,
        "notes": list(pair.notes),
    }


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    import math

    from earthmind_jax import checkpoint
    from earthmind_jax.models import api

    config = checkpoint.read_config(path)
    shapes = api.shapes(config)
    source = path / checkpoint.SOURCE
    return {
        "checkpoint": str(path),
        "parameters": f"{sum(math.prod(s.shape) for s in shapes.values()):,}",
        "language": f"{config.lm.family}, {config.lm.depth} layers of {config.lm.width}",
        "fusion": f"{config.fusion.mode}, masks from {config.fusion.grounding}",
        "sensors": f"{' '.join(config.sensors.optical_bands)} + {' '.join(config.sensors.sar_bands)}",
        "source": json.loads(source.read_text()) if source.is_file() else {},
    }


def _line(value: Any) -> str:
    if isinstance(value, list):
        return (
            ("\n" + " " * 14).join(str(v) for v in value)
            if any(len(str(v)) > 12 for v in value)
            else " ".join(map(str, value))
        )
    return json.dumps(value) if isinstance(value, dict) else str(value)


TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592"
"""XLA on a CPU takes its temporary memory anew in every step; huge pages that are kept save most of what that costs
(benchmarks/bench_memory.py)."""


def _restart_with_huge_pages(arguments: list[str]) -> None:
    """Start this process again with glibc told so, which it reads only at the start; elsewhere nothing happens."""
    computes = arguments[:1] in (["demo"], ["train"], ["bench"])
    if computes and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLES})


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command and turns our two errors into exit codes."""
    if arguments is None:
        _restart_with_huge_pages(sys.argv[1:])
    # The host's cores are all there is to a CPU run; XLA's own notices would drown the progress line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.cli(prog="earthmind", args=arguments, description=__doc__)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except WorkError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
