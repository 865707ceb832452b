"""RRSIS-D: 17,402 expressions with masks over DIOR images of 800 x 800 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset, _refer
from earthmind_jax.data.datasets._entry import folder, picture, require_file
from earthmind_jax.data.records import Line

_IMAGES = ("images/rrsisd/JPEGImages", "images/JPEGImages", "JPEGImages")


def _read(root: Path, split: str) -> Iterator[Line]:
    place = folder(root, *_IMAGES)
    notes = folder(root, "rrsisd", ".")
    refs = require_file(root / notes / "refs(unc).p")
    instances = require_file(root / notes / "instances.json")
    return _refer.read(root, split, refs, instances, lambda name: {"optical": picture(root, place, name, (".jpg",))})


DATASET = Dataset(
    title="RRSIS-D",
    splits=_refer.SPLITS,
    read=_read,
    found=lambda root: (
        (root / "rrsisd/refs(unc).p").is_file()
        or (root / "images/rrsisd").is_dir()
        or ((root / "refs(unc).p").is_file() and any((root / place).is_dir() for place in _IMAGES))
    ),
    layout="""
        rrsisd/refs(unc).p, rrsisd/instances.json
        images/rrsisd/JPEGImages/00001.jpg, ...
    """,
    licence="not stated; images of DIOR under its terms",
    source="https://github.com/Lsan2401/RMSIN (Liu et al., Rotated Multi-Scale Interaction Network, CVPR 2024)",
)
