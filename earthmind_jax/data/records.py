"""What the data pipeline reads: samples (arrays) and records (one JSON line of file names, questions and answers).

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
of a label image, or a list of some), a COCO run-length code, or polygons in pixels, on the grid of the optical image,
or of the SAR image where it stands alone. A region may also be ``{"box": [x0, y0, x1, y1]}``, ``{"points": [[x, y],
...]}`` or ``{"line": [[x, y], ...]}`` in pixels, or some of these together, with ``"background": [[x, y], ...]`` for
points beside the object; points and lines stand for those of 16 x 16 cells laid over the image that they touch, the
visual tokens of the published models. The mask decoder gets the points themselves, the corners of boxes, and masks.

With several dates a mask holds on all of them, or is ``{"dates": [mask of the first date, null, ...]}``, null where it
is not known; the first five dates reach the model, and a region lies on the last of those.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.config import nearest
from earthmind_jax.data import images
from earthmind_jax.data.images import is_text as _is_text
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.tokenizer import SEG
from earthmind_jax.errors import UserError, WorkError

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark

SENSORS = ("optical", "sar")
LONGEST = 500  # characters of a problem
TURN = ("question", "answer", "mask", "masks", "region", "regions")

Picture = np.ndarray | Mapping[str, np.ndarray]
"""One sensor's image: 8-bit [H W], [H W 3] (a finished picture), or band name -> float [H W] (reflectance, or dB)."""


@dataclass(frozen=True, eq=False)
class Dated:
    """One object's masks [h w] on each date, None where it is not known."""

    masks: tuple[np.ndarray | None, ...]


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer.

    Attributes:
      answer: None where the model is to answer.
      mask: [h w], or [k h w] for the k ``[SEG]`` of the answer, any size, nonzero is the object; or a tuple of k, each
        [h w] (on every date) or :class:`Dated`.
      marks: what points the mask decoder at the masks of the answer, in pixels of the reference image: one for all of
        them, or one for each.
      region: [h w], the part of the image that the question asks about (``region1``, counted over the conversation; a
        ``{region}`` in the question becomes that name); or a tuple of several, whose names the question's ``{region}``
        become one after the other.
    """

    question: str
    answer: str | None = None
    mask: np.ndarray | tuple[np.ndarray | Dated, ...] | None = None
    region: np.ndarray | tuple[np.ndarray, ...] | None = None
    marks: tuple[Mark, ...] = ()

    @property
    def regions(self) -> tuple[np.ndarray, ...]:
        """The parts of the image that the question asks about."""
        if self.region is None:
            return ()
        return self.region if isinstance(self.region, tuple) else (self.region,)

    @property
    def masks(self) -> tuple[np.ndarray | Dated, ...]:
        """One mask for each ``[SEG]`` of the answer."""
        if self.mask is None:
            return ()
        if isinstance(self.mask, tuple):
            return self.mask
        return (self.mask,) if self.mask.ndim == 2 else tuple(self.mask)


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene as arrays. Both sensors cover the same ground; ``None`` is a missing sensor, a tuple several dates.

    Validity is [H W], None for valid everywhere; of several dates a tuple of these.
    """

    id: str
    turns: tuple[Turn, ...]
    optical: Picture | tuple[Picture, ...] | None = None
    sar: Picture | tuple[Picture, ...] | None = None
    optical_valid: np.ndarray | tuple[np.ndarray | None, ...] | None = None
    sar_valid: np.ndarray | tuple[np.ndarray | None, ...] | None = None

    def images(self, sensor: str) -> tuple[tuple[Picture, np.ndarray | None], ...]:
        """Image and validity on each date of ``optical`` or ``sar``; empty where the sensor is missing."""
        pictures, valid = getattr(self, sensor), getattr(self, f"{sensor}_valid")
        if pictures is None:
            return ()
        if not isinstance(pictures, tuple):
            return ((pictures, valid),)
        marks = valid if isinstance(valid, tuple) else (valid,) * len(pictures)
        if len(marks) != len(pictures):
            raise UserError(f"there are {len(pictures)} {sensor} images but {len(marks)} validity masks.")
        return tuple(zip(pictures, marks, strict=True))


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
    if b"\\ud" in text.lower() and not _is_text(json.dumps(values, ensure_ascii=False)):
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


