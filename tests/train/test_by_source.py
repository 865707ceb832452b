"""Reports of a mixture: samples and losses of each source, of all steps since the last report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal

import jax
import numpy as np
import pytest
import support
from rich.console import Console

from earthmind_jax.config import Group, MeshConfig, SourceConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.train.by_source import Tally
from earthmind_jax.train.loop import fit
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step
from earthmind_jax.train.watch import CLOCKED

NAMES = ("words", "pairs", "rest")
GROUPS = (Group(pattern="lm/norm/", learning_rate=1.0), Group(pattern=".*"))
RUN = support.run_config(groups=GROUPS, steps=5, checkpoint_every=100)
DATA = {"batch_size": 4, "sources": tuple(SourceConfig(simulated=1, name=name) for name in NAMES)}
RUN = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, **DATA))


class Mixed(support.Repeat):
    names = NAMES


@pytest.fixture(scope="module")
def train():
    """A function that trains in a directory and returns its reports, and the batches."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    batches = [support.scenes(count=4, start=4 * i) for i in range(5)]
    batches = [b.replace(source=np.array([0, 0, i % 2, 1], np.int32)) for i, b in enumerate(batches)]
    with jax.set_mesh(mesh):
        step = compile_step(RUN, mesh, create(RUN, mesh, support.params(RUN.model))[1])

    def run(directory):
        start, options = support.params(RUN.model), {"console": Console(quiet=True), "report_every": 2}
        fit(RUN, directory, Mixed(batches), support.tokenizer(), mesh, params=start, step_fn=lambda: step, **options)
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]

    return run, batches


def test_reports_say_what_each_source_gave(train, tmp_path, monkeypatch):
    run, batches = train
    whole = run(tmp_path / "whole")
    counts = [[line.get(f"samples/{name}") for name in NAMES] for line in whole]
    assert counts == [[5, 3, 0], [5, 3, 0], [3, 1, 0]]
    last = whole[-1]  # of one step: its loss is the mean of its sources', by tokens
    tokens = [int(np.roll(b.loss_mask, -1, 1)[:, :-1][b.source == s].sum()) for b in batches[4:] for s in (0, 1)]
    np.testing.assert_allclose(
        last["text"], (last["text/words"] * tokens[0] + last["text/pairs"] * tokens[1]) / sum(tokens), rtol=1e-5
    )
    assert not any(name.startswith(("text/rest", "by source")) for line in whole for name in line)
    # Interrupted between two reports, the next tells of the steps before as well.
    took, steps = Tally.took, itertools.count(1)

    def interrupted(tally, metrics):
        took(tally, metrics)
        if next(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Tally, "took", interrupted)
    assert [line["step"] for line in run(tmp_path / "cut")] == [2]
    assert run(tmp_path / "cut") == whole


def test_a_source_without_the_loss_has_none():
    tally = Tally(("a", "b"))
    tally.took(
        {"loss": 1.0, "by source: samples": np.array([[3, 3], [1, 1]]), "by source: bce": np.array([[0, 0], [6, 4]])}
    )
    assert tally.report() == {"samples/a": 3, "samples/b": 1, "bce/b": 1.5}
    assert tally.report() == {}
    assert Tally().report() == {}
