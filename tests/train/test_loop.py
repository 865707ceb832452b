"""``fit``: reproducible, resumable to the bit, and plain about what is wrong."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import support
from rich.console import Console

from earthmind_jax import checkpoint
from earthmind_jax.config import MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.train.loop import check_batch, fit
from earthmind_jax.train.watch import CLOCKED

RUN = support.run_config()
QUIET = Console(quiet=True)


@functools.cache
def batches():
    return tuple(support.scenes(start=8 * i) for i in range(4))


def train(directory, config=RUN, **options):
    source, mesh = support.Repeat(batches()), make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    options = {"params": support.params(RUN.model), "console": QUIET, "report_every": 2, **options}
    return jax.device_get(fit(config, directory, source, support.tokenizer(), mesh, **options))


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, final state) of six steps in one go."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    return directory, train(directory)


def reports(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def test_every_report_is_a_line(whole):
    lines = reports(whole[0])
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert set(lines[0]) == {"step", "text", "loss", "grad_norm", "padding"}
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_run_is_a_checkpoint(whole):
    directory, state = whole
    config, params = checkpoint.load(directory)
    assert config == RUN.model
    equal(dict(params), dict(state.params))


def test_the_same_seed_gives_the_same_run(whole, tmp_path):
    equal(train(tmp_path / "again"), whole[1])
    assert reports(tmp_path / "again") == reports(whole[0])


def test_resuming_is_exact(whole, tmp_path):
    seen = []
    half = train(tmp_path / "run", until=3, on_report=lambda step, values: seen.append(step))
    assert (int(half.step), seen) == (3, [2, 3])
    # The parameters to start from no longer matter: the run's own state is read.
    equal(train(tmp_path / "run", params=None), whole[1])
    assert reports(tmp_path / "run")[-1] == reports(whole[0])[-1]


def test_a_finished_run_does_nothing_more(whole):
    equal(train(whole[0]), whole[1])
    assert len(reports(whole[0])) == 3


def test_another_configuration_is_refused(whole):
    with pytest.raises(UserError, match="another configuration"):
        train(whole[0], dataclasses.replace(RUN, seed=1))


def test_the_batch_must_divide_over_the_mesh(tmp_path):
    config = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=6))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with pytest.raises(UserError, match="batch_size 6 does not divide over 4 batch shards"):
        fit(config, tmp_path / "run", support.Repeat(batches()), support.tokenizer(), mesh, console=QUIET)
    assert list(tmp_path.iterdir()) == []
    check_batch(dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=12)), mesh)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    bad = dict(support.params(RUN.model))
    bad["lm/norm/scale"] = bad["lm/norm/scale"] * np.nan
    with pytest.raises(WorkError, match=r"not finite at step 1; lower optim\.learning_rate"):
        train(tmp_path / "run", params=bad)
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.load(tmp_path / "run")
