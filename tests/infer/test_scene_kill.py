"""A run over a scene that is killed at several moments, each time by the system, ends as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scenes

from earthmind_jax.infer.scene_store import PLACE

MOMENTS = (("windows 12", signal.SIGKILL), ("windows 8", signal.SIGTERM))  # of one start; four in a row


def start(folder: Path, out: Path) -> subprocess.Popen:
    root = Path(scenes.__file__).parents[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return subprocess.Popen(
        [sys.executable, scenes.__file__, str(folder), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=env,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_and_continued(tmp_path):
    scenes.write(tmp_path, "a", (250, 101))
    for line, number in MOMENTS:
        with start(tmp_path, tmp_path / "out") as child:
            assert any(said.strip() == line for said in child.stdout)
            child.send_signal(number)
            assert "finished" not in child.stdout.read()
            assert child.wait(timeout=60) == -number
        assert (tmp_path / "out" / PLACE).is_dir()
    for out in ("out", "whole"):
        with start(tmp_path, tmp_path / out) as child:
            assert "finished" in child.stdout.read()
            assert child.wait(timeout=120) == 0
    assert scenes.contents(tmp_path / "out") == scenes.contents(tmp_path / "whole")
