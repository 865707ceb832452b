"""The lines of a file of questions, checked before the work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthmind_jax.config import DataConfig, nearest
from earthmind_jax.data.buckets import Buckets, Shape
from earthmind_jax.data.check import file_problems
from earthmind_jax.data.layout import measure
from earthmind_jax.data.records import SENSORS, Record, RecordTurn, parse_record
from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind

SHORT = ("question", "region")
"""Fields of a line that stand for a record's single turn."""

QUESTIONS = DataConfig(batch_size=1, masks_per_sample=1, turns=2**30)


@dataclass(frozen=True)
class Request:
    """One line: the record to answer, or what is wrong with it.

    Attributes:
      key: hash of the line, by which a continued run knows it again.
      id: None where the line has none that can be read.
      maps: directory that the line asks its maps to be written to.
      shape: what the prompt takes, dates, tiles and tokens.
      problem: one sentence, empty for a good line.
    """

    number: int
    key: str
    id: str | None
    record: Record | None = None
    maps: Path | None = None
    shape: Shape | None = None
    problem: str = ""

    @property
    def sources(self) -> tuple[tuple[Path, ...], ...]:
        """Optical and SAR files: lines of equal ones are about one image."""
        assert self.record is not None
        return tuple(self.record.paths(sensor) for sensor in SENSORS)


def read_requests(path: str | Path, model: EarthMind, *, skip_broken: bool = False) -> list[Request]:
    """The lines of a file, each either

    - ``{"id", "question", "optical", "sar", "region", "maps"}``, all but the question optional: ``id`` is the line's
      number where it is missing, paths are relative to the file, ``region`` is what the question calls ``region1`` (a
      mask file, a COCO run-length code or polygons), ``maps`` a directory for the masks of this line; or
    - a record of a data set (:mod:`earthmind_jax.data.records`), of which the last question is asked.

    Headers of images, masks and regions are read, so that nothing that they can tell goes wrong later.

    Args:
      skip_broken: keep broken lines with their ``problem`` instead of raising.

    Raises:
      UserError: the file cannot be read or has no line, or a line is broken; names the line.
    """
    path = Path(path)
    requests: list[Request] = []
    first: dict[str, int] = {}
    checked: set[tuple[tuple[Path, ...], ...]] = set()
    for number, text in _lines(path):
        request = _request(number, text, path, model, checked)
        if request.id is not None and request.id in first and not request.problem:
            problem = f"{path} line {number}: the id '{request.id}' is that of line {first[request.id]} already."
            request = Request(number, request.key, None, problem=problem)
        if request.id is not None:
            first.setdefault(request.id, number)
        requests.append(request)
    broken = [request for request in requests if request.problem]
    if broken and not skip_broken:
        more = f"; {len(broken)} lines are broken in all" if len(broken) > 1 else ""
        raise UserError(f"{broken[0].problem.rstrip('. ')}{more} (--skip-broken answers the others).")
    if not requests:
        raise UserError(f"The file of questions '{path}' is empty; give one JSON object a line.")
    return requests


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, text.strip()
    except OSError as error:
        raise UserError(f"The file of questions '{path}' cannot be read: {error.strerror or error}.") from error


def _request(number: int, text: bytes, path: Path, model: EarthMind, checked: set[Any]) -> Request:
    key, where, name = hashlib.sha256(text).hexdigest()[:16], f"{path} line {number}", None
    try:
        values = json.loads(text.decode("utf-8-sig"), parse_constant=_constant)
        if not isinstance(values, dict):
            raise UserError(f'{where} must be an object, such as {{"question": ...}}, not {text[:40].decode()!r}.')
        values = dict(values)
        values.setdefault("id", str(number))
        name = str(values["id"]) if isinstance(values["id"], str | int) else None
        maps = values.pop("maps", None)
        if maps is not None and not (isinstance(maps, str) and maps):
            raise UserError(f"{where}: field 'maps' must be text (a directory), not {maps!r}.")
        record = parse_record(_expanded(values, where), where, path.parent)
        record = replace(record, turns=(*record.turns[:-1], replace(record.turns[-1], answer=None, masks=())))
        if not record.turns[-1].question.strip():
            raise UserError(f"{where}: the question is empty.")
        request = Request(number, key, name, record, None if maps is None else path.parent / maps)
        if request.sources not in checked:
            for problem in _image_problems(record, model):
                raise UserError(f"{where}: {problem}")
            checked.add(request.sources)
        words = (model.engine.tokenizer, model.buckets or Buckets())
        return replace(request, shape=measure(record, model.config, QUESTIONS, *words).shape)
    except (UserError, RecursionError, ValueError) as error:
        return Request(number, key, name, problem=_problem(error, where))


def _problem(error: Exception, where: str) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{where} is not JSON: the text is not UTF-8."
    if isinstance(error, json.JSONDecodeError):
        return f"{where} is not JSON: {error.msg} (character {error.pos + 1})."
    return f"{where} is not JSON that can be used: {error}."


def _constant(name: str) -> Any:
    raise ValueError(f"it holds the number {name}")


def _expanded(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A short line as a record's values."""
    if "turns" in values:
        for name in SHORT:
            if name in values:
                raise UserError(f"{where}: field '{name}' stands beside 'turns'; put it into the last of them.")
        return values
    for name in values:
        if name not in ("id", *SENSORS, *SHORT):
            known = ("id", "question", *SENSORS, "region", "maps", "turns")
            raise UserError(f"{where} has the unknown field '{name}'.{nearest(name, known)}")
    if "question" not in values:
        raise UserError(f"{where} has neither a 'question' nor 'turns'.")
    turn = {name: values[name] for name in SHORT if name in values}
    return {name: value for name, value in values.items() if name not in SHORT} | {"turns": [turn]}


def _image_problems(record: Record, model: EarthMind) -> Iterator[str]:
    """What the headers of the images tell, date by date: dates are brought onto one grid, and need not have one."""
    plain = RecordTurn("?")
    for i in range(record.dates):
        each = {sensor: record.paths(sensor) for sensor in SENSORS}
        names = {s: str(paths[min(i, len(paths) - 1)]) if paths else None for s, paths in each.items()}
        yield from file_problems(replace(record, turns=(plain,), root=Path(), **names), model.config.sensors)
