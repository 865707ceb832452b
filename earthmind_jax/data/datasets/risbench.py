"""RISBench: 52,472 expressions with masks over images of 512 x 512 pixels, 26 classes, 0.1 to 30 m."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _phrases
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test")
_HOMES = (".", "RISBench_dataset")


def _home(root: Path) -> str:
    return next((home for home in _HOMES if (root / home / "img_rgb").is_dir()), _HOMES[0])


def _read(root: Path, split: str) -> Iterator[Line]:
    return _phrases.read(root, _home(root), split, ("img_rgb", "mask"), (".png", ".jpg", ".tif"))


DATASET = Dataset(
    title="RISBench",
    splits=_SPLITS,
    read=_read,
    found=lambda root: any(
        (root / home / "img_rgb").is_dir() and (root / home / f"output_phrase_{split}.txt").is_file()
        for home in _HOMES
        for split in _SPLITS
    ),
    layout="""
        output_phrase_{train,val,test}.txt           00001.png the large ship ...
        img_rgb/00001.png, mask/00001.png, ...
    """,
    licence="CC BY 4.0",
    source="https://github.com/HIT-SIRS/CroBIM (Dong et al., arXiv 2410.08613)",
)
