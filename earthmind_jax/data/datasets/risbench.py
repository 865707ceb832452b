"""RISBench: 52,472 expressions with masks over images of 512 x 512 pixels, 26 classes, 0.1 to 30 m."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _phrases
from earthmind_jax.data.datasets._entry import folder
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test")
_HOMES = (".", "RISBench_dataset")
_IMAGES, _MASKS = ("img_rgb", "images"), ("mask", "masks")  # the second of each in copies that circulate


def _read(root: Path, split: str) -> Iterator[Line]:
    home = _HOMES[1] if (root / _HOMES[1]).is_dir() else _HOMES[0]
    places = folder(root / home, *_IMAGES), folder(root / home, *_MASKS)
    return _phrases.read(root, home, split, places, (".png", ".jpg", ".tif"))


def _found(root: Path) -> bool:
    """RefSegRS has the second names of the folders, too; below ``RISBench_dataset`` there is no doubt."""
    images = (f"./{_IMAGES[0]}", *(f"{_HOMES[1]}/{name}" for name in _IMAGES))
    return any(
        (root / place).is_dir() and (root / place).with_name(f"output_phrase_{split}.txt").is_file()
        for place in images
        for split in _SPLITS
    )


DATASET = Dataset(
    title="RISBench",
    splits=_SPLITS,
    read=_read,
    found=_found,
    layout="""
        output_phrase_{train,val,test}.txt           00001.png the large ship ...
        img_rgb/00001.png, mask/00001.png, ... (or images/ and masks/ below RISBench_dataset/)
    """,
    licence="CC BY 4.0",
    source="https://github.com/HIT-SIRS/CroBIM (Dong et al., arXiv 2410.08613)",
)
