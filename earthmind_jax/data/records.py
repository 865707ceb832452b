"""What the data pipeline reads: samples (arrays) and records (one JSON line of file names, questions and answers).

A line of a record file::

    {"id": "0001", "optical": "s2/0001.tif", "sar": "s1/0001.tif",
     "turns": [{"question": "Where is the river?", "answer": "It is [SEG].", "mask": "masks/0001_river.png"}]}

``optical`` and ``sar`` may be missing or null; paths are relative to the record file. ``mask`` (for the ``[SEG]`` of
the answer) and ``region`` (what the question marks) are a path, a COCO run-length code or polygons; an answer with
several ``[SEG]`` has ``masks``, a list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import nearest
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.tokenizer import SEG
from earthmind_jax.errors import UserError

Picture = np.ndarray | Mapping[str, np.ndarray]
"""One sensor's image: 8-bit [H W], [H W 3] (a finished picture), or band name -> float [H W] (reflectance, or dB)."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer.

    Attributes:
      answer: None where the model is to answer.
      mask: [h w], or [k h w] for the k ``[SEG]`` of the answer, any size, nonzero is the object.
      region: [h w], the part of the image that the question asks about (``region1``, counted over the conversation; a
        ``{region}`` in the question becomes that name).
    """

    question: str
    answer: str | None = None
    mask: np.ndarray | None = None
    region: np.ndarray | None = None

    @property
    def masks(self) -> tuple[np.ndarray, ...]:
        """One mask for each ``[SEG]`` of the answer."""
        if self.mask is None:
            return ()
        return (self.mask,) if self.mask.ndim == 2 else tuple(self.mask)


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene as arrays. Both sensors cover the same ground; ``None`` is a missing sensor."""

    id: str
    turns: tuple[Turn, ...]
    optical: Picture | None = None
    sar: Picture | None = None
    optical_valid: np.ndarray | None = None
    sar_valid: np.ndarray | None = None


@dataclass(frozen=True)
class RecordTurn:
    """A turn as written: ``masks`` and ``region`` are in the forms of :mod:`earthmind_jax.data.masks`."""

    question: str
    answer: str | None = None
    masks: tuple[Any, ...] = ()
    region: Any = None


@dataclass(frozen=True)
class Record:
    """One line of a record file. ``root`` is the directory that its paths start from, ``where`` names the line."""

    id: str
    turns: tuple[RecordTurn, ...]
    optical: str | None = None
    sar: str | None = None
    root: Path = field(default=Path(), compare=False)
    where: str = field(default="", compare=False)


def read_jsonl(path: str | Path) -> list[Record]:
    """The records of a file.

    Raises:
      UserError: naming the file, the line and the field that is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The record file '{path}' cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error}.") from error
        records.append(parse_record(values, where, path.parent))
    if not records:
        raise UserError(f"The record file '{path}' has no records.")
    return records


def parse_record(values: Any, where: str, root: Path = Path()) -> Record:
    """A record from plain JSON values; UserError names ``where`` and the field."""
    _object(values, where, "the record", ("id", "optical", "sar", "turns"))
    name = values.get("id")
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    _text(name, where, "id")
    for sensor in ("optical", "sar"):
        _text(values.get(sensor), where, sensor, optional=True)
    turns = values.get("turns")
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: field 'turns' must be a list of at least one turn, not {turns!r}.")
    parsed = tuple(_parse_turn(turn, where, f"turns[{i}]") for i, turn in enumerate(turns))
    return Record(name, parsed, values.get("optical"), values.get("sar"), root, where)


def _parse_turn(turn: Any, where: str, name: str) -> RecordTurn:
    _object(turn, where, name, ("question", "answer", "mask", "masks", "region"))
    _text(turn.get("question"), where, f"{name}.question")
    _text(turn.get("answer"), where, f"{name}.answer", optional=True)
    masks = turn.get("masks")
    if masks is None:
        masks = [] if turn.get("mask") is None else [turn["mask"]]
    elif not isinstance(masks, list) or turn.get("mask") is not None:
        raise UserError(f"{where}: field '{name}.masks' must be a list, and stands instead of 'mask'.")
    for i, spec in enumerate([*masks, turn.get("region")]):
        what = f"{name}.{'region' if i == len(masks) else 'mask'}"
        if not isinstance(spec, str | dict | list) and not (spec is None and i == len(masks)):
            raise UserError(f"{where}: field '{what}' must be a path, a run-length code or polygons, not {spec!r}.")
    count = (turn.get("answer") or "").count(SEG)
    if count != len(masks):
        raise UserError(f"{where}: field '{name}.answer' has {count} {SEG} but there are {len(masks)} masks.")
    return RecordTurn(turn["question"], turn.get("answer"), tuple(masks), turn.get("region"))


def _object(values: Any, where: str, name: str, fields: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {name} must be an object, not {values!r}.")
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: {name} has the unknown field '{key}'.{nearest(key, fields)}")


def _text(value: Any, where: str, name: str, optional: bool = False) -> None:
    if not (isinstance(value, str) and value) and not (optional and value is None):
        raise UserError(f"{where}: field '{name}' must be text, not {value!r}.")


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, one line each. The file appears when it is complete."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record_values(record), ensure_ascii=False) + "\n")
    os.replace(partial, path)


def record_values(record: Record) -> dict[str, Any]:
    """The plain JSON values of a record (inverse of :func:`parse_record`); mask arrays become run-length codes."""
    turns = []
    for turn in record.turns:
        values: dict[str, Any] = {"question": turn.question, "answer": turn.answer}
        masks = [encode_rle(m) if isinstance(m, np.ndarray) else m for m in turn.masks]
        values |= {"masks": masks} if len(masks) > 1 else {"mask": masks[0] if masks else None}
        region = encode_rle(turn.region) if isinstance(turn.region, np.ndarray) else turn.region
        turns.append(values | {"region": region})
    return {"id": record.id, "optical": record.optical, "sar": record.sar, "turns": turns}
