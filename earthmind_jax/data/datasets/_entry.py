"""What readers share: entries to lines, fields, picture files and boxes, each with its own sentence of error."""

from __future__ import annotations

import math
import os
import posixpath
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from earthmind_jax.data.read import picture_header
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")

DRAW_BOX = "Mark the bounding box of this object: {}"
"""Asks for a box as a mask, so that box-shaped masks are not learned as the answer to segmentation questions."""

_HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and no text can

_SHORT = reprlib.Repr()  # values of a data set's files may be of any size and depth
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80
shown = _SHORT.repr


def line(where: str, root: Path, make: Callable[[], dict[str, Any]]) -> Line:
    """The line of an entry; ``make`` gives the plain values of its record, or says in a UserError what is wrong."""
    try:
        values = make()
    except UserError as error:
        return broken(where, str(error))
    return make_line(values, where, root)


def broken(where: str, what: str) -> Line:
    """The line of an entry that is wrong."""
    return Line(where, None, (f": {what}",))


def unique(found: Iterable[Line]) -> Iterator[Line]:
    """The same lines; a record whose id came before is a broken one."""
    ids: set[str] = set()
    for one in found:
        if one.record is not None and one.record.id in ids:
            yield broken(one.where, f"the id '{one.record.id}' is given twice.")
            continue
        if one.record is not None:
            ids.add(one.record.id)
        yield one


def mapping(entry: Any) -> dict[str, Any]:
    """An entry that must be an object."""
    if not isinstance(entry, dict):
        raise UserError(f"the entry must be an object, not {shown(entry)}.")
    return entry


def text(entry: dict[str, Any], field: str) -> str:
    """A field that must be text, or a number in its place, without outer white space."""
    return words(entry.get(field), field)


def words(value: Any, field: str) -> str:
    """The same of the value of a field."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or _HALVES.search(value):
        raise UserError(f"field '{field}' must be text, not {shown(value)}.")
    return value.strip()


def whole(entry: dict[str, Any], field: str) -> int:
    """A field that must be a whole number."""
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"field '{field}' must be a whole number, not {shown(value)}.")
    return value


def identity(entry: Any, field: str = "id") -> int | str | None:
    """What an entry is told by, in a field that may hold anything; None where it is neither a number nor text."""
    value = entry.get(field) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else None


def sequence(entry: dict[str, Any], field: str) -> list[Any]:
    """A field that must be a list with something in it."""
    value = entry.get(field)
    if not isinstance(value, list) or not value:
        raise UserError(f"field '{field}' must be a list with at least one element, not {shown(value)}.")
    return value


def folder(root: Path, *names: str) -> str:
    """The first of the folders that is there; UserError naming them where none is."""
    for name in names:
        if (root / name).is_dir():
            return name
    wanted = " or ".join(f"'{root / name}'" for name in names)
    raise UserError(f"There is no folder {wanted}; see the layout that is expected with: earthmind data list")


def require_file(path: Path) -> Path:
    """The path; UserError where it is no file."""
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; see the layout that is expected with: earthmind data list")
    return path


def inside(place: str, name: str) -> str:
    """The path of what an entry names within a folder; UserError where the name leads out of it."""
    if len(name) > 1000:
        raise UserError(f"the file name {shown(name)} is too long.")
    if name.startswith("/") or ".." in name.split("/") or not posixpath.basename(name):
        raise UserError(f"the file name {shown(name)} leads out of the data set.")
    return posixpath.normpath(posixpath.join(place, name))  # text, not Path: some sets have a million entries


def picture(root: Path, place: str, name: str, endings: Sequence[str] = ()) -> str:
    """Path, from ``root``, of a picture that an entry names within the folder ``place``.

    Args:
      endings: also tried in place of the name's own, which may be missing or wrong. All are tried in capitals, too.

    Raises:
      UserError: there is none, or the name leads out of the folder.
    """
    full = inside(place, name)
    for candidate in _spellings(full, endings):
        if os.path.isfile(os.path.join(root, candidate)):  # unlike Path.is_file, false for a name that no file can have
            return candidate
    raise UserError(f"there is no file '{root / full}'.")


def _spellings(path: str, endings: Sequence[str]) -> Iterator[str]:
    """A path, and the same with each of the endings in place of that of a picture, in capitals, too."""
    yield path
    stem, own = posixpath.splitext(path)
    if own.lower() not in PICTURES:
        stem, own = path, ""
    for ending in (own, *endings):
        if ending:
            yield stem + ending.lower()
            yield stem + ending.upper()


def listed(place: Path) -> list[str]:
    """Names in a folder that are not hidden, sorted; UserError where one is no text, so that nothing could name it."""
    try:
        names = sorted(name for name in os.listdir(place) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder '{place}' cannot be read: {error.strerror or error}.") from error
    for name in names:
        if _HALVES.search(name):
            raise UserError(f"'{place}' has a file whose name is not UTF-8, {shown(name)}; rename or remove it.")
    return names


def pictures(place: Path) -> list[str]:
    """Names of the picture files in a folder, sorted."""
    return [name for name in listed(place) if name.lower().endswith(PICTURES)]


def size(root: Path, name: str, declared: tuple[Any, Any] | None = None) -> tuple[int, int]:
    """Rows and columns of a picture, from its header; UserError where an entry declares them and they are others."""
    shape = picture_header(str(root / name))[0]
    if declared not in (None, (None, None), shape):
        rows, columns = (shown(side) for side in declared)
        raise UserError(f"'{root / name}' is {shape[0]} x {shape[1]} but the annotation says {rows} x {columns}.")
    return shape


def box(values: Sequence[Any], shape: tuple[int, int]) -> list[list[float]]:
    """The polygon ``[[x1, y1, x2, y1, x2, y2, x1, y2]]`` of a box x1, y1, x2, y2 in the pixels of an image.

    Raises:
      UserError: it is no box, inverted, or not inside the image.
    """
    edges = numbers(values, 4, "a box")
    x1, y1, x2, y2 = edges
    if x1 >= x2 or y1 >= y2:
        raise UserError(
            f"the box {shown(edges)} is inverted or empty; it must be x1, y1, x2, y2 with x1 < x2, y1 < y2."
        )
    if x1 < 0 or y1 < 0 or x2 > shape[1] or y2 > shape[0]:
        raise UserError(f"the box {shown(edges)} does not lie in the image of {shape[0]} x {shape[1]} pixels.")
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def numbers(values: Any, count: int, what: str) -> list[float]:
    """``count`` finite numbers."""
    good = isinstance(values, list | tuple) and len(values) == count
    if not good or not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise UserError(f"{what} must be {count} numbers, not {shown(values)}.")
    return list(values)


def polygons(values: Any, shape: tuple[int, int]) -> list[list[float]]:
    """Polygons as flat lists x1, y1, x2, y2, ... in pixels; UserError where one is none or lies outside the image."""
    for polygon in values:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"a polygon must be at least three points x1, y1, x2, y2, ..., not {shown(polygon)}.")
        numbers(polygon, len(polygon), "a polygon")
        xs, ys = polygon[::2], polygon[1::2]
        if max(xs) < 0 or max(ys) < 0 or min(xs) > shape[1] or min(ys) > shape[0]:
            raise UserError(f"a polygon lies outside the image of {shape[0]} x {shape[1]} pixels: {shown(polygon)}.")
    return values
