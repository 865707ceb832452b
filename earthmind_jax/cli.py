"""The one command, ``earthmind``.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one sentence on standard error says what to do).
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import tyro

from earthmind_jax import cli_ask, cli_checkpoints, cli_data, cli_info, cli_plan, cli_segment, cli_train
from earthmind_jax.cli_paths import COMMAND
from earthmind_jax.errors import UserError, WorkError

app = tyro.extras.SubcommandApp()
Named = tyro.conf.arg
# Options of several values, which may also be given one by one: ``--point 1,2 --point=-3,4`` is ``--point 1,2 -3,4``.
SEVERAL = frozenset(
    f"--{name}"
    for name in (
        "optical", "sar", "bands", "sar-bands", "point", "box", "line", "mask", "truth-value", "base", "recorded",
        "modes", "set",
    )
)  # fmt: skip


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
app.command(cli_segment.segment)
app.command(cli_train.train)
app.command(cli_train.result)
app.command(cli_plan.plan)
app.command(cli_data.app, name="data", help="Check the records that a model is to be trained on.")


TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=8589934592"
"""XLA on a CPU takes its temporary memory anew in every step; huge pages that are kept save most of what that costs
(benchmarks/bench_memory.py)."""


def _restart_with_huge_pages(arguments: list[str]) -> None:
    """Start this process again with glibc told so, which it reads only at the start; elsewhere nothing happens."""
    computes = arguments[:1] in (["demo"], ["train"], ["bench"])
    if computes and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": TUNABLES})


def gathered(arguments: Sequence[str]) -> list[str]:
    """The same arguments, with the values of an option of :data:`SEVERAL` that is repeated behind its first place.

    The parser alone would take the values of the last place and drop the others without a word.
    """
    parts: list[list[str]] = [[]]
    several: dict[str, list[str]] = {}
    current = parts[0]
    for text in arguments:
        name, equals, value = text.partition("=")
        name = name.replace("_", "-")
        if name in SEVERAL:
            if name not in several:
                parts.append(several.setdefault(name, [name]))
            current = several[name]
            if equals:
                current.append(_value(value))
                current = []
                parts.append(current)
        elif text.startswith("--"):
            current = [text]
            parts.append(current)
        else:
            current.append(_value(text) if current and current[0] in SEVERAL else text)
    return [text for part in parts for text in part]


def _value(text: str) -> str:
    """A space before a number below zero keeps it from being taken for an option."""
    return f" {text}" if re.match(r"-[\d.]", text) else text


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command and turns our two errors into exit codes."""
    if arguments is None:
        _restart_with_huge_pages(sys.argv[1:])
        arguments = sys.argv[1:]
    COMMAND.set(shlex.join(["earthmind", *arguments]))
    # The host's cores are all there is to a CPU run; XLA's own notices would drown the progress line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Rasters without a place are ordinary input, and threads that read them undo each other's filters of this notice.
    warnings.filterwarnings("ignore", "Dataset has no geotransform|The given matrix is equal to Affine.identity")
    try:
        app.cli(prog="earthmind", args=gathered(arguments), description=__doc__)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except WorkError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read what is printed, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except PermissionError as error:
        print(f"error: '{error.filename}' may not be read; change its permissions.", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)
        print(f"error: a path of {len(name)} letters is too long ('{name[:60]}...'); check it.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
