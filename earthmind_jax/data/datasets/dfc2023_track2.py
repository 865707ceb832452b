"""Data Fusion Contest 2023, track 2: optical and SAR images of 512 x 512 pixels with building outlines (COCO).

The SAR is one channel of intensity in floating point, the heights that come with it are not asked for. The annotation
file lies in ``annotations`` (the contest's own description) or at the top (the archive of IEEE DataPort, in which the
heights are ``dsm`` and only the training split has references).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data.datasets import Dataset, _json
from earthmind_jax.data.datasets._buildings import building_turns
from earthmind_jax.data.datasets._entry import broken, identity, line, mapping, picture, shown, size, text, unique
from earthmind_jax.data.datasets._folders import require_folder, stems
from earthmind_jax.data.datasets._refer import mask
from earthmind_jax.data.masks import decode, encode_rle
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

TITLE = "Data Fusion Contest 2023, track 2"
SPLITS = ("train", "val", "test")
ENDINGS = (".tif", ".tiff")


def read(root: Path, split: str) -> Iterator[Line]:
    """The images of a split's annotation file; without one those of its folder, without answers."""
    folder, path = require_folder(root, TITLE, split), _notes(root, split)
    if split != "train" and not path.is_file():
        turns = [{"question": "How many buildings are in the image?"}]
        for name in stems(require_folder(folder, TITLE, "rgb"), ENDINGS):
            yield line(f"{folder / 'rgb' / name}", root, partial(_values, root, split, name, turns))
        return
    yield from unique(_outlined(root, split, path))


def _notes(root: Path, split: str) -> Path:
    """The annotation file of a split, there or not."""
    name = f"buildings_only_{split}.json"
    places = (root / "annotations" / name, root / name)
    return next((path for path in places if path.is_file()), places[0])


def _outlined(root: Path, split: str, path: Path) -> Iterator[Line]:
    outlines = defaultdict(list)
    for annotation in _json.items(path, "annotations"):
        key = identity(annotation, "image_id")
        if key is None:
            raise UserError(f"'{path}' has an annotation without 'image_id': {shown(annotation)}.")
        outlines[key].append(annotation)
    categories = _categories(path)
    for number, image in enumerate(_json.items(path, "images"), 1):
        name = image.get("file_name") if isinstance(image, dict) else None
        where = f"{path} image {name if isinstance(name, str) else number}"
        yield line(where, root, partial(_annotated, root, split, image, outlines.pop(identity(image), []), categories))
    for key in outlines:
        yield broken(f"{path}", f"it has annotations of the image {key}, but no such image.")


def _categories(path: Path) -> set[int | str | None]:
    """The ids of the file's categories; none where it has no list of them."""
    try:
        return {identity(category) for category in _json.items(path, "categories")}
    except UserError:  # damage is told with the images, which are read next
        return set()


def _annotated(
    root: Path, split: str, image: Any, annotations: list[dict[str, Any]], categories: set[int | str | None]
) -> dict[str, Any]:
    name = text(mapping(image), "file_name")
    values = _values(root, split, name, [])
    shape = size(root, values["optical"], (image.get("height"), image.get("width")))
    for annotation in annotations:
        if categories and identity(annotation, "category_id") not in categories:
            raise UserError(f"the category {shown(annotation.get('category_id'))} is none of the file's categories.")
    outlines = [mask(annotation, shape) for annotation in annotations]
    return values | {"turns": building_turns(name, len(outlines), _union(outlines, shape))}


def _values(root: Path, split: str, name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    images = {
        sensor: picture(root, f"{split}/{place}", name, ENDINGS)
        for sensor, place in (("optical", "rgb"), ("sar", "sar"))
    }
    return {"id": f"{split}-{Path(name).stem}", **images, "turns": turns}


def _union(outlines: list[Any], shape: tuple[int, int]) -> Any:
    """Polygons of all buildings, or their common run-length code where one has none."""
    if all(isinstance(outline, list) for outline in outlines):
        return [polygon for outline in outlines for polygon in outline]
    return encode_rle(np.logical_or.reduce([decode(outline, shape, where="segmentation") for outline in outlines]))


DATASET = Dataset(
    title=TITLE,
    splits=SPLITS,
    read=read,
    found=lambda root: any(_notes(root, split).is_file() for split in SPLITS),
    layout="""
        buildings_only_train.json (or annotations/buildings_only_train.json; ..._val.json, ..._test.json)
        train/rgb/P_0001.tif, train/sar/P_0001.tif, train/dsm/ or height/ (not read); val/ and test/ likewise
    """,
    licence="as the contest asks for (IEEE DataPort); research",
    source="https://ieee-dataport.org (doi 10.21227/mrnt-8w27)",
)
