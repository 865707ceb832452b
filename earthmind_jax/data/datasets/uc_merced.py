"""UC Merced land use: 2,100 aerial images of 256 x 256 pixels in 21 classes, and GeoChat-Bench's questions on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _scenes
from earthmind_jax.data.datasets._entry import require_file
from earthmind_jax.data.records import Line

_WORDS = """agricultural, airplane, baseball diamond, beach, buildings, chaparral, dense residential, forest, freeway,
    golf course, harbor, intersection, medium residential, mobile home park, overpass, parking lot, river, runway,
    sparse residential, storage tanks, tennis court"""
CLASSES = {words.strip().replace(" ", ""): words.strip() for words in _WORDS.split(",")}
_PARENTS = ("Images", "UCMerced_LandUse/Images", ".")


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "geochat":
        path = require_file(root / "UCmerced.jsonl")
        return _scenes.from_questions(root, path, _scenes.require_place(root, CLASSES, *_PARENTS), CLASSES)
    return _scenes.from_folders(root, _scenes.require_place(root, CLASSES, *_PARENTS), CLASSES)


DATASET = Dataset(
    title="UC Merced",
    splits=("all", "geochat"),
    read=_read,
    found=lambda root: (root / "UCmerced.jsonl").is_file() or _scenes.place_of(root, CLASSES, *_PARENTS) is not None,
    layout="""
        Images/agricultural/agricultural00.tif, ...   a folder for each class
        UCmerced.jsonl                                the split "geochat": questions of GeoChat-Bench
    """,
    licence="images of the USGS are public domain",
    source="http://weegee.vision.ucmerced.edu/datasets/landuse.html; "
    "UCmerced.jsonl: https://huggingface.co/datasets/MBZUAI/GeoChat-Bench",
)
