"""Runs that change machines on their way, and runs on several processes. Minutes: set EARTHMIND_SLOW=1."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import support
from rich.console import Console

from earthmind_jax import checkpoint
from earthmind_jax.config import MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.train.loop import fit

pytestmark = pytest.mark.skipif(not os.environ.get("EARTHMIND_SLOW"), reason="slow: set EARTHMIND_SLOW=1")
TESTS = Path(__file__).parents[1]
MESHES = ((1, 8, 1), (1, 4, 1), (2, 4, 1), (2, 2, 2))


def test_training_goes_on_with_other_devices(tmp_path):
    """Two steps on each mesh give what eight steps on one device give, but for the order of sums."""
    batches = [support.scenes(start=8 * i) for i in range(4)]

    def train(directory, sizes, until):
        mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))), devices(sizes))
        config = dataclasses.replace(
            support.run_config(steps=8), mesh=MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
        )
        source, start = support.Repeat(batches), support.params(config.model)
        state = fit(
            config, directory, source, support.tokenizer(), mesh, params=start, console=Console(quiet=True), until=until
        )
        return jax.device_get(state), source.position

    def devices(sizes):
        return jax.devices()[: np.prod(sizes)]

    whole, _ = train(tmp_path / "whole", (1, 1, 1), 8)
    for number, sizes in enumerate(MESHES, 1):
        state, position = train(tmp_path / "moved", sizes, 2 * number)
        assert (int(state.step), position) == (2 * number, 2 * number)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.trainable, whole.trainable)
    np.testing.assert_array_equal(state.rng, whole.rng)


@pytest.fixture
def pair(tmp_path):
    """A function that runs two processes, sends a signal to one after the first report, and returns what they said."""

    def run(directory, steps, to=None, number=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        }
        both = [
            subprocess.Popen(
                [sys.executable, str(TESTS / "one_of_two.py"), str(i), str(port), str(directory), str(steps)],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            )
            for i in range(2)
        ]  # fmt: skip
        try:
            said = [""]
            while number is not None and "report" not in said[-1]:
                said.append(both[0].stdout.readline())
                assert said[-1], "".join(said)
            if number is not None:
                both[to].send_signal(number)
            outputs = [process.communicate(timeout=240)[0] for process in both]
        finally:
            for process in both:
                process.kill()
        assert [process.returncode for process in both] == [0, 0], outputs
        return ["".join(said) + outputs[0], outputs[1]]

    return run


def test_two_processes_agree_where_to_stop(pair, tmp_path):
    """Whichever of them is asked."""
    run, reached = tmp_path / "run", []
    for to, number in ((1, signal.SIGTERM), (0, signal.SIGINT)):
        first, second = pair(run, 100_000, to, number)
        reached.append(int(first.split("done ")[1]))
        assert int(second.split("done ")[1]) == reached[-1]
        assert f"Stopped after step {reached[-1]} of 100000" in first
    assert f"Resumed after step {reached[0]}" in first
    assert reached[1] > reached[0]
    assert sorted(int(p.name) for p in (run / checkpoint.STEPS).iterdir()) == reached
    checkpoint.load(run)
