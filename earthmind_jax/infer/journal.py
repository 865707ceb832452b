"""A file of answers that grows line by line, survives being killed, and is continued by the same command."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.errors import UserError, WorkError


class Journal:
    """Open with :func:`opened`.

    Attributes:
      done: key of each finished line -> its id, None for the error of a broken line.
    """

    def __init__(self, path: Path, file: BinaryIO, done: dict[str, str | None]) -> None:
        self.path, self.done, self._file = path, done, file

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, each with its ``key`` and ``id``; they are on the disk when this returns.

        Raises:
          WorkError: the disk is full or gone; what was written before stays.
        """
        end = self._file.seek(0, os.SEEK_END)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        rest = memoryview(text.encode("utf-8", errors="replace"))
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise WorkError(
                f"Could not write {self.path}: {error.strerror or error}; free space and give the same command again."
            ) from error
        self.done |= {line["key"]: _id(line) for line in lines}


def sidecar(path: Path) -> Path:
    """Where the settings of a file of answers are written."""
    return path.with_name(f"{path.name}.settings.json")


@contextlib.contextmanager
def opened(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """The file of answers, held by this process alone; a last line that was only half written is cut off.

    Raises:
      UserError: another process holds it, it was written with other settings, or it is something else.
      WorkError: it cannot be made.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the file for the answers, such as {path / 'answers.jsonl'}.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no ordinary file; name another one for the answers.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path} is being written by another process; wait until it has ended, or choose another file."
            ) from error
        if os.fstat(file.fileno()).st_size:
            _check_settings(path, settings)
        done = _done(path, file)
        with writing(path):
            write_text(sidecar(path), json.dumps(dict(settings), indent=2))
        yield Journal(path, file, done)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if not sidecar(path).is_file():
        raise UserError(
            f"{path} exists already, and without {sidecar(path).name} it cannot be told what wrote it; choose another "
            "file."
        )
    try:
        before = json.loads(sidecar(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise UserError(f"{sidecar(path)} is damaged, so {path.name} cannot be continued; choose another file.")
    differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if differ:
        told = ", ".join(f"{name}: {before.get(name)} -> {settings.get(name)}" for name in sorted(differ))
        raise UserError(f"{path} was written with another model or other settings ({told}); choose another file.")


def _done(path: Path, file: BinaryIO) -> dict[str, str | None]:
    """The keys of the whole lines; the file is cut behind the last of them."""
    done: dict[str, str | None] = {}
    end = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                values = json.loads(line)
                done[values["key"]] = _id(values)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} line {number} is no answer of this command; choose another file.") from error
            end += len(line)
    file.truncate(end)
    file.seek(end)
    return done


def _id(line: Mapping[str, Any]) -> str | None:
    return None if "error" in line else line["id"]
