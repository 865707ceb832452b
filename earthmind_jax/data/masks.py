"""Masks as they are written in records: a file, a value of a label file, a COCO run-length code, or polygons.

They are decoded to bool [height width].
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2

Mask = Bool[np.ndarray, "H W"]
MOST_PIXELS = 1 << 28
"""Of a run-length code, which says in few bytes what would fill a memory."""


def decode(spec: Any, shape: tuple[int, int], root: Path = Path(), where: str = "mask") -> Mask:
    """A mask from its written form.

    Args:
      spec: a path (picture, ``.npy`` or GeoTIFF; nonzero is the object), ``{"file": path, "value": label or list of
        labels}``, a COCO run-length code
        ``{"size": [h, w], "counts": list or compressed string}``, or polygons ``[[x1, y1, x2, y2, ...], ...]`` in
        pixels (their union), or an array.
      shape: height and width of the image that the polygons refer to.
      root: directory that relative paths start from.
      where: what to call the mask in errors.

    Raises:
      UserError: naming ``where`` and what is wrong.
    """
    if isinstance(spec, np.ndarray):
        mask = spec
    elif isinstance(spec, str):
        mask = _read(root / spec, where)
    elif isinstance(spec, dict) and "file" in spec:
        mask = _labelled(spec, root, where)
    elif isinstance(spec, dict):
        mask = decode_rle(spec, where)
    elif isinstance(spec, list):
        mask = draw_polygons(spec, shape, where)
    else:
        raise UserError(f"{where} must be a path, a run-length code or polygons, not {type(spec).__name__}.")
    if mask.ndim == 3:
        mask = mask.any(-1) if mask.shape[-1] <= 4 else mask.any(0)
    if mask.ndim != 2:
        raise UserError(f"{where} must have height and width, not the shape {mask.shape}.")
    if mask.dtype.kind not in "biuf" or (mask.dtype.kind == "f" and not np.isfinite(mask).all()):
        raise UserError(f"{where} must be of numbers, and each a finite one; write 0 where the object is not.")
    return mask != 0


def _labelled(spec: dict[str, Any], root: Path, where: str) -> np.ndarray:
    """The pixels of a label image that have one of the values."""
    value = spec.get("value")
    values = value if isinstance(value, list) else [value]
    if not isinstance(spec["file"], str) or not values or not all(type(v) is int for v in values) or len(spec) > 2:
        raise UserError(f"{where}: a label mask is 'file' and 'value', a whole number or a list of some, not {spec!r}.")
    path = root / spec["file"]
    if not path.is_file():
        raise UserError(f"{where}: there is no file '{path}'.")
    return np.isin(_label_image(path, path.stat().st_mtime_ns), values)


@lru_cache(maxsize=2)
def _label_image(path: Path, time: int) -> np.ndarray:
    """The classes of one image are asked for one after another; ``time`` is that of the file's last change."""
    return _read(path, "a label mask")


def _read(path: Path, where: str) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{where}: there is no file '{path}'.")
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix.lower() in (".tif", ".tiff"):
            from earthmind_jax.geo.raster import read_raster

            raster = read_raster(path, labels=True)
            return np.where(raster.valid, raster.data[0], 0)
        with Image.open(path) as image:
            return np.asarray(image.convert("L") if image.mode not in ("1", "L", "I", "I;16", "P") else image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: '{path}' cannot be read as a mask ({error}).") from error


def decode_rle(code: dict[str, Any], where: str = "mask") -> Mask:
    """A COCO run-length code (column-major runs, background first), plain or compressed."""
    size, counts = code.get("size"), code.get("counts")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(s, int) and s > 0 for s in size)):
        raise UserError(f"{where}: a run-length code needs 'size': [height, width], not {size!r}.")
    if isinstance(counts, str | bytes):
        counts = _decompress(counts, where)
    if not (isinstance(counts, list) and all(isinstance(c, int) and c >= 0 for c in counts)):
        raise UserError(f"{where}: a run-length code needs 'counts', a list of run lengths or a compressed string.")
    if size[0] * size[1] > MOST_PIXELS:
        raise UserError(f"{where}: a run-length code of {size[0]} x {size[1]} pixels is too large for a mask.")
    if sum(counts) != size[0] * size[1]:
        raise UserError(f"{where}: the runs cover {sum(counts)} pixels, but the size is {size[0]} x {size[1]}.")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(values.reshape(size[1], size[0]).T)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Inverse of :func:`decode_rle`, with plain run lengths."""
    flat = (np.asarray(mask) != 0).T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [int(s) for s in mask.shape], "counts": [0, *runs] if flat.size and flat[0] else runs}


def _decompress(text: str | bytes, where: str) -> list[int]:
    """COCO's compressed counts: five bits a character, from the third run on as differences to the run before last."""
    codes = text.encode() if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise UserError(f"{where}: the compressed run-length code ends in the middle of a number.")
    return counts


