"""Asked to stop (SIGTERM, or Ctrl-C once): finish the step, save, and end well."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether the run is to stop after the step at hand; the same answer on every process."""

    def __init__(self) -> None:
        self._asked = False

    def after(self, step: int) -> bool:
        """To be called once after each step. Costs nothing: with several processes jax agrees on a step beside them."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._asked

    def ask(self) -> None:
        """Stop after the step at hand."""
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax listens to it and tells the other processes
        self._asked = True


@contextlib.contextmanager
def on_signal() -> Iterator[Stop]:
    """A :class:`Stop` that signals ask; a second Ctrl-C interrupts at once. Outside the main thread none arrive."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # With several processes jax has its own handler of SIGTERM, which must stay.
    mine = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in mine}

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT] or signal.default_int_handler)
        # Not print: a signal may come in the middle of one.
        os.write(2, b"\nStopping after this step; Ctrl-C again stops at once, without saving.\n")
        stop.ask()

    for number in mine:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
