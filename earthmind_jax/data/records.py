"""Records: what a sample is read from, one JSON line of file names, questions and answers.

A line of a record file::

    {"id": "0001", "optical": "s2/0001.tif", "sar": "s1/0001.tif",
     "turns": [{"question": "Where is the river?", "answer": "It is [SEG].", "mask": "masks/0001_river.png"}]}

======================  ===================================================================================
``id``                  text or a whole number
``optical``, ``sar``    a path, relative to the record file, or an object that describes an image
                        (:mod:`earthmind_jax.data.images`); or a list of these, one for each date; may be missing or
                        null, both for a conversation without an image
``turns``               a list of at least one turn, each an object of:
``question``            text; ``<image>`` in the first says where the image goes (before it where not written)
``answer``              text, or null in the last turn, for the model to answer; each ``[SEG]`` is a mask
``mask``, ``masks``     of the answer's one ``[SEG]``; a list for several
``region``, ``regions``  the part that the question asks about; a list for several. The first ``{region}`` in the
                        question becomes the name of the first, the next that of the second, and so on
``steer``               true: the regions also prompt the mask decoder in training, a single one with every ``[SEG]``
                        of the answer, else each with its own
======================  ===================================================================================

A mask or region is a path (picture, ``.npy``, GeoTIFF; nonzero is the object), ``{"file": path, "value": 3}`` (a value
of a label image, or a list of some), a COCO run-length code, or polygons ``[[x1, y1, x2, y2, ...], ...]`` in pixels,
(0, 0) the outer corner of the first one, on the grid of the optical image, or of the SAR image where it stands alone. A
region may also be ``{"box": [x0, y0, x1, y1]}``, ``{"points": [[x, y], ...]}`` or ``{"line": [[x, y], ...]}`` in
pixels, or some of these together, with ``"background": [[x, y], ...]`` for points beside the object; points and lines
stand for those of 16 x 16 cells laid over the image that they touch, the visual tokens of the published models. The
mask decoder gets the points themselves, the corners of boxes, and masks.

With several dates a mask holds on all of them, or is ``{"dates": [mask of the first date, null, ...]}``, null where it
is not known; the first five dates reach the model, and a region lies on the last of those.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data import images
from earthmind_jax.data.images import is_text
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.record_problems import problems
from earthmind_jax.data.samples import SENSORS, Dated, Picture, Sample, Turn
from earthmind_jax.errors import UserError, WorkError

__all__ = [
    "SENSORS", "Dated", "Line", "Picture", "Record", "RecordTurn", "Sample", "Turn", "make_line", "parse_record",
    "problems", "read_jsonl", "read_lines", "record_values", "write_jsonl",
]  # fmt: skip

LONGEST = 500  # characters of a problem


@dataclass(frozen=True)
class RecordTurn:
    """A turn as written: ``masks`` and ``region`` (a tuple of several) are in the forms of
    :mod:`earthmind_jax.data.masks`."""

    question: str
    answer: str | None = None
    masks: tuple[Any, ...] = ()
    region: Any = None
    steer: bool = False

    @property
    def regions(self) -> tuple[Any, ...]:
        if self.region is None:
            return ()
        return self.region if isinstance(self.region, tuple) else (self.region,)


@dataclass(frozen=True)
class Record:
    """One line of a record file. ``root`` is the directory that its paths start from, ``where`` names the line."""

    id: str
    turns: tuple[RecordTurn, ...]
    optical: images.Written | tuple[images.Written, ...] | None = None
    sar: images.Written | tuple[images.Written, ...] | None = None
    root: Path = field(default=Path(), compare=False)
    where: str = field(default="", compare=False)

    def images(self, sensor: str) -> tuple[images.Image, ...]:
        """The images of ``optical`` or ``sar``, one for each date."""
        return tuple(images.parse(written, self.root) for written in self.written(sensor))

    def paths(self, sensor: str) -> tuple[Path, ...]:
        """The files of ``optical`` or ``sar``, those of one date after those of another."""
        return tuple(path for image in self.images(sensor) for path in image.paths)

    @property
    def dates(self) -> int:
        """Images of the sensor that has most; 0 without any."""
        return max(len(self.written(sensor)) for sensor in SENSORS)

    def written(self, sensor: str) -> tuple[images.Written, ...]:
        """The images of ``optical`` or ``sar`` as the record has them, one for each date."""
        given = getattr(self, sensor)
        return () if given is None else given if isinstance(given, tuple) else (given,)


@dataclass(frozen=True)
class Line:
    """A line of a record file: the record, or what is wrong with it, one sentence a field."""

    where: str
    record: Record | None
    problems: tuple[str, ...] = ()


def read_jsonl(path: str | Path) -> list[Record]:
    """The records of a file.

    Raises:
      UserError: naming the file, the line and the field that is wrong.
    """
    records = []
    for line in read_lines(path):
        if line.record is None:
            raise UserError(f"{line.where}{line.problems[0]}")
        records.append(line.record)
    if not records:
        raise UserError(f"The record file '{path}' has no records.")
    return records


def read_lines(path: str | Path) -> Iterator[Line]:
    """Every line of a record file that is not empty, good or broken; UserError where the file cannot be read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _line(text, f"{path} line {number}", path.parent)
    except OSError as error:
        raise UserError(f"The record file '{path}' cannot be read: {error.strerror or error}.") from error


