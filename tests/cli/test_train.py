"""``earthmind train`` and ``result`` as a user calls them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support import refused, run

from configs import tiny
from earthmind_jax import checkpoint, cli

CONFIG = Path(tiny.__file__)


def test_train_and_resume(one_device: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Words alone and little that learns: it is the road that is shown, and compiling gradients takes the time.
    groups = '[{"pattern": "lm/(norm|head)/", "learning_rate": 1.0}, {"pattern": ".*"}]'
    given = (
        "train", CONFIG, "--out", tmp_path / "run", "--scenes", 64, "--set", "steps=4", "checkpoint_every=2",
        "--set=model.grounding=null", "--set", f"optim.groups={groups}",
    )  # fmt: skip
    code, _, err = run(capsys, *given, "--until", 2)
    assert code == 0, err
    code, out, err = run(capsys, *given, "--save", "adapters")
    assert code == 0, err
    assert "Resumed after step 2" in err
    assert f"wrote {tmp_path / 'run' / 'result'}, " in out
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    assert run(capsys, "info", tmp_path / "run", "--json")[0] == 0
    # The result at the end, and the same again from the run: both are the run's weights.
    code, out, err = run(capsys, "result", tmp_path / "run", tmp_path / "whole")
    assert (code, out.split(",")[0]) == (0, f"wrote {tmp_path / 'whole'}"), err
    weights = [
        checkpoint.load(place)[1] for place in (tmp_path / "run", tmp_path / "run" / "result", tmp_path / "whole")
    ]
    for path, x in weights[0].items():
        assert all((other[path] == x).all() for other in weights[1:]), path
    refused(capsys, "result", tmp_path / "run", tmp_path / "new", "--form", "merged", says="no LoRA adapters")
    refused(capsys, "result", tmp_path / "run", tmp_path / "whole", says="exists already")
    refused(capsys, *given, "--save", "merge", says="merged")
    refused(capsys, *given, "seed=7", says="another configuration (seed: 0 -> 7)")
    assert not (tmp_path / "new").exists()


def test_training_asks_for_huge_pages_once(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, arguments, env: started.append((arguments, env["GLIBC_TUNABLES"])))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "earthmind", "demo", "out"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    cli._restart_with_huge_pages(["ask", "demo"])
    assert started == []
    cli._restart_with_huge_pages(["demo", "out"])
    assert started == [([sys.executable, "-m", "earthmind", "demo", "out"], cli.TUNABLES)]
    monkeypatch.setenv("GLIBC_TUNABLES", "mine")
    cli._restart_with_huge_pages(["demo", "out"])
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(sys, "platform", "darwin")
    cli._restart_with_huge_pages(["demo", "out"])
    assert len(started) == 1
