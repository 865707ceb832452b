"""OpenEarthMap-SAR (also track 1 of the Data Fusion Contest 2025): submetre optical and X-band SAR with land cover.

The SAR is 8-bit amplitude of one channel. Part of the labels are pseudo-labels; the optical images of the test regions
are kept back, so that those lines have SAR alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._triples import Triples
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

SPLITS = ("train", "val", "test")
NAMES = ("bareland", "rangeland", "developed space", "road", "tree", "water", "agriculture land", "building")
FILES = Triples(
    title="OpenEarthMap-SAR",
    optical=("rgb_images",),
    sar=("sar_images",),
    labels=("labels",),
    classes=dict(enumerate(NAMES, 1)),
)


def read(root: Path, split: str) -> Iterator[Line]:
    """The images of a split's folder; of the directory itself where it has the three folders, as the training split."""
    folder = root if split == "train" and FILES.found(root) else root / split
    if not folder.is_dir():
        raise UserError(f"'{root}' has no folder {split} for this split of {FILES.title}.")
    return FILES.read(root, folder, labelled=split == "train")


DATASET = Dataset(
    title=FILES.title,
    splits=SPLITS,
    read=read,
    found=lambda root: any((folder / "sar_images").is_dir() for folder in (root, *(root / split for split in SPLITS))),
    layout="""
        train/rgb_images/<name>.tif, train/sar_images/<name>.tif, train/labels/<name>.tif (0 unknown, 1 to 8)
        val/, test/ likewise, without rgb_images and labels where they are kept back
    """,
    licence="as each source region asks for, see the publication; research",
    source="https://zenodo.org/records/14622048 (arXiv 2501.10891)",
)
