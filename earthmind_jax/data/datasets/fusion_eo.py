"""FusionEO: conversations about optical and SAR pairs (the paired part of EarthMind-data).

An entry names one file that lies in both image folders. A directory with further parts of EarthMind-data is that set,
which has this one as its split "pairs".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, earthmind_data
from earthmind_jax.data.datasets._llava import conversations, pair
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

TITLE = "FusionEO"
IMAGES = ("pair_data/train", "train", ".")
TEXTS = "final_all.json"


def read(root: Path, split: str) -> Iterator[Line]:
    """The conversations in the order of the file."""
    folder, path = _images(root), _texts(root)
    if folder is None:
        raise UserError(f"'{root}' has no folder {IMAGES[0]} with rgb/img and sar/img, the images of {TITLE}.")
    if path is None:
        raise UserError(f"'{root}' has no {TEXTS}, the conversations of {TITLE}.")
    yield from conversations(root, "pairs", path, pair(folder.relative_to(root).as_posix(), "/img"))


def _images(root: Path) -> Path | None:
    return next((root / name for name in IMAGES if (root / name / "rgb" / "img").is_dir()), None)


def _texts(root: Path) -> Path | None:
    places = (root / TEXTS, *(root / name / TEXTS for name in ("pair_data", *IMAGES)))
    return next((path for path in places if path.is_file()), None)


def _found(root: Path) -> bool:
    return _images(root) is not None and _texts(root) is not None and not earthmind_data.DATASET.found(root)


DATASET = Dataset(
    title=TITLE,
    splits=("train",),
    read=read,
    found=_found,
    layout="""
        final_all.json                                    [{"image": "000123.png", "conversations": [...]}, ...]
        pair_data/train/rgb/img/000123.png, pair_data/train/sar/img/000123.png (or without the outer folders)
    """,
    licence="as the repository of EarthMind-data says; parts are for research only",
    source="https://huggingface.co/datasets/sy1998/EarthMind-data (Multisensor_RS_Data)",
)
