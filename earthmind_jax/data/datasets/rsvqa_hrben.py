"""RSVQA high resolution (USGS, 15 cm, 512 x 512 pixels), and the part of it that GeoChat-Bench asks (HRBEN)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _rsvqa
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test", "test_phili")
_PLACES = ("Data", "images", "Images", ".")


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "hrben":
        return _rsvqa.read_bench(root, split, "USGS_split_test_phili_answers.json", _PLACES)
    return _rsvqa.read(root, split, "USGS", _PLACES)


DATASET = Dataset(
    title="RSVQA-HRBEN",
    splits=(*_SPLITS, "hrben"),
    read=_read,
    found=lambda root: (
        (root / "hrben.jsonl").is_file() or any((root / f"USGS_split_{s}_questions.json").is_file() for s in _SPLITS)
    ),
    layout="""
        USGS_split_{train,val,test,test_phili}_{questions,answers}.json
        Data/0.tif, ...
        hrben.jsonl      the split "hrben": questions of GeoChat-Bench about test_phili
    """,
    licence="CC BY 4.0; images of the USGS are public domain",
    source="https://zenodo.org/records/6344367; hrben.jsonl: https://huggingface.co/datasets/MBZUAI/GeoChat-Bench",
)
