"""BigEarthNet v1 (BigEarthNet-MM): Sentinel-2 and Sentinel-1 patches with the labels of CORINE Land Cover.

Each patch is a folder of single-band files: 12 bands of Sentinel-2 Level-2A (120, 60 and 20 pixels a side, processing
baselines before the offset), VV and VH of Sentinel-1 in dB. Labels are asked for in the 19-class nomenclature; a patch
that has none of its classes keeps its own names.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthmind_jax.config import nearest
from earthmind_jax.data.datasets import Dataset, _json
from earthmind_jax.data.datasets._corine import CLASSES, DROPPED, OF_43
from earthmind_jax.data.datasets._entry import listed, shown
from earthmind_jax.data.datasets._folders import subfolder
from earthmind_jax.data.datasets._labels import question_of_classes
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "BigEarthNet v1 (BigEarthNet-MM)"
S2, S1 = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0"), ("BigEarthNet-S1-v1.0",)
S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S1_BANDS = ("VV", "VH")
METADATA = "_labels_metadata.json"
LABELS = (*OF_43, *DROPPED)
NAME = re.compile(r"[\w.-]{1,200}", re.ASCII)  # of a patch


def sentinel2(folder: str, patch: str) -> dict[str, Any]:
    """The image of a patch: counts of reflectance / 10000 without offset."""
    return {"bands": {b: f"{folder}/{patch}_{b}.tif" for b in S2_BANDS}, "sensor": "s2_l2a", "offset": 0}


def sentinel1(folder: str, patch: str) -> dict[str, Any]:
    """The image of a patch, in dB."""
    return {"bands": {b: f"{folder}/{patch}_{b}.tif" for b in S1_BANDS}, "sensor": "s1", "scale": "dB"}


def read(root: Path, split: str) -> Iterator[Line]:
    """Pairs of a split file (``train.csv``: Sentinel-2 and Sentinel-1 name in each line), or of all folders."""
    s2, s1 = subfolder(root, *S2), subfolder(root, *S1)
    if s2 is None and s1 is None:
        raise UserError(f"'{root}' has neither {S2[0]} nor {S1[0]}, the folders of {TITLE}.")
    for s2_name, s1_name, where in _every(s2, s1) if split == "all" else _listed(root, split):
        yield _line(root, s2 if s2_name else None, s1 if s1_name else None, s2_name, s1_name, where)


def _every(s2: Path | None, s1: Path | None) -> Iterator[tuple[str, str, str]]:
    """A Sentinel-1 patch knows its Sentinel-2 patch, and each has one."""
    folder = s1 or s2
    assert folder is not None
    for name in (name for name in listed(folder) if (folder / name).is_dir()):
        yield ("?" if s2 else "", name, f"{folder / name}") if s1 else (name, "", f"{folder / name}")


def _listed(root: Path, split: str) -> Iterator[tuple[str, str, str]]:
    names = (f"{split}.csv", f"bigearthnet-{split}.csv", f"splits/{split}.csv")
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise UserError(f"'{root}' has no {names[0]}, the list of the split {split}; --split all reads every patch.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if row and row[0]:
                    s2_name, s1_name = (name.strip() for name in itertools.islice([*row, ""], 2))
                    yield s2_name, s1_name, f"{path} line {number}"
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' cannot be read as a list of patches: {error}.") from error


def _line(root: Path, s2: Path | None, s1: Path | None, s2_name: str, s1_name: str, where: str) -> Line:
    try:
        for name in (s2_name, s1_name):
            if name not in ("", "?") and not NAME.fullmatch(name):
                raise UserError(f"{shown(name)} is no name of a patch.")
        labels: Any = None
        if s1 is not None:
            told = _metadata(s1 / s1_name / f"{s1_name}{METADATA}")
            labels = told["labels"]
            if s2_name == "?":
                s2_name = told.get("corresponding_s2_patch") or ""
                if not (isinstance(s2_name, str) and NAME.fullmatch(s2_name)):
                    raise UserError(f"'{s1_name}{METADATA}' does not name its 'corresponding_s2_patch'.")
        if s2 is not None:
            labels = _metadata(s2 / s2_name / f"{s2_name}{METADATA}")["labels"]
        turns = label_turns(labels)
    except UserError as error:
        return Line(where, None, (f": {error}",))
    images = {
        "optical": None if s2 is None else sentinel2(f"{s2.name}/{s2_name}", s2_name),
        "sar": None if s1 is None else sentinel1(f"{s1.name}/{s1_name}", s1_name),
    }
    return make_line({"id": s2_name or s1_name, **images, "turns": turns}, where, root)


def _metadata(path: Path) -> dict[str, Any]:
    told = _json.load(path)
    if not isinstance(told, dict) or not isinstance(told.get("labels"), list):
        raise UserError(f"'{path}' has no list of 'labels'.")
    return told


def label_turns(labels: list[Any], *, of_19: bool = False) -> list[dict[str, Any]]:
    """The question for the land cover of a patch, by labels of the 43 or only the 19 classes; UserError for another."""
    known = CLASSES if of_19 else (*LABELS, *CLASSES)
    for label in labels:
        if not isinstance(label, str) or label not in known:
            raise UserError(f"there is no label {label!r} in its nomenclature.{nearest(str(label), known)}")
    found = {OF_43.get(label, label) for label in labels}
    seen = [name for name in CLASSES if name in found]
    if not seen and labels:
        return [{"question": "What land cover does the image show?", "answer": "; ".join(labels)}]
    return [question_of_classes(CLASSES, seen)]


DATASET = Dataset(
    title=TITLE,
    splits=("train", "val", "test", "all"),
    read=read,
    found=lambda root: subfolder(root, *S2, *S1) is not None,
    layout="""
        train.csv, val.csv, test.csv            lines of <Sentinel-2 patch>,<Sentinel-1 patch>; not for --split all
        BigEarthNet-v1.0/<patch>/               <patch>_B01.tif ... <patch>_B12.tif, <patch>_labels_metadata.json
        BigEarthNet-S1-v1.0/<patch>/            <patch>_VV.tif, <patch>_VH.tif, <patch>_labels_metadata.json
    """,
    licence="Community Data License Agreement - Permissive 1.0",
    source="https://bigearth.net (doi 10.1109/MGRS.2021.3089174)",
)
