"""MultiResSAR: optical and SAR pairs of 0.16 to 10 m for registration.

The two images of a pair may be shifted against each other: that is what the data set is for. It has no text and no
labels, so that a line asks without an answer, and says the shift; nothing is learned from it but what a model answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._folders import require_folder, stems
from earthmind_jax.data.records import Line, make_line

TITLE = "MultiResSAR"
SUBSETS = {"high": "High-Resolution", "low": "Low-Resolution"}
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
QUESTION = (
    "The optical and the SAR image show the same place, but one may be shifted against the other. What do they show?"
)


def read(root: Path, split: str) -> Iterator[Line]:
    """The pairs of a subset, in the order of the names of their SAR images."""
    folder = require_folder(root, TITLE, SUBSETS[split])
    left, right = require_folder(folder, TITLE, "L"), require_folder(folder, TITLE, "R")
    partners = {Path(name).stem: name for name in stems(left, ENDINGS)}
    for name in stems(right, ENDINGS):
        stem, where = Path(name).stem, f"{right / name}"
        if stem not in partners:
            yield Line(where, None, (f": there is no optical image '{stem}' in '{left}'.",))
            continue
        images = {
            "optical": f"{SUBSETS[split]}/L/{partners.pop(stem)}",
            "sar": f"{SUBSETS[split]}/R/{name}",
        }
        yield make_line({"id": f"{split}-{stem}", **images, "turns": [{"question": QUESTION}]}, where, root)
    for stem, name in sorted(partners.items()):
        yield Line(f"{left / name}", None, (f": there is no SAR image '{stem}' in '{right}'.",))


DATASET = Dataset(
    title=TITLE,
    splits=tuple(SUBSETS),
    read=read,
    found=lambda root: any((root / subset / "R").is_dir() for subset in SUBSETS.values()),
    layout="""
        High-Resolution/L/<n>.png (optical), High-Resolution/R/<n>.png (SAR): pairs may be shifted against each other
        Low-Resolution/L/, Low-Resolution/R/
    """,
    licence="research, see the publication",
    source="https://github.com/betterlll/Multi-Resolution-SAR-dataset- (arXiv 2502.01002)",
)
