"""Data Fusion Contest 2023, track 2: optical and SAR images of 512 x 512 pixels with building outlines (COCO).

The heights that come with them are not asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json
from earthmind_jax.data.datasets._buildings import building_turns
from earthmind_jax.data.datasets._folders import require_folder, stems
from earthmind_jax.data.masks import decode, encode_rle
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "Data Fusion Contest 2023, track 2"
SPLITS = ("train", "val", "test")


def read(root: Path, split: str) -> Iterator[Line]:
    """The images of a split's annotation file; without one those of its folder, without answers."""
    folder = require_folder(root, TITLE, split)
    path = root / "annotations" / f"buildings_only_{split}.json"
    if split != "train" and not path.is_file():
        for name in stems(require_folder(folder, TITLE, "rgb"), (".tif", ".tiff")):
            turns = [{"question": "How many buildings are in the image?"}]
            yield make_line(_values(split, name, turns), f"{folder / 'rgb' / name}", root)
        return
    images, outlines = _coco(path)
    for image in images:
        yield _line(root, split, path, image, outlines)


def _coco(path: Path) -> tuple[list[Any], dict[Any, list[Any]]]:
    """(images, annotations by image id)."""
    told = _json.load(path)
    parts = [told.get(key) if isinstance(told, dict) else None for key in ("images", "annotations")]
    if not all(isinstance(part, list) for part in parts):
        raise UserError(f"'{path}' must have the lists 'images' and 'annotations' (COCO).")
    outlines = defaultdict(list)
    for annotation in parts[1] or ():
        if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int | str):
            raise UserError(f"'{path}' has an annotation without 'image_id': {str(annotation)[:80]}.")
        outlines[annotation["image_id"]].append(annotation)
    return parts[0] or [], outlines


def _line(root: Path, split: str, path: Path, image: Any, outlines: dict[Any, list[Any]]) -> Line:
    name = image.get("file_name") if isinstance(image, dict) else None
    where = f"{path} image {name or str(image)[:80]}"
    size = [image.get(key) for key in ("height", "width")] if isinstance(image, dict) else []
    if not isinstance(name, str) or not name or not all(isinstance(side, int) and side > 0 for side in size):
        return Line(where, None, (": an image needs 'file_name', 'height' and 'width'.",))
    found = outlines.get(image.get("id"), [])
    try:
        mask = _union([one.get("segmentation") for one in found], (size[0], size[1]))
    except UserError as error:
        return Line(where, None, (f": {error}",))
    return make_line(_values(split, name, building_turns(name, len(found), mask)), where, root)


def _values(split: str, name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    images = {"optical": f"{split}/rgb/{name}", "sar": f"{split}/sar/{name}"}
    return {"id": f"{split}-{Path(name).stem}", **images, "turns": turns}


def _union(outlines: list[Any], shape: tuple[int, int]) -> Any:
    """Polygons of all buildings, or their common run-length code where one has none."""
    if all(isinstance(outline, list) and outline for outline in outlines):
        polygons = [polygon for outline in outlines for polygon in outline]
        if polygons:
            decode(polygons, shape, where="segmentation")
        return polygons
    masks = [decode(outline, shape, where="segmentation") for outline in outlines]
    if len({mask.shape for mask in masks} | {shape}) > 1:
        raise UserError(f"a run-length code of another size than the image, {shape[0]} x {shape[1]}.")
    return encode_rle(sum(masks[1:], start=masks[0].astype(int)))


DATASET = Dataset(
    title=TITLE,
    splits=SPLITS,
    read=read,
    found=lambda root: any((root / "annotations" / f"buildings_only_{split}.json").is_file() for split in SPLITS),
    layout="""
        annotations/buildings_only_train.json, ..._val.json, ..._test.json
        train/rgb/P0001.tif, train/sar/P0001.tif, train/height/P0001.tif (not read); val/ and test/ likewise
    """,
    licence="as the contest asks for (IEEE DataPort); research",
    source="https://ieee-dataport.org (doi 10.21227/mrnt-8w27)",
)
