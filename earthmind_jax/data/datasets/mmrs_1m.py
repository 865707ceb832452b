"""MMRS-1M (EarthGPT): over a million conversations about optical, SAR and infrared images, in the layout of LLaVA.

A box in words is ``[x1,y1,x2,y2]``, or several ``[...;...]``, as fractions of the image after it has been padded to a
square, centred (the README of wivizhang/EarthGPT); an oriented one has its four corners. Here they are fractions of the
image itself. Names of files as in copies of the release: ``json/RSVG/rsvg_trainval.json``, images ``data/RSVG/...``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json, _llava
from earthmind_jax.data.datasets._entry import (
    PICTURES,
    box,
    folder,
    line,
    mapping,
    picture,
    polygons,
    shown,
    size,
    text,
)
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

_TASKS = ("classification", "caption", "vqa", "rsvg", "detection")
_NOTES = ("data/json", "json")
_SKIPPED = re.compile(r"\.|.*total", re.IGNORECASE)  # hidden files, and one of all entries of the others
_SAR = re.compile(r"hrsid|hrisd|ssdd|sar[-_ ]?(?:ship|v2)|(?:^|[/_-])sar(?:[/_.-]|$)", re.IGNORECASE)
_NUMBER = r"\s*-?(?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?\s*"
_BOX = rf"(?:{_NUMBER},){{3}}{_NUMBER}(?:(?:,{_NUMBER}){{4}})?"
_BOXES = re.compile(rf"\[({_BOX}(?:;{_BOX})*);?\]")
_NUMBERS = re.compile(r"\[[\d\s.,;e-]*\]")
_ROUNDING = 0.01  # of the square's side: what the decimals of a published box may put it out of the image


def _notes(root: Path, task: str) -> list[Path]:
    """The files of a task, sorted; the names of the folders differ in capitals between releases."""
    place = root / folder(root, *_NOTES)
    homes = [p for p in place.iterdir() if p.is_dir() and p.name.lower() == task]
    found = (Path(top) / name for home in homes for top, _, names in os.walk(home, onerror=_fail) for name in names)
    return sorted(path for path in found if path.suffix == ".json" and not _SKIPPED.match(path.name))


def _fail(error: OSError) -> None:
    raise error


def _read(root: Path, split: str) -> Iterator[Line]:
    task, _, drawn = split.partition("_")
    tasks = _TASKS if task == "train" else (task,)
    files = [path for task in tasks for path in _notes(root, task)]
    if not files:
        raise UserError(f"'{root / folder(root, *_NOTES)}' has no JSON file in the folder of {' or '.join(tasks)}.")
    for path in files:
        for number, entry in enumerate(_json.items(path)):
            make = partial(_values, root, path, entry, number, bool(drawn))
            yield line(f"{path} entry {number + 1}", root, make)


def _values(root: Path, path: Path, entry: Any, number: int, drawn: bool) -> dict[str, Any]:
    name = mapping(entry).get("image")
    key = f"{path.parent.name}/{path.stem}/{number}"
    if name is None:
        return {"id": key, "turns": _llava.turns(entry.get("conversations"), 0)}
    name = text(entry, "image")
    try:
        image = picture(root, ".", name, PICTURES)
    except UserError:
        image = picture(root, ".", name.removeprefix("data/") if name.startswith("data/") else f"data/{name}", PICTURES)
    sensor = "sar" if _SAR.search(f"{path.parent.name}/{path.name}/{name}") else "optical"
    turns = _llava.turns(entry.get("conversations"))
    said = "\n".join(f"{turn['question']}\n{turn['answer'] or ''}" for turn in turns)
    for found in _NUMBERS.findall(said):
        if re.search(r"\.\d", found) and "," in found and not _BOXES.fullmatch(found):
            raise UserError(f"the boxes {shown(found)} must have four numbers each, or eight where they are oriented.")
    if _BOXES.search(said):
        shape = size(root, image)
        turns = [_turn(turn, shape, drawn) for turn in turns]
    return {"id": key, sensor: image, "turns": turns}


def _turn(turn: dict[str, Any], shape: tuple[int, int], drawn: bool) -> dict[str, Any]:
    """A turn with its boxes brought onto the image: one that is asked about is its region, all others are fractions of
    the image, or masks where the answer's are to be ``drawn``."""
    masks: list[Any] = []

    def fractions(found: re.Match[str]) -> str:
        return f"[{';'.join(_fractions(one, shape) for one in found[1].split(';'))}]"

    def mask(found: re.Match[str]) -> str:
        masks.append(_outlines(found[1], shape))
        return " [SEG]"

    made = dict(turn)
    asked = _BOXES.findall(turn["question"])
    if len(asked) == 1 and ";" not in asked[0]:
        made |= {"question": _BOXES.sub("{region}", turn["question"]), "region": _outlines(asked[0], shape)}
    else:
        made["question"] = _BOXES.sub(fractions, turn["question"])
    if turn["answer"] is not None:
        made["answer"] = _BOXES.sub(mask if drawn else fractions, turn["answer"])
    return made | ({"masks": masks} if masks else {})


def _outlines(words: str, shape: tuple[int, int]) -> list[list[float]]:
    """Polygons of boxes ``x1,y1,x2,y2;...`` that are fractions of the padded square; UserError where one is none."""
    height, width = shape
    side = max(shape)
    left, top = (side - width) // 2, (side - height) // 2
    made = []
    for one in words.split(";"):
        edges = [float(value) * side - (top if i % 2 else left) for i, value in enumerate(one.split(","))]
        if len(edges) == 8:
            made += polygons([edges], shape)
            continue
        inside = [min(max(v, 0.0), float(most)) for v, most in zip(edges, (width, height) * 2, strict=True)]
        near = all(abs(a - b) <= side * _ROUNDING for a, b in zip(edges, inside, strict=True))
        made += box(inside if near else edges, shape)
    return made


def _fractions(words: str, shape: tuple[int, int]) -> str:
    """One box in words as fractions of the image."""
    (outline,) = _outlines(words, shape)
    if words.count(",") == 3:
        outline = [*outline[:2], *outline[4:6]]
    return ",".join(f"{value / shape[1 - i % 2]:.3f}" for i, value in enumerate(outline))


DATASET = Dataset(
    title="MMRS-1M",
    splits=("train", *_TASKS, "rsvg_boxes", "detection_boxes"),
    read=_read,
    found=lambda root: any(
        (root / notes / task).is_dir() for notes in _NOTES for task in (*_TASKS, "VQA", "RSVG", "Detection")
    ),
    layout="""
        data/json/{classification,caption,VQA,RSVG,detection}/**/*.json
        data/...                                     the images that they name
        In the splits of boxes the boxes of answers are masks.
    """,
    licence="not stated; each image under the terms of the set that it is from",
    source="https://github.com/wivizhang/EarthGPT (Zhang et al., EarthGPT, TGRS 2024)",
)
