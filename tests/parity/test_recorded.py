"""Every case of recorded PyTorch outputs, with weights through the real converter; -s prints the error of each output.

The cases are the directories below ``$EARTHMIND_GOLDENS``; a new one of a known kind needs no change here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from checkpoints_convert.verify.recorded import NOT_YET, RUNNERS, Case, Report, kind

GOLDENS = Path(os.environ.get("EARTHMIND_GOLDENS") or Path(__file__).resolve().parents[3] / "shared" / "goldens")
CASES = sorted(path for path in GOLDENS.iterdir() if (path / "outputs.npz").is_file()) if GOLDENS.is_dir() else []


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_recorded(path, record_property, request):
    name = kind(path.name)
    assert name is not None, f"no runner for '{path.name}': known kinds are {', '.join((*RUNNERS, *NOT_YET))}"
    if name in NOT_YET:
        pytest.skip(f"not yet supported: {path.name}")
    if any(path.glob("*.pth")):
        pytest.importorskip("torch", reason="PyTorch's own files are read by it")
    report = Report(Case(path))
    RUNNERS[name](report.case, report)
    table = report.table()
    print(f"\n{table}")
    record_property("errors", table)
    request.node.add_report_section("call", "errors", table)
    assert not report.problems(), "\n".join([f"{path.name}:", *report.problems()])


def test_there_are_recorded_cases():
    if not GOLDENS.is_dir():
        pytest.skip(f"needs EARTHMIND_GOLDENS, or {GOLDENS}")
    assert CASES, f"{GOLDENS} holds no case (a directory with outputs.npz)"
