"""RSVQA low resolution (Sentinel-2 in colour, 10 m, 256 x 256 pixels), and what GeoChat-Bench asks of it (LRBEN)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _rsvqa
from earthmind_jax.data.records import Line

_SPLITS = ("train", "val", "test")
_PLACES = ("Images_LR", "Images", "images", "Data", ".")


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "lrben":
        return _rsvqa.read_bench(root, split, "LR_split_test_answers.json", _PLACES)
    return _rsvqa.read(root, split, "LR", _PLACES)


DATASET = Dataset(
    title="RSVQA-LR",
    splits=(*_SPLITS, "lrben"),
    read=_read,
    found=lambda root: (
        (root / "lrben.jsonl").is_file() or any((root / f"LR_split_{s}_questions.json").is_file() for s in _SPLITS)
    ),
    layout="""
        LR_split_{train,val,test}_{questions,answers}.json
        Images_LR/0.tif, ...
        lrben.jsonl      the split "lrben": questions of GeoChat-Bench about test
    """,
    licence="CC BY 4.0; contains modified Copernicus Sentinel data",
    source="https://zenodo.org/records/6344334; lrben.jsonl: https://huggingface.co/datasets/MBZUAI/GeoChat-Bench",
)
