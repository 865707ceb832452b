"""RSVQA in its published layout, ``{prefix}_split_{split}_{questions,answers}.json`` and one TIFF for each image; and
what GeoChat-Bench asks of it.

Facts: Lobry et al., RSVQA: Visual Question Answering for Remote Sensing Data, 2020; its files at
https://zenodo.org/records/6344367 (high resolution) and https://zenodo.org/records/6344334 (low resolution). An entry
that was taken out says ``"active": false``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import _json
from earthmind_jax.data.datasets._entry import (
    broken,
    folder,
    line,
    mapping,
    picture,
    require_file,
    text,
    unique,
    whole,
)
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError


def read(root: Path, split: str, prefix: str, places: tuple[str, ...]) -> Iterator[Line]:
    """A line for each question that is active, in the order of the file; ``places``: folders that may hold the images.

    Raises:
      UserError: a file or the folder of images is missing, or a file is damaged.
    """
    place = folder(root, *places)
    path = require_file(root / f"{prefix}_split_{split}_questions.json")
    answers = Answers(require_file(root / f"{prefix}_split_{split}_answers.json"))

    def values(entry: Any, answer: str | None) -> dict[str, Any]:
        key = whole(mapping(entry), "id")
        if answer is None:
            raise UserError(f"there is no answer to the question in '{answers.path}'.")
        image = picture(root, place, f"{whole(entry, 'img_id')}.tif", (".tif", ".tiff", ".png"))
        turn = {"question": text(entry, "question"), "answer": answer}
        return {"id": f"{split}/{key}", "optical": image, "turns": [turn]}

    def found() -> Iterator[Line]:
        for number, entry in enumerate(_json.items(path, "questions"), 1):
            key = entry.get("id") if isinstance(entry, dict) else None
            if isinstance(key, int) and entry.get("active") is not False:
                yield line(f"{path} question {key}", root, partial(values, entry, answers.take(key)))
            elif not isinstance(key, int):
                yield line(f"{path} entry {number}", root, partial(values, entry, None))

    return unique(found())


def read_bench(root: Path, name: str, answers: str, places: tuple[str, ...]) -> Iterator[Line]:
    """A line for each line of GeoChat-Bench's ``{name}.jsonl``: question_id, image, category, text.

    The file has no answers; they are those of the file ``answers``, by question, and none where that is not there.
    """
    place, path = folder(root, *places), require_file(root / f"{name}.jsonl")
    told = Answers(root / answers) if (root / answers).is_file() else None

    def values(entry: Any, answer: str | None) -> dict[str, Any]:
        key = whole(mapping(entry), "question_id")
        if answer is None and told is not None:
            raise UserError(f"there is no answer to the question in '{told.path}'.")
        image = picture(root, place, text(entry, "image"), (".tif", ".tiff", ".png"))
        return {"id": f"{name}/{key}", "optical": image, "turns": [{"question": text(entry, "text"), "answer": answer}]}

    def found() -> Iterator[Line]:
        for number, raw in _json.lines(path):
            where = f"{path} line {number}"
            try:
                entry = _json.parse(raw)
            except UserError as error:
                yield broken(where, str(error))
                continue
            key = entry.get("question_id") if isinstance(entry, dict) else None
            answer = told.take(key) if told is not None and isinstance(key, int) else None
            yield line(where, root, partial(values, entry, answer))

    return unique(found())


class Answers:
    """Answers by the id of their question, read as far as they are asked for.

    The files list questions and answers in one order, so that few of them wait at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: dict[int, str] = {}
        self.entries = self._read()

    def _read(self) -> Iterator[tuple[int, str]]:
        for number, entry in enumerate(_json.items(self.path, "answers"), 1):
            try:
                if mapping(entry).get("active") is not False:
                    yield whole(entry, "question_id"), text(entry, "answer")
            except UserError as error:
                raise UserError(f"'{self.path}' entry {number}: {error}") from error

    def take(self, question: int) -> str | None:
        """The answer to a question, None where there is none; UserError where the file is damaged."""
        while question not in self.waiting:
            key, answer = next(self.entries, (None, ""))
            if key is None:
                return None
            self.waiting[key] = answer
        return self.waiting.pop(question)
