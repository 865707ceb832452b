"""RefSegRS: 4,420 expressions with masks over aerial images of 512 x 512 pixels (SkyScapes)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _phrases
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test")


def _read(root: Path, split: str) -> Iterator[Line]:
    return _phrases.read(root, ".", split, ("images", "masks"), (".tif", ".tiff", ".png"))


DATASET = Dataset(
    title="RefSegRS",
    splits=_SPLITS,
    read=_read,
    found=lambda root: (
        (root / "masks").is_dir() and any((root / f"output_phrase_{split}.txt").is_file() for split in _SPLITS)
    ),
    layout="""
        output_phrase_{train,val,test}.txt           1361 paved road
        images/1361.tif, masks/1361.tif, ...
    """,
    licence="CC BY 4.0",
    source="https://huggingface.co/datasets/JessicaYuan/RefSegRS (Yuan et al., RRSIS, TGRS 2024)",
)