def _line(text: bytes, where: str, root: Path) -> Line:
    try:
        values = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Line(where, None, (" is not JSON: the text is not UTF-8.",))
    except json.JSONDecodeError as error:
        return Line(where, None, (f" is not JSON: {error.msg} (character {error.pos + 1}).",))
    except (ValueError, RecursionError):
        return Line(where, None, (" is not JSON that can be read: a number or brackets without end.",))
    if b"\\ud" in text.lower() and not is_text(json.dumps(values, ensure_ascii=False)):
        return Line(where, None, (" holds half of a character, one of \\ud800 to \\udfff without its partner.",))
    return make_line(values, where, root)


def make_line(values: Any, where: str, root: Path = Path()) -> Line:
    """The line that plain JSON values make: a record, or what is wrong with them."""
    found = tuple(f": {_short(problem)}" for problem in problems(values))
    return Line(where, None if found else _record(values, where, root), found)


def _short(problem: str) -> str:
    """A sentence whose quoted value may be a whole file."""
    return problem if len(problem) <= LONGEST else f"{problem[: LONGEST - 50]} ... {problem[-40:]}"


def parse_record(values: Any, where: str, root: Path = Path()) -> Record:
    """A record from plain JSON values; UserError names ``where`` and the field."""
    for problem in problems(values):
        raise UserError(f"{where}: {problem}")
    return _record(values, where, root)


def _record(values: dict[str, Any], where: str, root: Path) -> Record:
    def files(names: Any) -> Any:
        return tuple(names) if isinstance(names, list) else names

    turns = []
    for turn in values["turns"]:
        masks = turn.get("masks")
        if masks is None:
            masks = [] if turn.get("mask") is None else [turn["mask"]]
        region = turn.get("region") if turn.get("regions") is None else tuple(turn["regions"])
        steer = turn.get("steer") or False
        turns.append(RecordTurn(turn["question"], turn.get("answer"), tuple(masks), region, steer))
    images = {sensor: files(values.get(sensor)) for sensor in SENSORS}
    return Record(str(values["id"]), tuple(turns), **images, root=root, where=where)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, one line each. The file appears when it is complete; UserError where ``path`` is no place for one,
    WorkError where it cannot be written."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a device would be gone, with the file in its place
        raise UserError(f"'{path}' is no regular file; give the name of the file to write.")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record_values(record), ensure_ascii=False) + "\n")
        os.replace(partial, path)
    except OSError as error:
        told = f"'{path}' could not be written ({error.strerror or error}); check the free space and the permissions."
        raise WorkError(told) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def record_values(record: Record) -> dict[str, Any]:
    """The plain JSON values of a record (inverse of :func:`parse_record`); mask arrays become run-length codes."""
    turns = []
    for turn in record.turns:
        values: dict[str, Any] = {"question": turn.question, "answer": turn.answer}
        masks = [encode_rle(m) if isinstance(m, np.ndarray) else m for m in turn.masks]
        values |= {"masks": masks} if len(masks) > 1 else {"mask": masks[0] if masks else None}
        regions = [encode_rle(r) if isinstance(r, np.ndarray) else r for r in turn.regions]
        values |= {"regions": regions} if len(regions) > 1 else {"region": regions[0] if regions else None}
        turns.append(values | ({"steer": True} if turn.steer else {}))
    images = {s: list(n) if isinstance(n := getattr(record, s), tuple) else n for s in SENSORS}
    return {"id": record.id, **images, "turns": turns}
