"""DIOR-RSVG: 38,320 expressions with boxes over DIOR images of 800 x 800 pixels.

Facts: ZhanYang-nwpu/RSVG-pytorch ``data_loader.py``: the objects of all XML files, in the order of the files' names,
are numbered from 0, and a split is a list of these numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from earthmind_jax.data.datasets import Dataset
from earthmind_jax.data.datasets._entry import DRAW_BOX, box, broken, folder, line, listed, picture, require_file, size
from earthmind_jax.data.datasets._refer import ANSWER
from earthmind_jax.data.datasets._regions import DESCRIBE
from earthmind_jax.data.datasets._xml import child_text, load
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

_SPLITS = ("train", "val", "test")
_HOMES = (".", "DIOR_RSVG")


def _home(root: Path) -> str:
    return next((home for home in _HOMES if (root / home / "Annotations").is_dir()), _HOMES[0])


def _read(root: Path, split: str) -> Iterator[Line]:
    home, (name, _, regions) = _home(root), split.partition("_")
    notes, place = (str(Path(home) / folder(root / home, part)) for part in ("Annotations", "JPEGImages"))
    wanted = _numbers(require_file(root / home / f"{name}.txt"))
    number = 0
    for path in (root / notes / name for name in listed(root / notes) if name.endswith(".xml")):
        try:
            found = load(path)
        except UserError as error:
            raise UserError(
                f"{error} The objects of the files after it cannot be numbered, so the splits have no meaning."
            ) from error
        for thing in found.findall("object"):
            if number in wanted:
                wanted.discard(number)
                where, key = f"{path} object {number}", f"{name}/{number}"
                yield line(where, root, lambda f=found, t=thing, k=key: _values(root, place, f, t, k, bool(regions)))
            number += 1
    if wanted:
        yield broken(
            f"{root / home / f'{name}.txt'}",
            f"it names {len(wanted)} objects, such as {min(wanted)}, but '{root / notes}' has {number}.",
        )
        return
    # Where a file is missing the numbers of the objects after it are those of others.
    lists = [path for split in _SPLITS if (path := root / home / f"{split}.txt").is_file()]
    highest = max(max(_numbers(path), default=-1) for path in lists)
    if highest >= number:
        yield broken(
            f"{root / notes}",
            f"it has {number} objects, but the lists name them up to {highest}: files are missing, and the objects "
            "after them have the numbers of others.",
        )


def _numbers(path: Path) -> set[int]:
    """The numbers of a split's objects."""
    numbers: set[int] = set()
    for count, words in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not words.strip():
            continue
        if not words.strip().isdigit() or int(words[:20]) in numbers:
            wrong = "is given twice" if words.strip().isdigit() else "is no number of an object"
            raise UserError(f"'{path}' line {count}: {words.strip()[:40].decode(errors='replace')!r} {wrong}.")
        numbers.add(int(words[:20]))
    return numbers


def _values(root: Path, place: str, found: Element, thing: Element, key: str, region: bool) -> dict[str, Any]:
    image = picture(root, place, child_text(found, "filename"), (".jpg",))
    edges = [_number(thing, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    declared = None
    if found.find("size") is not None:
        declared = _number(found, "size/height"), _number(found, "size/width")
    outline, phrase = box(edges, size(root, image, declared)), child_text(thing, "description")
    turn: dict[str, Any] = {"question": DRAW_BOX.format(phrase), "answer": ANSWER, "mask": outline}
    if region:
        turn = {"question": DESCRIBE, "answer": phrase, "region": outline}
    return {"id": key, "optical": image, "turns": [turn]}


def _number(element: Element, path: str) -> float:
    words = child_text(element, path)
    try:
        return float(words)
    except ValueError as error:
        raise UserError(f"<{path.replace('/', '><')}> must be a number, not '{words[:40]}'.") from error


DATASET = Dataset(
    title="DIOR-RSVG",
    splits=(*_SPLITS, *(f"{split}_regions" for split in _SPLITS)),
    read=_read,
    found=lambda root: any(
        (root / home / "Annotations").is_dir()
        and (root / home / "JPEGImages").is_dir()
        and any((root / home / f"{split}.txt").is_file() for split in _SPLITS)
        for home in _HOMES
    ),
    layout="""
        train.txt, val.txt, test.txt                 numbers of objects, counted over all files
        Annotations/00001.xml, JPEGImages/00001.jpg, ...
        The splits of regions ask for the words, the others for the box.
    """,
    licence="not stated; images of DIOR under its terms",
    source="https://github.com/ZhanYang-nwpu/RSVG-pytorch (Zhan et al., RSVG, TGRS 2023)",
)
