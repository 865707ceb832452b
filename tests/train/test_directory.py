"""A run's directory: one run at a time, one configuration, and a history without gaps or repeats."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import support

from earthmind_jax.config import MeshConfig, to_dict
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.train.checkpoint import start_run
from earthmind_jax.train.directory import LOCK, differences, held
from earthmind_jax.train.history import History

RUN = support.run_config()
HOLD = """
import sys, time
from pathlib import Path
from earthmind_jax.train.directory import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_cannot_have_one_directory(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"run is in use by another training run .process {other.pid}.; wait"),
            held(tmp_path / "run"),
        ):
            pass
        other.kill()
    with held(tmp_path / "run"):  # the other died: no lock is left behind
        assert (tmp_path / "run" / LOCK).read_text() == f"{os.getpid()}\n"
        with pytest.raises(UserError, match="in use"), held(tmp_path / "run"):
            pass
    with held(tmp_path / "run"):
        pass


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WorkError, match="Could not write"), held(place):
            pass


def test_what_differs_is_named(tmp_path):
    start_run(tmp_path, RUN, support.tokenizer())
    optim = dataclasses.replace(RUN.optim, learning_rate=0.5, betas=(0.8, 0.9))
    other = dataclasses.replace(RUN, seed=1, optim=optim)
    with pytest.raises(UserError) as error:
        start_run(tmp_path, other, support.tokenizer())
    assert (
        "another configuration (optim.learning_rate: 0.001 -> 0.5; optim.betas: [0.9, 0.999] -> [0.8, 0.9]; "
        "seed: 0 -> 1); set the same"
    ) in str(error.value)
    assert json.loads((tmp_path / "run.json").read_text()) == to_dict(RUN)


def test_what_changes_nothing_may_change(tmp_path):
    start_run(tmp_path, RUN, support.tokenizer())
    free = dataclasses.replace(
        RUN,
        mesh=MeshConfig(data=1, fsdp=4),
        keep=7,
        keep_period=100,
        checkpoint_every=5,
        data=dataclasses.replace(RUN.data, workers=3),
        guard=dataclasses.replace(RUN.guard, divergence=3.0),
    )
    start_run(tmp_path, free, support.tokenizer())
    assert json.loads((tmp_path / "run.json").read_text()) == to_dict(free)


def test_a_configuration_of_before_a_field_was_there(tmp_path):
    start_run(tmp_path, RUN, support.tokenizer())
    values = json.loads((tmp_path / "run.json").read_text())
    del values["optim"]["clip"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    start_run(tmp_path, RUN, support.tokenizer())
    with pytest.raises(UserError, match=r"optim.clip: 1.0 -> 2.0"):
        start_run(
            tmp_path, dataclasses.replace(RUN, optim=dataclasses.replace(RUN.optim, clip=2.0)), support.tokenizer()
        )
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        start_run(tmp_path, RUN, support.tokenizer())


def test_many_differences_are_counted():
    first, second = {"a": dict.fromkeys(map(str, range(9)), 0)}, {"a": dict.fromkeys(map(str, range(9)), 1)}
    assert differences(first, second)[-2:] == ["a.4: 0 -> 1", "and 4 more"]
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a: null -> absent", "a.b: absent -> 1"]
    assert differences({"keeper": 1}, {"keeper": 2}) == ["keeper: 1 -> 2"]  # not the free field "keep"
    assert differences({"x": "y" * 99}, {"x": 1})[0] == f'x: "{"y" * 56}... -> 1'


def test_a_start_that_was_killed_is_begun_again(tmp_path):
    """The tokenizer half-written, and temporary files of every kind."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"half')
    (tmp_path / ".tokenizer.abc").mkdir()
    (tmp_path / ".run.json.abc").write_text("{")
    (tmp_path / ".metrics.jsonl.abc").write_text("{")
    start_run(tmp_path, RUN, support.tokenizer())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "run.json", "source.json", "tokenizer"]
    assert type(support.tokenizer()).load(tmp_path / "tokenizer").encode("[SEG]") == support.tokenizer().encode("[SEG]")


def lines(*steps):
    return "".join(f'{{"step": {step}, "loss": 1.5}}\n' for step in steps)


@pytest.mark.parametrize(
    ("before", "done", "after"),
    [
        (lines(2, 4, 6), 4, lines(2, 4)),
        (lines(2, 4, 6), 6, lines(2, 4, 6)),
        (lines(2, 4, 6), 5, lines(2, 4)),
        (lines(2, 4) + '{"step": 6, "lo', 4, lines(2, 4)),
        (lines(2, 4).rstrip("\n"), 4, lines(2, 4)),
        (lines(2, 4), 0, ""),
        (None, 0, ""),
    ],
)
def test_reports_after_the_restored_step_are_forgotten(tmp_path, before, done, after):
    path = tmp_path / "metrics.jsonl"
    if before is not None:
        path.write_text(before)
    with History(path, done) as history:
        assert path.read_text() == after
        assert history.losses() == [1.5] * after.count("step")
        history.add({"step": done + 1, "loss": 1.5})
        history.sync()
    assert path.read_text() == after + lines(done + 1)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence():
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    history = History(None, 0)
    history._path, history._file = Path("/dev/full"), open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(WorkError, match="Could not write /dev/full: No space left on device; free space"):
        history.add({"step": 1})
