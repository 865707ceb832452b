"""Processes of one run find each other, agree on what they train, and give the numbers of one process alone."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from earthmind_jax import checkpoint
from earthmind_jax.distributed import start as starting
from earthmind_jax.distributed.mesh import inner_shape
from earthmind_jax.distributed.rendezvous import meet
from earthmind_jax.distributed.start import address, start
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.train.run import load_config, run

LAUNCHED = ("SLURM_", "OMPI_", "KUBERNETES_SERVICE_HOST", "TPU_WORKER_HOSTNAMES", "MEGASCALE_", "JAX_COORDINATOR")
REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = """
    import dataclasses

    from configs import tiny
    from earthmind_jax.config import Group, MeshConfig


    def get_config():
        run = tiny.get_config()
        vision = dataclasses.replace(run.model.vision, depth=1, width=16, mlp=32)
        lm = dataclasses.replace(run.model.lm, depth=1, width=32, mlp=64)
        return dataclasses.replace(
            run,
            model=dataclasses.replace(run.model, vision=vision, lm=lm, grounding=None, max_length=1024),
            data=dataclasses.replace(run.data, text_length=256, turns=1),
            optim=dataclasses.replace(run.optim, groups=(Group(pattern=".*", learning_rate=1.0),)),
            mesh=MeshConfig(data=2, fsdp=2, tensor=2),
            steps=20,
            checkpoint_every=20,
        )
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher started this process."""
    for name in list(os.environ):
        if name.startswith(LAUNCHED):
            monkeypatch.delenv(name)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_addresses():
    assert address("node7:1234") == ("node7", 1234)
    assert address("[::1]:80") == ("::1", 80)
    for wrong in ("node7", "node7:", ":80", "node7:http", "node7:0", "node7:70000", ""):
        with pytest.raises(UserError, match="HOST:PORT with a port from 1 to 65535"):
            address(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "also need --coordinator HOST:PORT"),
        ((None, None, 1), "also need --coordinator HOST:PORT"),
        (("host:80", 2, None), "also needs --processes .* and --process"),
        (("host:80", None, 0), "also needs --processes .* and --process"),
        (("host:80", 2, 2), "--process 2 does not exist among 2 processes"),
        (("host:80", 2, -1), "--process -1 does not exist"),
        (("host:80", 0, 0), "--processes must be at least 1, not 0"),
        (("host", 2, 0), "HOST:PORT"),
        (("auto", None, None), "jax could not start on many processes .*--processes 1 for one process alone"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        start(*arguments)


def test_one_process_alone_joins_nobody(monkeypatch):
    start()
    start(processes=1)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a shell inside an allocation is no step of several processes
    start()


def test_what_started_the_processes(monkeypatch):
    assert starting._launcher() is None
    several = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "node[1-2]"}
    for name, environment in (
        ("SLURM", several),
        ("Open MPI", dict.fromkeys(starting.RANKS["Open MPI"], "2")),
        ("Kubernetes", {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}),
        ("TPU", {"TPU_WORKER_HOSTNAMES": "t0,t1"}),
    ):
        with monkeypatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            assert starting._launcher() == name
            start(processes=1)
    for key, value in (several | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(key, value)
    assert starting._launcher() is None


def test_a_launcher_that_does_not_say_enough(monkeypatch):
    for name in starting.RANKS["Open MPI"]:  # as Open MPI 5, which names no address
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=r"Open MPI started several processes, but jax .* say --coordinator"):
        start()


def together(*calls):
    """The errors (or None) of ``meet`` called at the same time with each of ``calls``."""
    errors = [None] * len(calls)

    def one(i):
        try:
            meet(*calls[i])
        except (UserError, WorkError) as error:
            errors[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return errors


def test_processes_meet():
    port = free_port()
    # The coordinator's address is known by several names, and someone else may knock.
    knocking = threading.Timer(0.1, lambda: socket.create_connection(("127.0.0.1", port)).sendall(b"GET / HTTP/1.1\n"))
    knocking.start()
    hosts = ("127.0.0.1", "localhost", "127.0.0.1")
    assert together(*((host, port, 3, i, 20.0) for i, host in reversed(list(enumerate(hosts))))) == [None] * 3
    knocking.cancel()
    meet("127.0.0.1", port, 1, 0, 1.0)  # the port is free again


def test_processes_that_do_not_agree():
    port = free_port()
    errors = together(("127.0.0.1", port, 2, 0, 20.0), ("127.0.0.1", port, 3, 1, 20.0))
    assert [str(e) for e in errors] == ["Process 1 was started with --processes 3, process 0 with 2."] * 2
    errors = together(("127.0.0.1", port, 3, 0, 20.0), *[("127.0.0.1", port, 3, 1, 20.0)] * 2)
    assert [str(e) for e in errors] == ["Two processes were started with --process 1."] * 3
    assert {type(e) for e in errors} == {UserError}


def test_processes_that_do_not_come():
    port = free_port()
    waiting, other = together(("127.0.0.1", port, 3, 0, 1.0), ("127.0.0.1", port, 3, 1, 1.5))
    assert isinstance(waiting, WorkError)
    assert f"Only 2 of 3 processes came to 127.0.0.1:{port} within 1 s; missing: 2." in str(waiting)
    assert isinstance(other, WorkError)
    assert "did not all meet" in str(other)
    with socket.create_server(("", port)), pytest.raises(UserError, match=f"cannot listen on port {port}"):
        meet("127.0.0.1", port, 2, 0, 1.0)


def test_neighbours_share_tensor_then_fsdp():
    assert inner_shape((2, 2, 2), 4) == (1, 2, 2)
    assert inner_shape((1, 8, 1), 4) == (1, 4, 1)
    assert inner_shape((4, 1, 2), 4) == (2, 1, 2)
    assert inner_shape((2, 8, 16), 8) == (1, 1, 8)
    assert inner_shape((8, 16, 2), 8) == (1, 4, 2)
    assert inner_shape((2, 9, 4), 6) == (1, 3, 2)
    for sizes in itertools.product((1, 2, 3, 6, 8), repeat=3):
        for near in (n for n in range(1, math.prod(sizes) + 1) if math.prod(sizes) % n == 0):
            inner = inner_shape(sizes, near)
            assert math.prod(inner) == near
            assert all(size % part == 0 for size, part in zip(sizes, inner, strict=True)), (sizes, near, inner)


def in_processes(tmp_path, *options, out="run", count=2, devices=4):
    """(exit code, standard error) of each process of ``earthmind train`` on virtual devices of this machine."""
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    fixed = {"XLA_FLAGS": flags, "GLIBC_TUNABLES": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "config.py").write_text(textwrap.dedent(CONFIG))
    code = "from earthmind_jax.cli import main; main()"
    coordinator = f"127.0.0.1:{free_port()}"
    running = []
    for number in range(count):
        own = [str(o[number]) if isinstance(o, tuple) else str(o) for o in options]
        joined = ["--coordinator", coordinator, "--processes", str(count), "--process", str(number)]
        line = ["train", str(tmp_path / "config.py"), "--out", str(tmp_path / out), "--scenes", "32", *joined, *own]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *line],
                env=os.environ | fixed | {"PYTHONPATH": paths},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, out + error) for process, (out, error) in zip(running, said, strict=True)]


def losses(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    return np.array([[line["loss"], line["grad_norm"]] for line in lines])


def test_two_processes_train_as_one(tmp_path):
    outcome = in_processes(tmp_path, "--report-every", 1, "--save", "full")
    assert [code for code, _ in outcome] == [0, 0], "\n".join(text for _, text in outcome)
    assert "parameters by group" in outcome[0][1]
    assert "parameters by group" not in outcome[1][1], "one process speaks for the run"
    changes = ["mesh.data=1", "mesh.fsdp=8", "mesh.tensor=1"]
    run(load_config(tmp_path / "config.py", changes), tmp_path / "alone", scenes=32, report_every=1, save="full")
    alone, both = losses(tmp_path / "alone"), losses(tmp_path / "run")
    np.testing.assert_allclose(both, alone, atol=1e-4)
    assert alone[-1, 0] < alone[0, 0]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert (tmp_path / "run" / checkpoint.STEPS / "20").is_dir()
    assert f"wrote {tmp_path / 'run' / 'result'}, " in outcome[0][1]
    (_, trained), (_, saved) = checkpoint.load(tmp_path / "run"), checkpoint.load(tmp_path / "run" / "result")
    assert set(saved) == set(trained)
    for path, x in trained.items():
        np.testing.assert_array_equal(saved[path], x, err_msg=path)


def test_processes_of_different_runs_are_refused(tmp_path):
    (first, said), (second, heard) = in_processes(tmp_path, "--set", ("seed=1", "seed=2"))
    message = "error: Process 1 has another configuration or tokenizer than process 0"
    assert (first, second) == (2, 2), said + heard
    assert message in said
    assert message in heard
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


def test_one_process_that_fails_does_not_leave_the_others_waiting(tmp_path):
    (first, said), (second, heard) = in_processes(tmp_path, "--set", ("seed=1", "sead=1"))
    assert (first, second) == (1, 2), said + heard
    assert "Process 1 failed at reading its configuration and data; its own message says why." in said
    assert "Did you mean 'seed'" in heard
