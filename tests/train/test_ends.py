"""How runs end before their time: losses that are not finite, divergence, signals; what was good is kept."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import signal
import threading

import jax
import numpy as np
import pytest
import support
from rich.console import Console

from earthmind_jax import checkpoint
from earthmind_jax.config import GuardConfig, MeshConfig
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.train.guard import Guard
from earthmind_jax.train.loop import fit
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step
from earthmind_jax.train.stop import on_signal
from earthmind_jax.train.watch import CLOCKED

RUN = support.run_config(checkpoint_every=2)
QUIET = Console(quiet=True)


class Spoilt(support.Repeat):
    """Batches of which the one of step ``bad`` has two samples with a pixel that is not a number."""

    def __init__(self, batches, bad, rows=(1, 6)):
        super().__init__(batches)
        self.bad, self.rows, self.last_ids = bad, list(rows), ()

    def __next__(self):
        batch = super().__next__()
        self.last_ids = tuple(f"scene-{self.position}-{row}" for row in range(8))
        if self.position == self.bad:
            optical, sar = batch.optical.copy(), batch.sar.copy()
            optical[self.rows, 0, 3, 4, 1], sar[self.rows, 0, 3, 4, 1] = np.nan, np.nan
            batch = batch.replace(optical=optical, sar=sar)
        return batch


@functools.cache
def batches():
    return tuple(support.scenes(start=8 * i) for i in range(2))


@pytest.fixture(scope="module")
def compiled():
    """(mesh, the step compiled once for all runs here)."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        _, shardings = create(RUN, mesh, support.params(RUN.model))
        return mesh, compile_step(RUN, mesh, shardings)


def train(directory, source, compiled, config=RUN):
    mesh, step = compiled
    start = support.params(RUN.model)
    return fit(
        config, directory, source, support.tokenizer(), mesh, params=start, console=QUIET, report_every=3,
        step_fn=lambda: step,
    )  # fmt: skip


def test_a_spoilt_sample_is_named_and_its_step_not_kept(tmp_path, compiled):
    with pytest.raises(
        WorkError, match=r"loss is not finite at step 4; lower .*: not finite for scene-4-1, scene-4-6\. Nothing"
    ) as error:
        train(tmp_path / "run", Spoilt(batches(), bad=4), compiled)
    assert "\n" not in str(error.value)
    # Step 4 would have been saved: the last good one is the newest there is, and the run goes on from it.
    assert [p.name for p in (tmp_path / "run" / checkpoint.STEPS).iterdir()] == ["2"]
    state = train(tmp_path / "run", Spoilt(batches(), bad=None), compiled)
    assert int(state.step) == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]


def test_the_state_stays_where_the_loss_is_not_finite(compiled):
    mesh, step = compiled
    with jax.set_mesh(mesh):
        state, _ = create(RUN, mesh, support.params(RUN.model))
        before = jax.device_get(state)
        after, metrics = step(state, put_batch(next(Spoilt(batches(), bad=1)), mesh))
        assert not np.isfinite(float(metrics["loss"]))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), before)
        again, metrics = step(after, put_batch(batches()[0], mesh))
    assert np.isfinite(float(metrics["loss"]))
    assert int(again.step) == 1


def test_weights_at_fault_are_told_from_samples(tmp_path, compiled):
    with pytest.raises(WorkError, match=r"step 1; .*every sample is affected \(scene-1-0, scene-1-1, .*, scene-1-7\)"):
        train(tmp_path / "run", Spoilt(batches(), bad=1, rows=range(8)), compiled)
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.load(tmp_path / "run")


def judge(losses, **limits):
    """Steps judged before the guard stopped, whether it did, and whether it was in doubt at the end."""
    guard = Guard(dataclasses.replace(RUN, guard=GuardConfig(**limits)), None)
    for step, loss in enumerate(losses, 1):
        try:
            guard.report(step, loss)
        except WorkError as error:
            return step, str(error)
    return len(losses), guard.doubtful


