"""The commands around training: ``train`` and ``result``; see :mod:`earthmind_jax.cli`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from earthmind_jax.config import RunConfig

if TYPE_CHECKING:
    from earthmind_jax.train.watch import Costs


def train(
    config: Path,
    /,
    out: Path = Path("runs/train"),
    data: Path | None = None,
    data_root: Path | None = None,
    skip_broken: bool = False,
    tokenizer: Path | None = None,
    start: Path | None = None,
    scenes: int = 4096,
    set_: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    stage: str | None = None,
    until: int | None = None,
    save: str | None = None,
    report_every: int = 10,
    profile: int = 0,
    dry_run: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    join_timeout: float = 300.0,
) -> None:
    """Train a configuration; run again with the same directory to resume after the last saved step.

    Ctrl-C or SIGTERM ends it after the step at hand, saved.

    Example: earthmind train configs/tiny.py --out runs/tiny --set steps=40 optim.learning_rate=5e-4

    Args:
        config: Python file with a function get_config() returning a RunConfig, or the stages of a curriculum.
        out: run directory (a checkpoint that ask and segment accept); of a curriculum, one for each stage below it.
        data: record file, one JSON object per line, or directory of a published data set (its first split; see "data
            list"); without it data.sources of the configuration, or simulated scenes.
        data_root: directory that the paths of data.sources start from; without it that of the configuration file.
        skip_broken: leave out the broken lines of record files, naming each; without it the first one stops the run.
        tokenizer: Hugging Face tokenizer directory; a small one is trained on the data where none is named.
        start: checkpoint whose weights to start from.
        scenes: how many scenes to simulate.
        set_: configuration keys to change, key=value (in every stage).
        stage: the only stage of a curriculum to train; without it all that are not done, in order.
        until: stop after this step.
        save: write the result at the end to OUT/result as full, adapters or merged (see the command "result").
        report_every: steps from one report (a line of metrics.jsonl, TensorBoard) to the next.
        profile: write a trace of so many steps to OUT/profile, for TensorBoard or Perfetto.
        dry_run: train nothing; print what would learn, what it would need, and one batch as text and picture.
        coordinator: HOST:PORT of process 0, for a run of several processes that no launcher told of each other (SLURM,
            Open MPI 4, Kubernetes and TPU slices on GKE do); "auto" lets jax look.
        processes: how many processes there are; 1 is this one alone, whatever started it.
        process: which one this is, from 0.
        join_timeout: seconds to wait for the other processes.
    """
    from earthmind_jax.distributed.peers import failing_together
    from earthmind_jax.distributed.start import start as join
    from earthmind_jax.distributed.start import together

    join(coordinator, processes, process, timeout=join_timeout)
    from earthmind_jax.train import curriculum
    from earthmind_jax.train.run import load_config, load_stages

    where: dict[str, Any] = {
        "data": data, "data_root": config.parent if data_root is None else data_root, "skip_broken": skip_broken,
        "tokenizer": tokenizer, "start": start, "scenes": scenes,
    }  # fmt: skip
    if dry_run:
        _show(load_config(config, set_, stage), out, where)
        return
    how = {"until": until, "save": save, "report_every": report_every, "profile": profile, "costs": _costs}
    with failing_together():
        with together("reading its configuration and data"):
            stages = load_stages(config, set_)
        curriculum.train(stages, out, stage=stage, **where, **how)


def result(run: Path, out: Path, /, form: str = "full") -> None:
    """Write what a training run made, without optimiser, as a checkpoint directory of its own.

    Example: earthmind result runs/tiny my_adapters --form adapters

    Args:
        run: run directory.
        out: new checkpoint directory.
        form: full (all weights), adapters (the trained weights alone; they need the base they were trained on where it
            lies), or merged (all weights, LoRA folded into the kernels).
    """
    from earthmind_jax.train.result import write_line, write_result

    print(write_line(out, write_result(run, out, form)))


def _costs(config: RunConfig) -> Costs | None:
    """What MFU of a run is measured by, where the peak of the devices is known."""
    import jax

    from earthmind_jax.plan.flops import step_flops
    from earthmind_jax.plan.hardware import running_on
    from earthmind_jax.train.watch import Costs

    hardware = running_on()
    if hardware is None:
        return None
    flops = functools.lru_cache(lambda tiles: step_flops(config, tiles).model)
    return Costs(flops, hardware.flops * jax.device_count())


def _show(config: RunConfig, out: Path, where: dict[str, Any]) -> None:
    """The dry run: freeze table, plan, one batch."""
    import jax
    from rich.console import Console

    from earthmind_jax.plan import report
    from earthmind_jax.plan.advice import advise
    from earthmind_jax.plan.hardware import HARDWARE, running_on
    from earthmind_jax.plan.planning import make_plan
    from earthmind_jax.train import dry_run
    from earthmind_jax.train.loop import freeze_table
    from earthmind_jax.train.run import first_batch, prepare

    config, source, words, _ = prepare(config, out, **where)
    Console().print(freeze_table(config))
    made = make_plan(config, running_on() or HARDWARE["h100"], devices=jax.device_count(), compiles=False)
    print(report.text(made, advise(made)))
    batch = first_batch(config, source, words)
    for number, text in enumerate(dry_run.texts(batch, words)):
        print(f"\nsample {number}: {text}")
    print(f"\n{100 * dry_run.padding_share(batch):.0f} % of the batch's token positions are padding")
    for file in dry_run.write(out / "dry-run", batch, config.model, words):
        print(f"wrote {file}")
