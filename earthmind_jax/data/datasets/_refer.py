"""Referring segmentation in the layout of REFER: ``refs(unc).p`` (expressions) and ``instances.json`` (COCO masks).

Facts: Lsan2401/RMSIN ``refer/refer.py`` (fields, splits), shuyansy/EarthMind ``evaluation/dataset/RES.py`` (forms of
masks; evaluation takes the field ``sent`` and asks "Please segment ... in this image.").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data.datasets import _json, _pickle
from earthmind_jax.data.datasets._entry import (
    broken,
    identity,
    line,
    mapping,
    polygons,
    sequence,
    shown,
    size,
    text,
    whole,
)
from earthmind_jax.data.masks import decode_rle, encode_rle
from earthmind_jax.data.prompts import SEGMENTATION_ANSWERS
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

SPLITS = ("train", "val", "test")
QUESTION = "Please segment {} in this image."
"""Asked about a phrase, without the full stop at its end as in the published training."""
ANSWER = SEGMENTATION_ANSWERS[0]


def read(
    root: Path, split: str, refs: Path, instances: Path, files: Callable[[str], dict[str, str]], prefix: str = ""
) -> Iterator[Line]:
    """A line for each expression of a split, in the order of the masks in ``instances``.

    Args:
      root: directory that the records' paths start from.
      split: ``train``, ``val`` or ``test``; as in REFER, every split with ``test`` in its name counts as test.
      files: sensor -> path, of an image's ``file_name``; raises UserError where there is none. Masks refer to the
        optical image, or the SAR image where it stands alone.
      prefix: what the records' ids begin with.
    """
    wanted, wrong = _select(_pickle.load(refs), split, refs)
    yield from wrong
    categories = {identity(category) for category in _json.items(instances, "categories")}
    images = {key: image for image in _json.items(instances, "images") if (key := identity(image)) is not None}
    done: set[int] = set()
    for number, annotation in enumerate(_json.items(instances, "annotations")):
        where = f"{instances} annotation {number + 1}"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("id"), int):
            yield broken(where, f"it must be an object with a whole number 'id', not {shown(annotation)}.")
            continue
        if annotation["id"] in done:
            yield broken(where, f"the id {annotation['id']} is given twice.")
        for ref in wanted.pop(annotation["id"], ()):
            done.add(annotation["id"])
            where, key = f"{refs} ref {ref['ref_id']}", f"{prefix}{ref['ref_id']}"
            yield from _expressions(root, ref, where, key, annotation, images, categories, files)
    for missing in wanted.values():
        for ref in missing:
            yield broken(f"{refs} ref {ref['ref_id']}", f"there is no annotation {ref['ann_id']} in '{instances}'.")


def _select(found: Any, split: str, path: Path) -> tuple[dict[int, list[dict[str, Any]]], list[Line]]:
    """The expressions of a split by annotation, and those that are broken."""
    if not isinstance(found, list):
        raise UserError(f"'{path}' must hold a list of expressions, not {shown(found)}.")
    wanted: dict[int, list[dict[str, Any]]] = {}
    wrong, ids = [], set()
    for number, ref in enumerate(found, 1):
        try:
            belongs = text(mapping(ref), "split")
            if not (split == "test" in belongs or belongs == split):
                continue
            key = whole(ref, "ref_id")
            if key in ids:
                raise UserError(f"the ref_id {key} is given twice.")
            ids.add(key)
            wanted.setdefault(whole(ref, "ann_id"), []).append(ref)
        except UserError as error:
            wrong.append(broken(f"{path} entry {number}", str(error)))
    return wanted, wrong


def _expressions(
    root: Path,
    ref: dict[str, Any],
    where: str,
    name: str,
    annotation: dict[str, Any],
    images: dict[Any, dict[str, Any]],
    categories: set[int | str | None],
    files: Callable[[str], dict[str, str]],
) -> Iterator[Line]:
    """A line for each sentence of an expression."""

    def values(sentence: Any, number: int) -> dict[str, Any]:
        image = images.get(identity(annotation, "image_id"))
        if image is None:
            raise UserError(f"there is no image {shown(annotation.get('image_id'))} in the instances.")
        if categories and identity(annotation, "category_id") not in categories:
            raise UserError(
                f"the category {shown(annotation.get('category_id'))} is none of the instances' categories."
            )
        paths = files(text(image, "file_name"))
        declared = image.get("height"), image.get("width")
        shape = size(root, paths.get("optical") or paths["sar"], declared)
        phrase = text(sentence, "sent" if sentence.get("sent") else "raw")
        turn = {
            "question": QUESTION.format(phrase.removesuffix(".")),
            "answer": ANSWER,
            "mask": mask(annotation, shape),
        }
        return {"id": f"{name}-{number}", **paths, "turns": [turn]}

    try:
        sentences = [mapping(sentence) for sentence in sequence(ref, "sentences")]
    except UserError as error:
        yield broken(where, str(error))
        return
    for number, sentence in enumerate(sentences):
        yield line(where, root, lambda s=sentence, n=number: values(s, n))


def mask(annotation: dict[str, Any], shape: tuple[int, int]) -> Any:
    """The mask of a COCO annotation in the forms of :mod:`earthmind_jax.data.masks`: a run-length code or polygons.

    ``segmentation`` is polygons, one flat polygon, a run-length code, or a list of these, whose union is the object.

    Raises:
      UserError: it is empty, or of another size than the image.
    """
    found = annotation.get("segmentation")
    if not found or annotation.get("area") == 0:
        raise UserError("the annotation has an empty segmentation.")
    if isinstance(found, list) and all(isinstance(value, int | float) for value in found):
        found = [found]
    if isinstance(found, list) and all(isinstance(part, list) for part in found):
        # Outlines that are traced from masks have specks of a point or two, which enclose nothing.
        enclosing = [part for part in found if len(part) >= 6]
        return polygons(enclosing or found, shape)
    codes = found if isinstance(found, list) else [found]
    for code in codes:
        declared = code.get("size") if isinstance(code, dict) else None
        if declared is None:
            raise UserError(f"the segmentation must be polygons or run-length codes, not {shown(found)}.")
        if declared != [*shape]:
            raise UserError(f"the run-length code is {shown(declared)} but the image is {[*shape]} (rows, columns).")
    if len(codes) == 1:
        return codes[0]
    return encode_rle(np.logical_or.reduce([decode_rle(code) for code in codes]))
