"""A process that is killed ends the others in one sentence, and the run goes on after its last saved step."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from earthmind_jax import checkpoint
from earthmind_jax.distributed import peers
from earthmind_jax.distributed.peers import Lifeline
from earthmind_jax.train.run import load_config, run

REPOSITORY = Path(__file__).resolve().parents[2]
LOST = "failed: Process {} of this run was lost"
TALKING = """
import sys
from earthmind_jax.distributed.peers import failing_together
from earthmind_jax.distributed.start import start
start(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.experimental import multihost_utils
with failing_together():
    while True:
        multihost_utils.process_allgather(np.ones(4))
        print("talking", flush=True)
"""
CONFIG = """
    import dataclasses

    from configs import tiny
    from earthmind_jax.config import Group


    def get_config():
        run = tiny.get_config()
        vision = dataclasses.replace(run.model.vision, depth=1, width=16, mlp=32)
        lm = dataclasses.replace(run.model.lm, depth=1, width=32, mlp=64)
        groups = (Group(pattern="lm/norm/", learning_rate=1.0), Group(pattern=".*"))
        return dataclasses.replace(
            run,
            model=dataclasses.replace(run.model, vision=vision, lm=lm, grounding=None, max_length=1024),
            data=dataclasses.replace(run.data, text_length=256, turns=1),
            optim=dataclasses.replace(run.optim, groups=groups),
            steps=1_000_000,
            checkpoint_every=2,
        )
"""


def two(*command):
    """Two processes of one virtual device each; ``ADDRESS`` and ``NUMBER`` in their command become theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = re.sub(r"(device_count=)\d+", r"\g<1>1", os.environ["XLA_FLAGS"])
    env = os.environ | {"XLA_FLAGS": flags, "GLIBC_TUNABLES": "", "PYTHONPATH": str(REPOSITORY)}
    names = [{"ADDRESS": address, "NUMBER": str(number)} for number in range(2)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", *(name.get(str(word), str(word)) for word in command)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for name in names
    ]  # fmt: skip


def killed(processes, victim):
    """(exit code, seconds, standard error) of the process that is left."""
    other = processes[1 - victim]
    before = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    _, said = other.communicate(timeout=60)
    return other.returncode, time.monotonic() - before, said


@pytest.mark.parametrize("victim", [0, 1])
def test_whoever_is_left_ends_in_one_sentence(victim):
    processes = two(TALKING, "ADDRESS", "NUMBER")
    try:
        for process in processes:
            while "talking" not in (line := process.stdout.readline()):
                assert line, process.stderr.read()
        code, seconds, said = killed(processes, victim)
    finally:
        for process in processes:
            process.kill()
    assert code == 1, said
    assert said.count(LOST.format(victim)) == 1
    assert "Traceback" not in said
    assert seconds < 10


def test_a_run_goes_on_after_its_last_saved_step(one_device, tmp_path):
    (tmp_path / "config.py").write_text(textwrap.dedent(CONFIG))
    out = tmp_path / "run"
    joined = ("--coordinator", "ADDRESS", "--processes", 2, "--process", "NUMBER")
    processes = two(
        "from earthmind_jax.cli import main; main()", "train", tmp_path / "config.py", "--out", out, "--scenes", 16,
        *joined,
    )  # fmt: skip
    try:
        while not (out / checkpoint.STEPS / "4").is_dir():
            assert [process.poll() for process in processes] == [None, None], processes[0].stderr.read()
            time.sleep(0.05)
        code, seconds, said = killed(processes, 1)
    finally:
        for process in processes:
            process.kill()
    assert code == 1, said
    assert said.count(LOST.format(1)) == 1
    assert "Traceback" not in said
    assert seconds < 10
    last = max(int(path.name) for path in (out / checkpoint.STEPS).iterdir() if path.name.isdigit())
    state = run(load_config(tmp_path / "config.py"), out, scenes=16, until=last + 1)
    assert int(state.step) == last + 1


@pytest.fixture
def ends(monkeypatch):
    """What processes would have ended with: sentence by sentence."""
    said = []
    monkeypatch.setattr(peers, "_end", said.append)
    monkeypatch.setattr(peers, "GRACE", 0.2)
    return said


@pytest.fixture
def star(ends):
    """A function of a count: (process 0's lifeline, those of the others, their sockets).

    Nobody watches any more when ``_end`` is real again: the sockets close with a test, and that would end its process.
    """
    lines, sockets = [], []

    def connect(count):
        pairs = [socket.socketpair() for _ in range(1, count)]
        first = Lifeline({number: near for number, (near, _) in enumerate(pairs, 1)}, 0)
        others = [Lifeline({0: far}, number) for number, (_, far) in enumerate(pairs, 1)]
        lines.extend([first, *others])
        sockets.extend(end for pair in pairs for end in pair)
        return first, others, pairs

    yield connect
    for line in lines:
        line.leave()
    for end in sockets:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    soon(nobody_watches)


def nobody_watches():
    return not any(thread.name == "peers" for thread in threading.enumerate())


def soon(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_process_0_tells_the_others_who_was_lost(ends, star):
    _, _, pairs = star(3)
    pairs[1][1].shutdown(socket.SHUT_RDWR)
    soon(lambda: sum("Process 2 of this run was lost" in said for said in ends) >= 2)


def test_a_failure_leaves_time_to_end(ends, star):
    _, others, _ = star(3)
    others[0].leave("failed")
    assert ends == []
    soon(lambda: len(ends) == 2)
    assert set(ends) == {"Process 1 of this run failed; its own message says why."}


def test_ending_on_purpose_is_no_loss(ends, star):
    first, others, pairs = star(3)
    for line, socket_ in ((others[1], pairs[1][1]), (others[0], pairs[0][1])):
        line.leave()
        socket_.shutdown(socket.SHUT_RDWR)
    first.leave()
    soon(nobody_watches)
    assert ends == []
