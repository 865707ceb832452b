"""Scene classification: one folder for each class, or the question file that GeoChat-Bench has for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from earthmind_jax.config import nearest
from earthmind_jax.data.archives import MACOS
from earthmind_jax.data.datasets import _json
from earthmind_jax.data.datasets._entry import (
    PICTURES,
    broken,
    line,
    listed,
    mapping,
    picture,
    pictures,
    shown,
    text,
    unique,
)
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError


def from_folders(root: Path, place: str, classes: Mapping[str, str]) -> Iterator[Line]:
    """A line for each picture, class by class in the order of the names.

    The question is that of GeoChat-Bench, with the classes in words.

    Args:
      classes: the name of a class's folder -> the class in words.
    """
    names = [name for name in listed(root / place) if (root / place / name).is_dir() and name != MACOS]
    question = ask(classes)
    for name in names:
        if name not in classes:
            yield broken(f"{root / place / name}", f"it is none of the classes.{nearest(name, classes)}")
            continue
        found = pictures(root / place / name)
        if not found:
            yield broken(f"{root / place / name}", "the folder has no picture.")
        turn = {"question": question, "answer": classes[name]}
        for file in found:
            inner = f"{name}/{file}"
            image = str(Path(place) / inner)
            values = {"id": inner, "optical": image, "turns": [turn]}
            yield line(str(root / image), root, lambda v=values: v)


def from_questions(root: Path, path: Path, place: str, classes: Mapping[str, str]) -> Iterator[Line]:
    """A line for each line of a question file: question_id, image, text.

    The class is the folder in ``question_id`` (or ``image``), as in the published scoring: the field ``ground_truth``
    of AID's file is not a class name (it ends in "gt"), and its image names have another ending than the images.
    """

    def values(raw: bytes) -> dict[str, Any]:
        entry = mapping(_json.parse(raw))
        image = picture(root, place, text(entry, "image"), PICTURES)
        told = entry.get("question_id")
        name = (told if isinstance(told, str) and "/" in told else text(entry, "image")).split("/")[0]
        by_case = {key.lower(): key for key in classes}
        if name.lower() not in by_case:
            raise UserError(f"{shown(name)} is none of the classes.{nearest(name, classes)}")
        turn = {"question": text(entry, "text"), "answer": classes[by_case[name.lower()]]}
        return {"id": f"geochat/{text(entry, 'image')}", "optical": image, "turns": [turn]}

    return unique(line(f"{path} line {n}", root, lambda t=raw: values(t)) for n, raw in _json.lines(path))


def ask(classes: Mapping[str, str]) -> str:
    """GeoChat-Bench's question for a class."""
    return (
        f"Classify the image within one of the given classes: {', '.join(classes.values())}. "
        "Answer with one word or short phrase."
    )


def place_of(root: Path, classes: Mapping[str, str], *parents: str) -> str | None:
    """The first of the folders in which a class has its folder."""
    return next((p for p in parents if any((root / p / name).is_dir() for name in classes)), None)


def require_place(root: Path, classes: Mapping[str, str], *parents: str) -> str:
    """The same; UserError where there is none."""
    place = place_of(root, classes, *parents)
    if place is None:
        first = next(iter(classes))
        raise UserError(
            f"'{root}' has no folder for each class, such as '{root / parents[0] / first}'; "
            "see the layout that is expected with: earthmind data list"
        )
    return place
