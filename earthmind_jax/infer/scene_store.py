"""What a run over a large scene has finished, on disk, so that the same command goes on from there.

::

    OUT/.scene/work.json      what the run is: its inputs, model, targets and windows
    OUT/.scene/rows.jsonl     one line for every finished row of windows, with all that is counted so far
    OUT/.scene/percent_K.raw  uint8 [H W] of mask K: probability in percent, 255 without data
    OUT/.scene/weight_K.raw   uint8 on the token grid of target K: the weight of SAR in percent
    OUT/.scene/picture_S.raw  uint8 [h w 3] of each image, for the panel: every n-th pixel

A target has a mask for each date, one after another.

Pixels reach the disk before the line that counts them, and plain files have nothing inside that a kill could break.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.infer.result import ANSWER

PICTURE = 1024  # pixels of the longer side of a panel's pictures
PLACE, WORK, LOG = ".scene", "work.json", "rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class Done:
    """What is finished.

    Attributes:
      valid: pixels with data in any sensor, for each date.
      row: the last finished row of windows, -1 for none; ``pixels``, the finished rows of pixels.
      windows, empty: windows done, and those of them that hold no data.
      weights, tokens: for each target the sum of the weights of SAR and how many tokens it is over.
      seen: pixels with data in the reference image and in all sensors on the first date, and in any sensor on any.
      notes: what was found out while reading.
    """

    valid: tuple[int, ...]
    row: int = -1
    pixels: int = 0
    windows: int = 0
    empty: int = 0
    weights: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    seen: tuple[int, int, int] = (0, 0, 0)
    notes: tuple[str, ...] = field(default=())


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold ``directory``, made if needed, for this run alone; the system lets go of it when the process ends.

    Raises:
      UserError: another run holds it.
      WorkError: it cannot be made.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{directory} is in use by another run; wait until it has ended, or choose another directory."
            ) from error
        yield
    finally:
        os.close(handle)


class Canvas:
    """A plain file of rows, uint8 [H W]."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self.shape = path, shape
        with writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def write(self, top: int, values: np.ndarray) -> None:
        """Write rows [n W] from ``top`` on, down to the disk."""
        data, place = np.ascontiguousarray(values, np.uint8).tobytes(), top * self.shape[1]
        with writing(self.path):
            while len(data):
                count = os.pwrite(self._file, data, place)
                data, place = data[count:], place + count
            os.fsync(self._file)

    def read(self, rows: slice | None = None) -> np.ndarray:
        """uint8 [n W]; all rows where none are named."""
        rows = rows or slice(0, self.shape[0])
        size, width = rows.stop - rows.start, self.shape[1]
        data = os.pread(self._file, size * width, rows.start * width)
        if len(data) != size * width:
            raise WorkError(f"{self.path} is cut short; remove {self.path.parent} and start again.")
        return np.frombuffer(data, np.uint8).reshape(size, width)

    def close(self) -> None:
        os.close(self._file)


class Store:
    """The work directory of one run in ``out``, which must be held.

    Attributes:
      done: what is finished.
      percent, weight: a canvas for each mask, and for each target.
      picture: a canvas [h w*3] for each image by its name, of every ``step``-th pixel.
    """

    def __init__(
        self,
        out: Path,
        work: dict[str, Any],
        targets: int,
        shape: tuple[int, int],
        tokens: tuple[int, int],
        pictures: Sequence[str] = (),
        dates: int = 1,
    ) -> None:
        """Takes up the run in ``out``, or begins one.

        Raises:
          UserError: the run there is another one; what differs is named.
        """
        self.place = out / PLACE
        self.done = Done(weights=(0.0,) * targets, tokens=(0,) * targets, valid=(0,) * dates)
        work = json.loads(json.dumps(work))
        with writing(out):
            self.place.mkdir(exist_ok=True)
            before = _read_json(self.place / WORK)
            if before is not None:
                refuse_other(before, work, out)
                self.done = _last(self.place / LOG) or self.done
            else:
                write_text(self.place / WORK, json.dumps(work, indent=2))
            # Whatever a kill left of a last line goes: the next one would be appended to it.
            write_text(self.place / LOG, "" if self.done.row < 0 else _line(self.done))
            self._log = open(self.place / LOG, "a")  # noqa: SIM115 - open as long as the work goes on
        self.percent = [Canvas(self.place / f"percent_{k}.raw", shape) for k in range(targets * dates)]
        self.weight = [Canvas(self.place / f"weight_{k}.raw", tokens) for k in range(targets)]
        self.step = -(-max(shape) // PICTURE)
        height, width = (-(-side // self.step) for side in shape)
        self.picture = {name: Canvas(self.place / f"picture_{name}.raw", (height, 3 * width)) for name in pictures}

    def add(
        self,
        done: Done,
        percent: np.ndarray,
        weight: np.ndarray,
        weight_top: int,
        pictures: Mapping[str, np.ndarray],
    ) -> None:
        """Rows of windows up to ``done.row`` are finished, and with them pixels [n W M] of all masks, tokens [m w K] of
        all targets, and each image's picture [n W 3] of the same pixels."""
        top = done.pixels - len(percent)
        for canvases, first, values in ((self.percent, top, percent), (self.weight, weight_top, weight)):
            for k, canvas in enumerate(canvases):
                canvas.write(first, values[..., k])
        first = -top % self.step
        for name, pixels in pictures.items():
            shown = pixels[first :: self.step, :: self.step]
            self.picture[name].write((top + first) // self.step, shown.reshape(len(shown), self.picture[name].shape[1]))
        with writing(self.place):
            self._log.write(_line(done))
            self._log.flush()
        self.done = done

    def close(self) -> None:
        self._log.close()
        for canvas in (*self.percent, *self.weight, *self.picture.values()):
            canvas.close()

    def remove(self) -> None:
        """The run is finished and its results are written elsewhere."""
        shutil.rmtree(self.place)


def finished(out: Path, work: dict[str, Any]) -> dict[str, Any] | None:
    """The answer in ``out`` if this run has written one; a kill behind it may have left the work, which goes now.

    Raises:
      UserError: it is that of another run.
    """
    answer = _read_json(out / ANSWER)
    if answer is None:
        return None
    refuse_other(answer.get("run"), json.loads(json.dumps(work)), out)
    shutil.rmtree(out / PLACE, ignore_errors=True)
    return answer


def refuse_other(before: Any, work: dict[str, Any], out: Path) -> None:
    """UserError unless ``before`` describes the same run as ``work``."""
    if before == work:
        return
    if not isinstance(before, dict):
        raise UserError(f"{out} holds other results; choose another directory, or remove it to start anew.")
    names = [key for key in work if before.get(key) != work[key]] or ["version of this program"]
    raise UserError(
        f"{out} holds a run with another {' and '.join(names)}; choose another directory, or remove it to start anew."
    )


def _line(done: Done) -> str:
    return json.dumps(asdict(done), ensure_ascii=False) + "\n"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove {path.parent} to start anew.") from error


def _last(path: Path) -> Done | None:
    """The last whole line."""
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError):
            if line.endswith("\n"):
                values = json.loads(line)
                return Done(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    return None
