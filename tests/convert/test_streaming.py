"""Conversion to a directory: what is written, how it goes on after a kill, how much memory it takes, how it fails."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import jax
import ml_dtypes
import numpy as np
import published
import pytest

from checkpoints_convert import store, streaming
from checkpoints_convert.convert import convert
from checkpoints_convert.reader import Source, open_source
from checkpoints_convert.sharded import convert_sharded
from checkpoints_convert.streaming import convert_to_checkpoint
from earthmind_jax import checkpoint
from earthmind_jax.config import FusionConfig, MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError

CONFIG = published.config(grounding=False)


@pytest.fixture
def source(tmp_path):
    weights = published.tensors("internvl", CONFIG) | published.ignored("internvl")
    return published.write(tmp_path / "source", "internvl", CONFIG, weights, shards=2)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_load_gives_what_convert_gives(tmp_path, dtype):
    weights = published.tensors("internvl", CONFIG, dtype)
    source = published.write(tmp_path / "source", "internvl", CONFIG, weights)
    seen = []
    written = convert_to_checkpoint(source, tmp_path / "out", progress=lambda *count: seen.append(count))
    config, params = checkpoint.load(tmp_path / "out")
    assert config == written
    _, expected = convert(source)
    new = set(params) - set(expected)
    assert new == {path for path in params if path.startswith("fusion/")}
    assert all(np.isfinite(np.asarray(params[path], np.float32)).all() for path in new)
    for path, array in expected.items():
        assert params[path].dtype == dtype
        np.testing.assert_array_equal(np.asarray(params[path]), array)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == sum(x.nbytes for x in weights.values())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_what_is_kept_of_the_source(source, tmp_path):
    before = published.contents(source)
    convert_to_checkpoint(source, tmp_path / "out", fusion=FusionConfig(mode="concat"), dtype=ml_dtypes.bfloat16)
    assert published.contents(source) == before
    kept = json.loads((tmp_path / "out" / "source.json").read_text())
    for file in source.glob("*.safetensors"):
        assert kept["files"][file.name]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (kept["layout"], kept["dtype"], kept["fresh"]) == ("InternVL (Qwen2)", "bfloat16", {})
    (name,) = kept["ignored"]
    assert "constant" in kept["ignored"][name]["reason"]
    _, params = checkpoint.load(tmp_path / "out")
    assert {x.dtype for x in params.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_arrays_of_several_chunks(source, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 1000)
    convert_to_checkpoint(source, tmp_path / "out")
    _, params = checkpoint.load(tmp_path / "out")
    for path, array in convert(source)[1].items():
        np.testing.assert_array_equal(np.asarray(params[path]), array)
    files = (tmp_path / "out" / "weights").rglob("*")
    assert max(file.stat().st_size for file in files if file.name[0].isdigit()) <= 3072  # the smallest row of all


def test_no_stacked_array_is_ever_whole(source, tmp_path, monkeypatch):
    """What is read and not yet written is at most the budget, or one tensor."""
    largest = max(np.prod(info.shape) * info.dtype.itemsize for info in open_source(source).index.values())
    monkeypatch.setattr(streaming, "IN_FLIGHT", 1)
    alive, peak = [0], [0]
    read, journalled = Source.read, streaming.Journal.add

    def counted(self, name, region=...):
        array = read(self, name, region)
        alive[0] += array.nbytes
        peak[0] = max(peak[0], alive[0])
        return array

    def finished(self, part, note=None):
        alive[0] = 0 if part.startswith("tensor ") else alive[0]
        journalled(self, part, note)

    monkeypatch.setattr(Source, "read", counted)
    monkeypatch.setattr(streaming.Journal, "add", finished)
    convert_to_checkpoint(source, tmp_path / "out")
    assert 0 < peak[0] <= largest


INTERRUPTED = """
    import sys, time
    from checkpoints_convert import streaming
    from checkpoints_convert.journal import Journal

    add, count = Journal.add, [0]

    def slow(self, part, note=None):
        add(self, part, note)
        count[0] += part.startswith("tensor ")
        if count[0] == 20:
            print("now", flush=True)
        if count[0] >= 20:
            time.sleep(60)

    Journal.add = slow
    streaming.convert_to_checkpoint(sys.argv[1], sys.argv[2])
"""


def test_a_kill_loses_nothing_that_was_finished(source, tmp_path, monkeypatch):
    before, out = published.contents(source), tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "now\n"
        with pytest.raises(UserError, match="Another conversion is writing"):
            convert_to_checkpoint(source, out)
        child.send_signal(signal.SIGKILL)
    partial = tmp_path / ".out.partial"
    assert partial.is_dir()
    for place in (out, partial):
        with pytest.raises(UserError, match=r"does not exist|not a checkpoint"):
            checkpoint.load(place)
    with open(partial / "journal.jsonl", "a") as journal:
        journal.write('["tensor vision_mo')  # what a kill in the middle of a line leaves
    done = [json.loads(line)[0] for line in (partial / "journal.jsonl").read_text().splitlines()[1:-1]]
    done = {part.removeprefix("tensor ") for part in done if part.startswith("tensor ")}
    assert len(done) >= 20
    asked, read = [], Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, name, region=...: (asked.append(name), read(self, name, region))[1]
    )
    convert_to_checkpoint(source, out)
    assert done.isdisjoint(asked)
    assert done | set(asked) == set(open_source(source).index)
    _, params = checkpoint.load(out)
    for path, array in convert(source)[1].items():
        np.testing.assert_array_equal(np.asarray(params[path]), array)
    assert published.contents(source) == before
    assert not partial.exists()


def test_other_work_does_not_go_on_from_a_journal(source, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "keep_ignored", stop)
        with pytest.raises(Stop):
            convert_to_checkpoint(source, tmp_path / "out")
    time.sleep(0.01)
    first = open_source(source).files[0]
    first.write_bytes(first.read_bytes()[:-1] + b"\x7f")  # the last byte of a number
    convert_to_checkpoint(source, tmp_path / "out")
    _, params = checkpoint.load(tmp_path / "out")
    for path, array in convert(source)[1].items():
        np.testing.assert_array_equal(np.asarray(params[path]), array)


def test_a_source_that_changes_meanwhile(source, tmp_path, monkeypatch):
    def change(*arguments):
        with open(source / "model-00001-of-00002.safetensors", "ab") as file:
            file.write(b" ")
        return {}

    monkeypatch.setattr(streaming, "keep_ignored", change)
    with pytest.raises(UserError, match="changed while it was converted"):
        convert_to_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (8, 1, 1)])
def test_each_shard_reads_its_own_bytes(source, sizes, monkeypatch):
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    _, expected = convert(source)
    total, read = [0], Source.read

    def counted(self, name, region=...):
        array = read(self, name, region)
        total[0] += array.size
        return array

    monkeypatch.setattr(Source, "read", counted)
    _, params = convert_sharded(source, mesh)
    assert set(params) == set(expected)
    assert total[0] == sum(array.size for array in expected.values())  # nothing twice, nothing in vain
    for path, array in params.items():
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(np.asarray(array), expected[path])
    split = [path for path, array in params.items() if not array.sharding.is_fully_replicated]
    assert bool(split) == (sizes != (8, 1, 1))
