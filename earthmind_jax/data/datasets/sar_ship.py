"""SAR-Ship-Dataset: chips of 256 x 256 pixels from Gaofen-3 and Sentinel-1 with a box for each ship.

A box is no outline, and the question says that boxes are asked for: their masks are the filled boxes, one ``[SEG]``
each. A first turn gives the boxes in words, as corners in hundredths of the image and an angle, the form that EarthDial
published for this data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._folders import read_names, stems, subfolder
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "SAR-Ship-Dataset"
FOLDERS = ("ship_dataset_v0", "ship_dataset_v0/ship_dataset_v0")
SATELLITES = ("Gao_", "Sen_")  # what the names of all chips begin with
ENDINGS = (".jpg", ".jpeg", ".png")
WORDS = "Where are the ships in this SAR image? Give the bounding box of each as [x1, y1, x2, y2, angle], 0 to 100."
MASKS = "Where are the ships in this SAR image? Mark the bounding box of each."

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as shares of the image."""


def read(root: Path, split: str) -> Iterator[Line]:
    """The chips in the order of their names; one without a label file is broken, with an empty one it has no ship."""
    folder = _folder(root)
    if folder is None:
        raise UserError(f"'{root}' has no folder {FOLDERS[0]} with chips (.jpg) and their boxes (.txt).")
    chips = stems(folder, ENDINGS)
    for name in chips:
        yield _line(root, folder / name)
    known = {Path(name).stem for name in chips}
    for name in stems(folder, (".txt",)):
        if Path(name).stem not in known and (name.startswith(SATELLITES) or _has_boxes(folder / name)):
            yield Line(f"{folder / name}", None, (": there is no chip that these boxes are of.",))


def _has_boxes(path: Path) -> bool:
    """Whether a text file holds boxes, and not such as the names of the classes."""
    try:
        return bool([_box(text, number) for number, text in enumerate(read_names(path), 1)])
    except UserError:
        return False


def _folder(root: Path) -> Path | None:
    """The innermost of the nested folders."""
    inner = [subfolder(root, name) for name in FOLDERS]
    if root.name == FOLDERS[0]:
        inner.insert(0, root)
    return next((folder for folder in reversed(inner) if folder is not None), None)


def _line(root: Path, path: Path) -> Line:
    from earthmind_jax.data.read import picture_header

    try:
        boxes = [_box(text, number) for number, text in enumerate(read_names(path.with_suffix(".txt")), 1)]
        height, width = picture_header(str(path))[0] if boxes else (1, 1)
    except UserError as error:
        return Line(f"{path}", None, (f": {error}",))
    words = [[round(100 * side) for side in box] + [0] for box in boxes]
    turns: list[dict[str, Any]] = [{"question": WORDS, "answer": str(words) if boxes else "There are no ships."}]
    if boxes:
        masks = [[_corners(box, width, height)] for box in boxes]
        turns.append({"question": MASKS, "answer": " ".join(["[SEG]"] * len(boxes)), "masks": masks})
    return make_line({"id": path.stem, "sar": path.relative_to(root).as_posix(), "turns": turns}, f"{path}", root)


def _box(text: str, number: int) -> Box:
    """A line ``class x y width height`` (centre and size as shares of the image)."""
    parts = text.split()
    try:
        kind, x, y, width, height = int(parts[0]), *map(float, parts[1:])
    except (ValueError, IndexError):
        raise UserError(f"line {number} of its boxes must be 'class x y width height', not {text!r}.") from None
    if kind != 0:
        raise UserError(f"line {number} of its boxes has the class {kind}; the only one is 0, ship.")
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    inside = all(isfinite(v) and -0.01 <= v <= 1.01 for v in box)
    if not inside or width <= 0 or height <= 0:
        raise UserError(f"line {number} of its boxes, {text!r}, lies outside of the image (shares 0 to 1) or is empty.")
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in box)
    return x1, y1, x2, y2


def _corners(box: Box, width: int, height: int) -> list[float]:
    """The box as a polygon in pixels."""
    x1, y1, x2, y2 = (side * size for side, size in zip(box, (width, height, width, height), strict=True))
    return [x1, y1, x2, y1, x2, y2, x1, y2]


DATASET = Dataset(
    title=TITLE,
    splits=("all",),
    read=read,
    found=lambda root: _folder(root) is not None,
    layout="""
        ship_dataset_v0/<chip>.jpg, ship_dataset_v0/<chip>.txt (a line for each ship: 0 x y width height, in shares)
    """,
    licence="research, see the publication",
    source="https://github.com/CAESAR-Radi/SAR-Ship-Dataset (doi 10.3390/rs11070765)",
)
