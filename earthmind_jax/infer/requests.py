"""The lines of a file of questions, checked before the work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthmind_jax.config import DataConfig, nearest
from earthmind_jax.data.buckets import Buckets, Shape
from earthmind_jax.data.check import file_problems
from earthmind_jax.data.images import Image
from earthmind_jax.data.layout import measure
from earthmind_jax.data.records import SENSORS, Record, RecordTurn, parse_record
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks_file import GEOJSON, OTHER_FILES, PIXELS, parse_prompts, read_prompts
from earthmind_jax.geo.prompts import Prompt

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind

SHORT = ("question", "region")
"""Fields of a line that stand for a record's single turn."""

PLACES = ("marks", "prompt_crs", "crop", "area", "steer")
"""Fields of a line that point at places of its image, as options of ``earthmind ask`` do."""

QUESTIONS = DataConfig(batch_size=1, masks_per_sample=1, turns=2**30)


@dataclass(frozen=True)
class Request:
    """One line: the record to answer, or what is wrong with it.

    Attributes:
      key: hash of the line, by which a continued run knows it again.
      id: None where the line has none that can be read.
      maps: directory that the line asks its maps to be written to.
      places: ``marks``, ``window`` and ``steer`` of :meth:`EarthMind.ask`, where the line has them.
      shape: what the prompt takes, dates, tiles and tokens.
      problem: one sentence, empty for a good line.
    """

    number: int
    key: str
    id: str | None
    record: Record | None = None
    maps: Path | None = None
    places: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    problem: str = ""

    @property
    def sources(self) -> tuple[tuple[Image, ...], ...]:
        """Optical and SAR images: lines of equal ones are about one scene."""
        assert self.record is not None
        return tuple(self.record.images(sensor) for sensor in SENSORS)

    @property
    def files(self) -> dict[str, list[Path]] | None:
        """The file of each date of each sensor; None where the line tells more of an image than its path."""
        if not all(image.plain for images in self.sources for image in images):
            return None
        given = zip(SENSORS, self.sources, strict=True)
        return {sensor: [image.paths[0] for image in images] for sensor, images in given if images}


def read_requests(path: str | Path, model: EarthMind, *, skip_broken: bool = False) -> list[Request]:
    """The lines of a file, each either

    - ``{"id", "question", "optical", "sar", "region", "maps"}``, all but the question optional: ``id`` is the line's
      number where it is missing, paths are relative to the file, ``region`` is what the question calls ``region1`` (a
      mask file, a COCO run-length code or polygons), ``maps`` a directory for the masks of this line. What ``earthmind
      ask`` points at with options stands in ``marks`` (GeoJSON, a mask or vector file, or a list of files, in
      ``prompt_crs`` or "pixels"), ``crop`` [row, column, height, width], ``area`` [x0, y0, x1, y1] and ``steer``; or
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
    checked: set[tuple[tuple[Image, ...], ...]] = set()
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
        told = {key: values.pop(key) for key in PLACES if values.get(key) is not None}
        record = parse_record(_expanded(values, where), where, path.parent)
        places = _places(told, record, where, path.parent)
        record = replace(record, turns=(*record.turns[:-1], replace(record.turns[-1], answer=None, masks=())))
        if not record.turns[-1].question.strip():
            raise UserError(f"{where}: the question is empty.")
        request = Request(number, key, name, record, None if maps is None else path.parent / maps, places)
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
        return str(error) if str(error).startswith(where) else f"{where}: {error}"
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
            known = ("id", "question", *SENSORS, "region", *PLACES, "maps", "turns")
            raise UserError(f"{where} has the unknown field '{name}'.{nearest(name, known)}")
    if "question" not in values:
        raise UserError(f"{where} has neither a 'question' nor 'turns'.")
    turn = {name: values[name] for name in SHORT if name in values}
    return {name: value for name, value in values.items() if name not in SHORT} | {"turns": [turn]}


def _image_problems(record: Record, model: EarthMind) -> Iterator[str]:
    """What the headers of the images tell, date by date: dates are brought onto one grid, and need not have one."""
    plain = RecordTurn("?")
    for i in range(record.dates):
        each = {sensor: record.written(sensor) for sensor in SENSORS}
        one = {sensor: given[min(i, len(given) - 1)] if given else None for sensor, given in each.items()}
        yield from file_problems(replace(record, turns=(plain,), **one), model.config.sensors)


def _places(told: Mapping[str, Any], record: Record, where: str, root: Path) -> dict[str, Any]:
    """Fields of :data:`PLACES` as options of :meth:`EarthMind.ask`; files are read."""
    if not told:
        return {}
    if len(record.turns) > 1 or record.turns[0].regions:
        raise UserError(f"{where}: '{next(iter(told))}' stands beside 'region' or earlier turns; put it into 'marks'.")
    if not any(record.written(sensor) for sensor in SENSORS):
        raise UserError(f"{where}: there is no image to point at; give 'optical', 'sar', or both.")
    crs, steer, made = told.get("prompt_crs"), told.get("steer", False), {}
    if not (crs is None or isinstance(crs, str)) or not isinstance(steer, bool):
        raise UserError(f"{where}: field 'prompt_crs' must be text and 'steer' true or false.")
    if steer and "marks" not in told:
        raise UserError(f"{where}: 'steer' needs something to point at; give 'marks', or leave it out.")
    if "crop" in told and "area" in told:
        raise UserError(f"{where}: 'crop' and 'area' both say which part to look at; leave one of them out.")
    if "marks" in told:
        given = told["marks"] if isinstance(told["marks"], list) else [told["marks"]]
        made["marks"] = [mark for each in given for mark in _marks(each, crs, where, root)]
    if "crop" in told:
        whole = isinstance(told["crop"], list) and len(told["crop"]) == 4
        if not whole or not all(type(number) is int for number in told["crop"]):
            raise UserError(f"{where}: field 'crop' must be [row, column, height, width] in whole pixels.")
        made["window"] = tuple(told["crop"])
    if "area" in told:
        given = told["area"] if isinstance(told["area"], list) else []
        if len(given) != 4 or not all(type(number) in (int, float) for number in given):
            raise UserError(f"{where}: field 'area' must be [x0, y0, x1, y1] in numbers.")
        place = None if crs == PIXELS else crs or "OGC:CRS84"
        made["window"] = Prompt.from_box(*given, crs=place, where=f"{where}: the area")
    return made | ({"steer": True} if steer else {})


def _marks(given: Any, crs: str | None, where: str, root: Path) -> Sequence[Prompt | Path]:
    if isinstance(given, Mapping):
        return parse_prompts(given, crs, f"{where}: the GeoJSON in 'marks'")
    if not isinstance(given, str):
        raise UserError(f"{where}: field 'marks' must be GeoJSON, a path, or a list of these, not {given!r}.")
    path = root / given
    if path.suffix.lower() in (*GEOJSON, *OTHER_FILES):
        return read_prompts(path, crs)
    if not path.is_file():
        raise UserError(f"{where}: there is no mask '{path}' to point with.")
    return [path]
