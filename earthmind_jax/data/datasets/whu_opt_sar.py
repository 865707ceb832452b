"""WHU-OPT-SAR: 100 scenes of GF-1 (red, green, blue, infrared) and GF-3 SAR at 5 m with land cover labels.

The labels of the scenes are 0, 10, ..., 70; those of the crops that the authors' scripts make are 0 to 7. The scenes
are divided by the authors' list of file names below the lines "train:" and "test:".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._folders import read_names
from earthmind_jax.data.datasets._triples import Triples
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

CROPS = ("train", "val", "test")
DIVISION = "The division of the dataset.txt"
NAMES = ("farmland", "city", "village", "water", "forest", "road", "others")


@dataclass(frozen=True, kw_only=True)
class Scenes(Triples):
    """Label maps in either coding; a map of the value 0 alone is both."""

    def _coding(self, path: Path) -> Mapping[int, str]:
        from earthmind_jax.geo.raster import read_raster

        small = read_raster(path, labels=True).data.max() <= len(NAMES)
        return {value // 10: name for value, name in self.classes.items()} if small else self.classes


def _optical(file: Path, path: str) -> dict[str, Any]:
    """Four bands, of which GDAL takes the last for transparency; counts where they are no 8-bit rendering."""
    told = {"file": path, "bands": ["R", "G", "B", "N"]}
    return told if _is_8bit(file) else told | {"sensor": "vhr"}


def _sar(file: Path, path: str) -> Any:
    return path if _is_8bit(file) else {"file": path, "bands": ["CO"], "sensor": "gf3"}


def _is_8bit(file: Path) -> bool:
    from earthmind_jax.geo.raster import peek_sensor

    return peek_sensor(file)[1] == "uint8"


FILES = Scenes(
    title="WHU-OPT-SAR",
    optical=("optical", "opt"),
    sar=("sar",),
    labels=("lbl", "label", "labels"),
    classes={10 * value: name for value, name in enumerate(NAMES, 1)},
    optical_image=_optical,
    sar_image=_sar,
)


def read(root: Path, split: str) -> Iterator[Line]:
    """The scenes, or those of a split where the authors' list of them is there, or the crops of a split."""
    if split != "all" and (root / DIVISION).is_file() and not (root / split).is_dir():
        return FILES.read(root, root, labelled=True, only=_division(root / DIVISION, split))
    folder = root if split == "all" else root / split
    if not folder.is_dir():
        raise UserError(f"'{root}' has no folder {split} of crops and no '{DIVISION}'; the scenes are --split all.")
    if not FILES.found(folder):
        there = [name for name in CROPS if (root / name).is_dir()]
        raise UserError(f"'{folder}' lacks optical, sar and lbl; its crops are --split {' or '.join(there) or 'none'}.")
    return FILES.read(root, folder, labelled=True)


def _division(path: Path, split: str) -> frozenset[str]:
    """The file names of a split; UserError where the list has none."""
    found: dict[str, set[str]] = {}
    part = ""
    for name in read_names(path):
        if name.endswith(":"):
            part = name.removesuffix(":").strip().lower()
        else:
            found.setdefault(part, set()).add(name)
    if split not in found:
        raise UserError(f"'{path}' names no scenes for the split {split}; it has {', '.join(sorted(found)) or 'none'}.")
    return frozenset(found[split])


DATASET = Dataset(
    title=FILES.title,
    splits=("all", *CROPS),
    read=read,
    found=lambda root: any(
        FILES.found(folder) and any((folder / name).is_dir() for name in FILES.labels)
        for folder in (root, *(root / split for split in CROPS))
    ),
    layout="""
        optical/NH49E001013.tif (R, G, B, NIR), sar/NH49E001013.tif, lbl/NH49E001013.tif (0, 10, ..., 70)
        The division of the dataset.txt: the scenes of --split train and test (may be missing)
        or crops: train/opt/, train/sar/, train/lbl/ (0 to 7), val/ and test/ likewise
    """,
    licence="research, see the publication",
    source="https://github.com/AmberHen/WHU-OPT-SAR-dataset (doi 10.1016/j.jag.2021.102638)",
)
