"""The one command, ``earthmind``.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one sentence on standard error says what to do).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax import cli_ask, cli_checkpoints, cli_data, cli_info, cli_plan, cli_train
from earthmind_jax.cli_ask import COMMAND, print_answer
from earthmind_jax.cli_marks import NOWHERE, Pointing
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.told import NOTHING, Told

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
def segment(
    target: str = "",
    /,
    checkpoint: Path = Path("demo/checkpoint"),
    optical: Path | None = None,
    sar: Path | None = None,
    out: Path = Path("segment"),
    picture: bool = False,
    truth: Path | None = None,
    truth_value: int = 1,
    pointing: Pointing = NOWHERE,
    told: Annotated[Told, cli_info.TOLD] = NOTHING,
    explain: Path | None = None,
    as_json: Annotated[bool, Named(name="json")] = False,
) -> None:
    """Draw the mask of something and write it as a Cloud-Optimized GeoTIFF and GeoJSON that land on the input.

    Example: earthmind segment water --optical s2.tif --sar s1.tif --out results

    Example: earthmind segment --optical s2.tif --point 120,85 --box 10,10,60,40

    Args:
        target: what to draw, e.g. "water"; may be left out where something is pointed at.
        checkpoint: checkpoint directory.
        optical: GeoTIFF of Sentinel-2 or another sensor (see info), or an 8-bit picture.
        sar: Sentinel-1 GeoTIFF (VV, VH).
        out: directory for the results.
        picture: write a plain PNG mask (for images without georeference).
        truth: label raster to compare with; prints the foreground IoU.
        truth_value: the label value of the target in truth.
        pointing: draw what is pointed at, one mask for each object.
        told: what the files do not say themselves.
        explain: HTML page that says what each sensor alone would have drawn, and where each counted.
        as_json: print JSON.
    """
    from earthmind_jax.infer.predictor import EarthMind

    given = pointing.options()
    cli_ask.check_page(explain)
    if explain is not None and given:
        raise UserError("--explain shows what words draw; leave out what points at places.")
    model = EarthMind.load(checkpoint)
    if explain is None:
        answer, page = model.segment(target, optical=optical, sar=sar, told=told, **given), []
    else:
        reason = model.explain(target, optical=optical, sar=sar, told=told, segment=True, command=COMMAND.get())
        answer, page = reason.answer, [reason.save_page(explain)]
    iou = None if truth is None else _against(answer, truth, truth_value)
    files = [*answer.save(out, maps=not picture), *page]
    print_answer(answer, files, as_json, {} if iou is None else {"iou": round(iou, 4)})


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
app.command(cli_ask.ask)
app.command(cli_ask.chat)
app.command(cli_info.info)
app.command(cli_train.train)
app.command(cli_train.result)
app.command(cli_plan.plan)
app.command(cli_data.app, name="data", help="Check the records that a model is to be trained on.")


def _against(answer: Any, truth: Path, value: int) -> float:
    from earthmind_jax.evaluate.metrics import foreground_iou
    from earthmind_jax.geo.raster import read_raster

    mask = answer.masks[0]
    labels = read_raster(truth, labels=True, native=True).data[0]
    if labels.shape != mask.array.shape:
        raise UserError(f"{truth} has {labels.shape} pixels (rows, columns) but the image has {mask.array.shape}.")
    return foreground_iou(mask.array, labels == value, mask.valid)


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
    COMMAND.set(shlex.join(["earthmind", *(sys.argv[1:] if arguments is None else arguments)]))
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
