"""RSVQA low resolution (Sentinel-2 in colour, 10 m, 256 x 256 pixels, the Netherlands)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _rsvqa
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test")


def _read(root: Path, split: str) -> Iterator[Line]:
    return _rsvqa.read(root, split, "LR", ("Images_LR", "Images", "images", "Data"))


DATASET = Dataset(
    title="RSVQA-LR",
    splits=_SPLITS,
    read=_read,
    found=lambda root: any((root / f"LR_split_{split}_questions.json").is_file() for split in _SPLITS),
    layout="""
        LR_split_{train,val,test}_{questions,answers}.json
        Images_LR/0.tif, ...
    """,
    licence="CC BY 4.0; contains modified Copernicus Sentinel data",
    source="https://zenodo.org/records/6344334",
)
