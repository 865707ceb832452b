"""A run over a large scene that is broken off, killed or in another's way: it goes on, and the files are the same."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
import scenes

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.infer.scene import OVERLAP
from earthmind_jax.infer.scene_store import PLACE, Store
from earthmind_jax.infer.windows import Lattice


@pytest.fixture(scope="module")
def dense(pair, folder):
    """One uninterrupted run in which four windows share a pixel of a column."""
    return scenes.draw(pair, folder / "dense", weights=True, overlap=0.75)


@pytest.mark.parametrize(("kind", "overlap", "stop"), [("whole", OVERLAP, 1), ("whole", OVERLAP, 2),
                                                       ("whole", OVERLAP, 4), ("dense", 0.75, 5)])  # fmt: skip
def test_broken_off_and_continued(kind, overlap, stop, pair, tmp_path, request):
    """After any row of windows; a half-written last line is as if it were not there."""
    whole = request.getfixturevalue(kind)
    out, rows = tmp_path / "out", []

    def report(*facts):
        rows.append(facts)
        if len(rows) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scenes.draw(pair, out, weights=True, overlap=overlap, report=report)
    assert not (out / "answer.json").exists()
    with open(out / PLACE / "rows.jsonl", "a") as log:
        log.write('{"row": 99, "pix')
    rows.clear()
    scenes.draw(pair, out, weights=True, overlap=overlap, report=lambda *facts: rows.append(facts))
    lattice = Lattice.of((101, 150), 32, overlap, 8)
    kept = lattice.next_top(stop - 2) if stop > 1 else 0  # the last rows may have been on their way to the disk
    assert len(rows) <= len(lattice.rows) - lattice.first_row(kept)
    assert scenes.contents(out) == scenes.contents(whole.out)


def test_broken_off_while_the_maps_are_written(pair, whole, tmp_path, monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", fail)
        with pytest.raises(KeyboardInterrupt):
            scenes.draw(pair, tmp_path / "out", weights=True)
    (tmp_path / "out" / "answer.json").unlink()
    assert scenes.draw(pair, tmp_path / "out", weights=True).seconds["maps"] > 0
    assert scenes.contents(tmp_path / "out") == scenes.contents(whole.out)


def start(folder, out):
    """The same run in a process of its own, which waits for a line after each row of windows."""
    root = Path(scenes.__file__).parents[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    program = [sys.executable, scenes.__file__, str(folder), str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(program, **pipes, text=True, env=env)


def until(child, line):
    """Let it go on until it says ``line``; whether it did."""
    for said in child.stdout:
        if said.strip() == line:
            return True
        child.stdin.write("\n")
        child.stdin.flush()
    return False


@pytest.mark.slow
def test_killed_by_the_system_and_continued(folder, whole, tmp_path):
    out = tmp_path / "out"
    for line, number in (("windows 18", signal.SIGKILL), ("windows 9", signal.SIGTERM)):  # windows of one start
        with start(folder, out) as child:
            assert until(child, line)
            child.send_signal(number)
            assert "finished" not in child.stdout.read()
            assert child.wait(timeout=60) == -number
        assert (out / PLACE).is_dir()
    with start(folder, out) as child:
        assert until(child, "finished")
        assert child.wait(timeout=120) == 0
    assert scenes.contents(out) == scenes.contents(whole.out)


def test_a_finished_run_is_not_repeated_and_another_is_refused(pair, whole):
    before = scenes.contents(whole.out)
    (whole.out / PLACE).mkdir()  # killed before it was removed
    again = scenes.draw(pair, whole.out, weights=True)
    assert again.answer == whole.answer
    with pytest.raises(UserError, match="another targets and questions"):
        scenes.draw(pair, whole.out, weights=True, targets=("ship", "lake"))
    with pytest.raises(UserError, match="another overlap"):
        scenes.draw(pair, whole.out, weights=True, overlap=0.25)
    with pytest.raises(UserError, match="another window"):
        scenes.draw(pair, whole.out, weights=True, window=64)
    assert scenes.contents(whole.out) == before


def test_other_results_are_not_overwritten(pair, tmp_path):
    scenes.model().segment("lake", **pair).save(tmp_path)
    before = scenes.contents(tmp_path)
    with pytest.raises(UserError, match="holds other results"):
        scenes.draw(pair, tmp_path, targets=("lake",))
    assert scenes.contents(tmp_path) == before


def test_two_runs_in_one_directory(pair, tmp_path):
    def report(*facts):
        with pytest.raises(UserError, match="in use by another run"):
            scenes.draw(pair, tmp_path / "out", targets=("lake",))

    scenes.draw(pair, tmp_path / "out", targets=("lake",), report=report)


def test_a_block_that_breaks_on_the_way_keeps_what_is_finished(tmp_path):
    """The file's last rows become unreadable after the run has begun."""
    pair = scenes.write(tmp_path, "bad", (2200, 32))
    path = pair["optical"]
    with rasterio.open(path) as dataset:
        place = [int(dataset.get_tag_item(f"BLOCK_{what}_0_4", "TIFF", bidx=4)) for what in ("OFFSET", "SIZE")]

    def report(*facts):
        with open(path, "r+b") as file:
            file.seek(place[0])
            file.write(b"\xff" * place[1])

    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"bad_s2\.tif is damaged or cut short"):
        scenes.draw(pair, out, targets=("lake",), overlap=0.0, report=report)
    assert 400 < json.loads((out / PLACE / "rows.jsonl").read_text().splitlines()[-1])["pixels"] < 2048
    assert sorted(p.name for p in out.iterdir()) == [PLACE]


def test_a_full_disk_keeps_what_is_finished(pair, whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"picture_optical\.raw: File too large"):
            scenes.draw(pair, tmp_path / "out", weights=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "out" / PLACE / "rows.jsonl").read_text().splitlines()[-1])["pixels"] > 0
    scenes.draw(pair, tmp_path / "out", weights=True)
    assert scenes.contents(tmp_path / "out") == scenes.contents(whole.out)
