"""AID: 10,000 aerial images of 600 x 600 pixels in 30 classes, and GeoChat-Bench's questions on a part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _scenes
from earthmind_jax.data.datasets._entry import require_file
from earthmind_jax.data.records import Line

_NAMES = """Airport BareLand BaseballField Beach Bridge Center Church Commercial DenseResidential Desert Farmland Forest
    Industrial Meadow MediumResidential Mountain Park Parking Playground Pond Port RailwayStation Resort River School
    SparseResidential Square Stadium StorageTanks Viaduct"""
CLASSES = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in _NAMES.split()}
_PARENTS = (".", "AID", "images", "aid_test_image")


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "geochat":
        path = require_file(root / "aid.jsonl")
        return _scenes.from_questions(root, path, _scenes.require_place(root, CLASSES, *_PARENTS), CLASSES)
    return _scenes.from_folders(root, _scenes.require_place(root, CLASSES, *_PARENTS), CLASSES)


DATASET = Dataset(
    title="AID",
    splits=("all", "geochat"),
    read=_read,
    found=lambda root: (root / "aid.jsonl").is_file() or _scenes.place_of(root, CLASSES, *_PARENTS) is not None,
    layout="""
        Airport/airport_1.jpg, BareLand/bareland_1.jpg, ...   a folder for each class
        aid.jsonl                                             the split "geochat": questions of GeoChat-Bench
    """,
    licence="not stated; images of Google Earth under its terms",
    source="https://captain-whu.github.io/AID/; aid.jsonl: https://huggingface.co/datasets/MBZUAI/GeoChat-Bench",
)