def draw_polygons(polygons: Sequence[Any], shape: tuple[int, int], where: str = "mask") -> Mask:
    """The union of polygons given as flat lists of x, y in pixels, (0, 0) the outer corner of the first pixel.

    They cover the pixels whose centres they hold, so that a box of 4 x 2 is 8 pixels, as for COCO's own tools; where
    none holds a centre, those that they pass through.
    """
    from earthmind_jax.geo.burn import covered

    shapes = []
    for polygon in polygons:
        good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not good or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in polygon):
            shown = _SHORT.repr(polygon)
            raise UserError(f"{where}: a polygon is a list of at least three points x1, y1, x2, y2, ..., not {shown}.")
        corners = list(zip(polygon[::2], polygon[1::2], strict=True))
        shapes.append({"type": "Polygon", "coordinates": [[*corners, corners[0]]]})
    return covered(shapes, shape)


MARKS = ("box", "points", "line")
BESIDE = "background"
MARK_CELLS = 16  # on each side: the visual tokens of a published model's tile


def is_marks(spec: Any) -> bool:
    """Whether a region is written as a box, points or a line, or as several of these."""
    return isinstance(spec, dict) and any(kind in spec for kind in (*MARKS, BESIDE))


def draw_marks(spec: dict[str, Any], shape: tuple[int, int], where: str = "region") -> Mask:
    """The part of an image of ``shape`` that a region written as marks stands for (:func:`read_mark`), bool [H W].

    Points and lines stand for those of 16 x 16 cells laid over the image that they touch.

    Raises:
      UserError: naming ``where`` and what is wrong, or that nothing of it lies on the image.
    """
    return read_mark(spec, shape, where).region((MARK_CELLS, MARK_CELLS))


def read_mark(spec: dict[str, Any], shape: tuple[int, int], where: str = "region") -> Mark:
    """One object pointed at with ``{"box": [x0, y0, x1, y1]}``, ``{"points": [[x, y], ...]}``, ``{"line": [[x, y],
    ...]}`` or several of these, and perhaps ``"background": [[x, y], ...]``, points beside it; in pixels of an image of
    ``shape``, (0, 0) the outer corner of the first pixel.

    Raises:
      UserError: naming ``where`` and what is wrong, or that nothing of it lies on the image.
    """
    from earthmind_jax.geo.grid import Affine, Grid
    from earthmind_jax.geo.marks import place
    from earthmind_jax.geo.prompts import Prompt

    grid, named, given = Grid(Affine.identity(), None, *shape), {"where": where, "name": "region"}, []
    for kind, values in spec.items():
        if kind not in (*MARKS, BESIDE):
            known = ", ".join((*MARKS, BESIDE))
            raise UserError(f"{where} has the unknown field '{kind}'; a mark has some of {known}.")
        if kind == "box":
            if not isinstance(values, list) or len(values) != 4:
                raise UserError(f"{where}: a box is [x0, y0, x1, y1], not {values!r}.")
            given.append(Prompt.from_box(*values, **named))
        elif kind == "line":
            given.append(Prompt.line(values, **named))
        else:
            given.append(Prompt.points(values, int(kind == "points"), **named))
    (mark,), _ = place(given, grid)
    return mark
