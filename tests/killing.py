"""Kills :mod:`interrupted` at chosen moments and compares what comes of it; for the test and for the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from earthmind_jax.checkpoint import STEPS, TRAINED
from earthmind_jax.train.checkpoint import POSITION, STATE
from earthmind_jax.train.watch import CLOCKED

PROGRAM = Path(__file__).with_name("interrupted.py")


@dataclass(frozen=True)
class Moment:
    """``delay`` seconds after the child prints ``line`` (None: after it starts)."""

    line: str | None
    delay: float = 0.0


def run(directory: Path, cache: Path, moment: Moment | None = None) -> bool:
    """Run to the end, or until killed at ``moment``; whether it was."""
    root = str(PROGRAM.parents[1])
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    errors = directory.with_suffix(".err")
    with (
        open(errors, "w") as log,
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(directory)], stdout=subprocess.PIPE, stderr=log, text=True, env=env
        ) as child,
    ):
        try:
            if moment is not None:
                if moment.line is not None:
                    for line in child.stdout:
                        if line.strip() == moment.line:
                            break
                time.sleep(moment.delay)
                child.kill()
            for _ in child.stdout:
                pass
            code = child.wait(timeout=120)
        finally:
            child.kill()
    if code not in (0, -9) or (code and moment is None):
        raise AssertionError(f"the run ended with {code}:\n{errors.read_text()}")
    return code == -9


def unfinished(directory: Path) -> list[str]:
    """Names below ``steps`` that are no whole step."""
    steps = directory / STEPS
    names = [p.name for p in steps.iterdir()] if steps.is_dir() else []
    return [name for name in names if not name.isdigit()]


def reports(directory: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without the speed."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def steps_of(directory: Path) -> dict[str, Any]:
    """Everything that every saved step holds."""
    out = {}
    for step in sorted((directory / STEPS).iterdir()):
        with ocp.StandardCheckpointer() as checkpointer:
            out[step.name] = jax.device_get([checkpointer.restore(step / item) for item in (TRAINED, STATE)])
        out[step.name].append(json.loads((step / POSITION / "metadata").read_text()))
    return out


def same(first: Path, second: Path) -> None:
    """Raise an AssertionError unless two runs left the same steps, bit for bit, and the same reports."""
    jax.tree.map(np.testing.assert_array_equal, steps_of(first), steps_of(second))
    assert reports(first) == reports(second)
    for run in (first, second):
        assert not unfinished(run), unfinished(run)
        assert not [p.name for p in run.iterdir() if p.name.startswith(".") and p.name != ".lock"]
