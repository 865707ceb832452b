"""Captions of regions: the layout of Osprey, and the COCO file that EarthMind's evaluation reads.

Facts: shuyansy/EarthMind ``datasets/Osprey_Dataset.py`` and ``evaluation/rs_region_cap.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import _json, _llava
from earthmind_jax.data.datasets._entry import (
    PICTURES,
    broken,
    identity,
    line,
    mapping,
    picture,
    sequence,
    shown,
    size,
    text,
    words,
)
from earthmind_jax.data.datasets._refer import mask
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

DESCRIBE = "Please give me a short description of the region in the picture marked by {region}."
"""What the published evaluation asks."""
_ANGLES = str.maketrans("", "", "<>")


def captions(root: Path, name: str, path: Path, place: str) -> Iterator[Line]:
    """The lines of a file of captions, ids beginning with ``name``; ``place``: the folder of the images.

    A list is of Osprey's layout, an object of COCO's.
    """
    with path.open("rb") as file:
        is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if is_list:
        for number, entry in enumerate(_json.items(path)):
            make = partial(_osprey, root, place, entry, f"{name}/{number}")
            yield line(f"{path} entry {number + 1}", root, make)
    else:
        yield from _coco(root, name, path, place)


def _osprey(root: Path, place: str, entry: Any, key: str) -> dict[str, Any]:
    """``file_name``, ``height``, ``width``, ``annotation`` with a segmentation for each region, and a ``description``
    for each, or ``conversations`` that ask about region1, region2, ... in turn."""
    image = picture(root, place, text(mapping(entry), "file_name"), PICTURES)
    shape = size(root, image, (entry.get("height"), entry.get("width")))
    regions = [mask(mapping(one), shape) for one in sequence(entry, "annotation")]
    if "conversations" in entry:
        turns = _llava.turns(entry["conversations"])
        for number, turn in enumerate(turns, 1):
            named = set(re.findall(r"region(\d+)", turn["question"]))
            if named != ({str(number)} if number <= len(regions) else set()) or len(turns) < len(regions):
                raise UserError("the questions must ask about region1, region2, ..., one each and in this order.")
            turn["question"] = re.sub(r"<?region\d+>?", "{region}", turn["question"])
            turn["answer"] = turn["answer"] and turn["answer"].translate(_ANGLES)
    else:
        given = entry.get("description")
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or len(given) != len(regions):
            raise UserError(
                f"field 'description' must be {len(regions)} captions, one for each region: {shown(given)}."
            )
        turns = [{"question": DESCRIBE, "answer": words(one, "description").translate(_ANGLES)} for one in given]
    for turn, region in zip(turns, regions, strict=False):
        turn["region"] = region
    return {"id": key, "optical": image, "turns": turns}


def _coco(root: Path, name: str, path: Path, place: str) -> Iterator[Line]:
    """One region for each image: the annotation of the image's own id, and the caption of the image."""
    images: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(_json.items(path, "images"), 1):
        key = identity(image)
        if key is None or key in images:
            yield broken(f"{path} image {number}", f"it must be an object with an 'id' of its own, not {shown(image)}.")
        else:
            images[key] = image

    def values(image: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
        file = picture(root, place, text(image, "file_name"), PICTURES)
        shape = size(root, file, (image.get("height"), image.get("width")))
        turn = {"question": DESCRIBE, "answer": text(image, "caption"), "region": mask(annotation, shape)}
        return {"id": f"{name}/{image['id']}", "optical": file, "turns": [turn]}

    for annotation in _json.items(path, "annotations"):
        image = images.pop(identity(annotation), None)
        if image is not None:
            yield line(f"{path} image {image['id']}", root, partial(values, image, annotation))
    for key in images:
        yield broken(f"{path} image {key}", "there is no annotation of this id.")