def test_divergence():
    usual = [2.0, 1.5, 1.2, 1.1, 1.0]
    step, text = judge([*usual, 20, 30, 40], divergence=10, reports=3)
    assert step == 8
    assert "diverged: at step 8 it is 40, for 3 reports in a row more than 10 times its median 1.2;" in text
    assert judge([*usual, 20, 30], divergence=10, reports=3) == (7, True)
    assert judge([*usual, 20, 30, 1, 20, 30, 1], divergence=10, reports=3) == (11, False)
    assert judge([*usual, 11, 11, 11, 11], divergence=10, reports=3) == (9, False)
    assert judge([*usual, 1e9, 1e9, 1e9, 1e9], divergence=0, reports=3) == (9, False)
    assert judge([1.0, 50, 50, 50], divergence=10, reports=3) == (4, False)  # too few to know what is usual
    # The median is a running one: a loss that rose slowly is judged by what it is now.
    assert judge([*[0.1] * 9, *[0.9] * 9, 5, 5, 5], divergence=10, reports=3, window=6) == (21, False)


def test_a_resumed_run_judges_as_one_that_was_not_interrupted():
    losses = [2.0, 1.5, 1.2, 1.1, 1.0, 20.0, 30.0]
    guard = Guard(dataclasses.replace(RUN, guard=GuardConfig(divergence=10, reports=3)), None, losses)
    assert guard.doubtful
    with pytest.raises(WorkError, match="for 3 reports in a row"):
        guard.report(8, 40.0)


def test_a_doubtful_state_does_not_replace_a_good_one(tmp_path, compiled):
    """The step reports a loss of 500 from the fourth on; everything else is a run as usual."""
    mesh, step = compiled
    high = {"loss": jax.numpy.float32(500.0)}

    def jumps(state, batch):
        state, metrics = step(state, batch)
        return state, metrics | (high if int(state.step) > 3 else {})

    config = dataclasses.replace(RUN, steps=12, checkpoint_every=1, guard=GuardConfig(divergence=10, reports=3))
    with pytest.raises(WorkError, match="The loss diverged: at step 6"):
        fit(
            config, tmp_path, support.Repeat(batches()), support.tokenizer(), mesh, params=support.params(RUN.model),
            console=QUIET, report_every=1, step_fn=lambda: jumps,
        )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / checkpoint.STEPS).iterdir()) == ["2", "3"]


def test_the_pipeline_knows_the_ids_of_its_batches():
    config = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, batch_size=4, text_length=128))
    samples = [support.sample(i) for i in range(12)]
    source = training_pipeline(config, samples, support.tokenizer(), shuffle=False)
    assert source.last_ids == ()
    next(source)
    assert source.last_ids == tuple(f"sample-{i}" for i in range(4))
    source.set_state({"batches": 2})
    next(source)
    assert source.last_ids == tuple(f"sample-{i}" for i in range(8, 12))


def signalled(directory, compiled, at_report=None):
    """(final state, what was said) of a run in which ``at_report`` may send a signal."""
    mesh, step = compiled
    console = Console(record=True, file=io.StringIO(), width=200)
    state = fit(
        dataclasses.replace(RUN, checkpoint_every=100), directory, support.Repeat(batches()), support.tokenizer(), mesh,
        params=support.params(RUN.model), console=console, report_every=2, on_report=at_report, step_fn=lambda: step,
    )  # fmt: skip
    return jax.device_get(state), console.export_text()


@pytest.fixture(scope="module")
def whole(compiled, tmp_path_factory):
    """(directory, final state) of a run that nothing stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, signalled(directory, compiled)[0]


def reports(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]


def send(number, at):
    return lambda step, values: step == at and signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_well(compiled, whole, tmp_path, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    state, said = signalled(tmp_path / "run", compiled, send(number, 2))
    assert int(state.step) == 2
    assert f"Stopped after step 2 of 6, which is saved in {tmp_path}" in said
    assert "the same command again goes on" in said
    assert [p.name for p in (tmp_path / "run" / checkpoint.STEPS).iterdir()] == ["2"]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    state, said = signalled(tmp_path / "run", compiled)
    assert "Resumed after step 2" in said
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])
    assert reports(tmp_path / "run") == reports(whole[0])


def test_ctrl_c_twice_interrupts_at_once(compiled, tmp_path):
    def twice(step, values):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signalled(tmp_path / "run", compiled, twice)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "run" / checkpoint.STEPS).iterdir()) == []


def test_a_signal_in_the_last_step_changes_nothing(compiled, whole, tmp_path):
    state, said = signalled(
        tmp_path / "run", compiled, lambda step, values: step == 6 and signal.raise_signal(signal.SIGTERM)
    )
    assert "Stopped" not in said
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_outside_the_main_thread_nothing_is_handled():
    seen = []

    def inside():
        with on_signal() as stop:
            seen.append((stop.after(1), signal.getsignal(signal.SIGTERM)))
            stop.ask()
            seen.append(stop.after(2))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [(False, before), True]
