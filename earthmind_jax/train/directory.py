"""The directory of a training run: held by one run at a time, and continued with the same configuration."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from earthmind_jax.checkpoint import CONFIG, RUN, SOURCE, TOKENIZER, writing
from earthmind_jax.errors import UserError

LOCK, METRICS, RESULT = ".lock", "metrics.jsonl", "result"

FREE = ("mesh", "keep", "keep_period", "checkpoint_every", "guard", "data.workers")
"""What may change from one start of a run to the next: nothing of it changes what is computed."""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold ``directory``, made if needed, for this run alone; the system lets go of it when the process ends.

    Raises:
      UserError: another run holds it.
      WorkError: it cannot be made.
    """
    if jax.process_index() > 0:  # the first process holds it for all of them
        yield
        return
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise UserError(
                f"{directory} is in use by another training run (process {owner or 'unknown'}); wait until it has "
                "ended, or choose another directory."
            ) from error
        with writing(directory):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def differences(first: Any, second: Any, shown: int = 5) -> list[str]:
    """The fields in which two configurations (plain values) differ, ``field: old -> new``, but for :data:`FREE`."""
    before, after = _fields(first), _fields(second)
    names = [
        name
        for name in {**before, **after}
        if before.get(name, ...) != after.get(name, ...) and not any(f"{name}.".startswith(f"{f}.") for f in FREE)
    ]
    lines = [f"{name}: {_shown(before.get(name, ...))} -> {_shown(after.get(name, ...))}" for name in names[:shown]]
    return lines + ([f"and {len(names) - shown} more"] if len(names) > shown else [])


def _fields(values: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {where: values}
    return {name: x for key, value in values.items() for name, x in _fields(value, f"{where}.{key}".strip(".")).items()}


def _shown(value: Any) -> str:
    text = "absent" if value is ... else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def remove_leftovers(directory: Path) -> None:
    """What was written beside its place when an earlier start was killed."""
    for name in (CONFIG, RUN, SOURCE, TOKENIZER, METRICS, RESULT):
        for path in directory.glob(f".{name}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
