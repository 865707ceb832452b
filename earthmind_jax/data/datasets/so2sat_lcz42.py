"""So2Sat LCZ42: Sentinel-1 and Sentinel-2 patches of 32 x 32 pixels in HDF5, labelled with local climate zones.

Of the eight real numbers of Sentinel-1 the Lee-filtered intensities are used, VH before VV, linear power. Sentinel-2 is
reflectance already. Version 2 has three files at the top, versions 3 and 4 two in a folder for each way of splitting.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data import arrays
from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "So2Sat LCZ42"
SPLITS = ("training", "validation", "testing")
VERSIONS = ("random", "block", "culture_10")
ALL = (*SPLITS, *(f"{version}/{split}" for version in VERSIONS for split in ("training", "testing")))
SEN1 = [None, None, None, None, "VH", "VV", None, None]
SEN2 = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
CLASSES = (
    "Compact high-rise", "Compact mid-rise", "Compact low-rise", "Open high-rise", "Open mid-rise", "Open low-rise",
    "Lightweight low-rise", "Large low-rise", "Sparsely built", "Heavy industry", "Dense trees", "Scattered trees",
    "Bush or scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water",
)  # fmt: skip
QUESTION = f"Which local climate zone does the image show? Choose one: {'; '.join(CLASSES)}."
ROWS = 4096  # labels read at once


def read(root: Path, split: str) -> Iterator[Line]:
    """The rows of a file, in its order."""
    path = root / f"{split}.h5"
    if not path.is_file():
        there = [name for name in ALL if (root / f"{name}.h5").is_file()]
        raise UserError(f"There is no '{path}'; the splits in this directory are {', '.join(there) or 'none'}.")
    count = _check(path)
    for start in range(0, count, ROWS):
        try:
            labels = np.asarray(arrays.dataset(path, "label")[start : start + ROWS])
        except OSError as error:
            raise UserError(f"'{path}' cannot be read, the file is damaged; copy it again ({error}).") from error
        for row, label in enumerate(labels, start):
            yield _line(root, f"{split}.h5", row, label, f"{path} row {row}")


def _check(path: Path) -> int:
    """Rows of a file; UserError where its arrays are not those of this data set."""
    counts = {}
    shapes = {"sen1": (None, None, len(SEN1)), "sen2": (None, None, len(SEN2)), "label": (len(CLASSES),)}
    for name, shape in shapes.items():
        array = arrays.dataset(path, name)
        fits = array.ndim == len(shape) + 1 and all(
            size in (None, n) for size, n in zip(shape, array.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"'{path}' array '{name}' is {list(array.shape)}; {TITLE} has [rows, {wanted}].")
        counts[name] = array.shape[0]
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"'{path}' has arrays of different lengths: {told}; get it again.")
    return counts["label"]


def _line(root: Path, file: str, row: int, label: np.ndarray, where: str) -> Line:
    chosen = np.flatnonzero(label == 1)
    if len(chosen) != 1 or np.count_nonzero(label) != 1:
        return Line(where, None, (f": the label must have a single 1, not {label.tolist()}.",))
    values: dict[str, Any] = {
        "id": f"{file[:-3]}-{row}",
        "optical": {"array": file, "dataset": "sen2", "row": row, "bands": SEN2, "unit": "reflectance"},
        "sar": {"array": file, "dataset": "sen1", "row": row, "bands": SEN1, "unit": "linear"},
        "turns": [{"question": QUESTION, "answer": CLASSES[chosen[0]]}],
    }
    return make_line(values, where, root)


DATASET = Dataset(
    title=TITLE,
    splits=ALL,
    read=read,
    found=lambda root: any((root / f"{name}.h5").is_file() for name in ALL),
    layout="""
        training.h5, validation.h5, testing.h5                        version 2
        random/, block/, culture_10/ with training.h5, testing.h5     versions 3 and 4
        each file: sen1 [N, 32, 32, 8], sen2 [N, 32, 32, 10], label [N, 17]
    """,
    licence="CC BY 4.0",
    source="https://mediatum.ub.tum.de/1613658 (doi 10.1109/MGRS.2020.2964708)",
)
