"""RSVQA high resolution (USGS, 15 cm, 512 x 512 pixels), and the part of it that GeoChat-Bench asks (HRBEN)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json, _rsvqa
from earthmind_jax.data.datasets._entry import broken, folder, line, mapping, picture, require_file, text, unique, whole
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

_PLACES = ("Data", "images", "Images", ".")
_ANSWERS = "USGS_split_test_phili_answers.json"


def _read(root: Path, split: str) -> Iterator[Line]:
    return _bench(root) if split == "hrben" else _rsvqa.read(root, split, "USGS", _PLACES)


def _bench(root: Path) -> Iterator[Line]:
    """``hrben.jsonl``: question_id, image, category, text; the answers are those of the second test split, by question,
    and none where that file is not there."""
    path, place = require_file(root / "hrben.jsonl"), folder(root, *_PLACES)
    answers = _rsvqa.Answers(root / _ANSWERS) if (root / _ANSWERS).is_file() else None

    def values(entry: Any, answer: str | None) -> dict[str, Any]:
        key = whole(mapping(entry), "question_id")
        image = picture(root, place, text(entry, "image"), (".tif", ".png", ".jpg"))
        return {"id": f"hrben/{key}", "optical": image, "turns": [{"question": text(entry, "text"), "answer": answer}]}

    def found() -> Iterator[Line]:
        for number, raw in _json.lines(path):
            where = f"{path} line {number}"
            try:
                entry = _json.parse(raw)
            except UserError as error:
                yield broken(where, str(error))
                continue
            key = entry.get("question_id") if isinstance(entry, dict) else None
            answer = answers.take(key) if answers is not None and isinstance(key, int) else None
            yield line(where, root, partial(values, entry, answer))

    return unique(found())


DATASET = Dataset(
    title="RSVQA-HRBEN",
    splits=("train", "val", "test", "test_phili", "hrben"),
    read=_read,
    found=lambda root: (
        (root / "hrben.jsonl").is_file()
        or any((root / f"USGS_split_{s}_questions.json").is_file() for s in ("train", "val", "test", "test_phili"))
    ),
    layout="""
        USGS_split_{train,val,test,test_phili}_{questions,answers}.json
        Data/0.tif, ...
        hrben.jsonl      the split "hrben": questions of GeoChat-Bench about test_phili
    """,
    licence="CC BY 4.0; images of the USGS are public domain",
    source="https://zenodo.org/records/6344367; hrben.jsonl: https://huggingface.co/datasets/MBZUAI/GeoChat-Bench",
)