def problems(values: Any) -> Iterator[str]:
    """What is wrong with the plain JSON values of a record, one sentence for each field."""
    if isinstance(values, list):
        yield f"the record must be an object, not a list of {len(values)}; a record file has one object in each line."
        return
    if not isinstance(values, dict):
        yield f"the record must be an object, not {values!r}."
        return
    yield from _unknown(values, "the record", ("id", *SENSORS, "turns"))
    name = values.get("id")
    if not (_is_text(name) or (isinstance(name, int) and not isinstance(name, bool))):
        yield f"field 'id' must be text, not {name!r}."
    counts = {}
    for sensor in SENSORS:
        given = values.get(sensor)
        if given is None:
            continue
        several = isinstance(given, list) and bool(given)
        wrong = [
            problem
            for i, one in enumerate(given if several else [given])
            for problem in images.problems(one, f"{sensor}[{i}]" if several else sensor)
        ]
        yield from wrong
        if not wrong:
            counts[sensor] = len(given) if several else 1
    most = max(counts.values(), default=0)
    for sensor, count in counts.items():
        if count not in (1, most):
            yield f"field '{sensor}' has {count} dates but the other sensor {most}; give as many, or one."
    turns = values.get("turns")
    if not isinstance(turns, list) or not turns:
        yield f"field 'turns' must be a list of at least one turn, not {turns!r}."
        return
    for i, turn in enumerate(turns):
        yield from _turn_problems(turn, f"turns[{i}]", i == len(turns) - 1, most)


def _turn_problems(turn: Any, name: str, last: bool, dates: int) -> Iterator[str]:
    if not isinstance(turn, dict):
        yield f"{name} must be an object, not {turn!r}."
        return
    yield from _unknown(turn, name, (*TURN, "steer"))
    if not _is_text(turn.get("question")):
        yield f"field '{name}.question' must be text, not {turn.get('question')!r}."
    answer = turn.get("answer")
    if not (_is_text(answer) or answer is None):
        yield f"field '{name}.answer' must be text, not {answer!r}."
        answer = None
    elif answer is None and not last:
        yield f"field '{name}.answer' is missing; only the last turn may lack one."
    masks = turn.get("masks")
    if masks is None:
        masks = [] if turn.get("mask") is None else [turn["mask"]]
    elif not isinstance(masks, list) or turn.get("mask") is not None:
        yield f"field '{name}.masks' must be a list, and stands instead of 'mask'."
        return
    for spec in masks:
        yield from _mask_problems(spec, f"{name}.mask", dates)
    regions = turn.get("regions")
    if regions is None:
        regions = [] if turn.get("region") is None else [turn["region"]]
    elif not isinstance(regions, list) or not regions or turn.get("region") is not None:
        yield f"field '{name}.regions' must be a list of at least one, and stands instead of 'region'."
        return
    for region in regions:
        if isinstance(region, dict) and "dates" in region:
            yield f"field '{name}.region' must be one region, not one for each date."
        yield from _mask_problems(region, f"{name}.region", dates)
    if (masks or regions) and not dates:
        yield f"field '{name}' has a mask or a region, but the record has no image."
    count = (answer or "").count(SEG)
    if count != len(masks):
        yield f"field '{name}.answer' has {count} {SEG} but there are {len(masks)} masks."
    yield from _steer_problems(turn.get("steer"), name, len(regions), len(masks), dates)


def _steer_problems(steer: Any, name: str, regions: int, masks: int, dates: int) -> Iterator[str]:
    if steer is not None and not isinstance(steer, bool):
        yield f"field '{name}.steer' must be true or false, not {steer!r}."
    elif steer and dates > 1:
        yield f"field '{name}.steer': regions steer the masks of one image, not of {dates} dates; leave it out."
    elif steer and not masks:
        yield f"field '{name}.steer' needs an answer with {SEG} and its mask."
    elif steer and regions not in (1, masks):
        yield f"field '{name}.steer' needs one region for all masks or one for each: {regions} regions, {masks} masks."


def _mask_problems(spec: Any, name: str, dates: int) -> Iterator[str]:
    dated = isinstance(spec, dict) and "dates" in spec
    each = spec["dates"] if dated else [spec]
    if dated and not (isinstance(each, list) and len(each) == dates):
        yield f"field '{name}.dates' must be a list of {dates}, one for each date, null where the mask is not known."
        return
    for one in each:
        nested = dated and isinstance(one, dict) and "dates" in one
        if nested or not (isinstance(one, str | dict | list) or (dated and one is None)):
            yield f"field '{name}' must be a path, a label value, a run-length code or polygons, not {one!r}."
            continue
        path = one.get("file") if isinstance(one, dict) else one
        if isinstance(path, str):
            yield from images.path_problems(path, name)


def _unknown(values: dict[str, Any], name: str, fields: tuple[str, ...]) -> Iterator[str]:
    for key in values:
        if key not in fields:
            yield f"{name} has the unknown field '{key}'.{nearest(key, fields)}"


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, one line each. The file appears when it is complete; WorkError where it cannot be written."""
    path = Path(path)
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
