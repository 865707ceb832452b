"""VRSBench: 29,614 images of 512 x 512 pixels (DOTA, DIOR) with captions, questions and expressions with boxes.

Facts: lx709/VRSBench ``prepare_eval_all.ipynb`` (the evaluation files, and the annotations they come from). A box in
words is ``{<x1><y1><x2><y2>}``, whole percent of the image's width and height. In the training file many of them reach
beyond 100, where an object is cut by the image's edge; these end at the edge here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json, _llava
from earthmind_jax.data.datasets._entry import (
    DRAW_BOX,
    broken,
    folder,
    line,
    listed,
    mapping,
    numbers,
    picture,
    polygons,
    require_file,
    sequence,
    size,
    text,
    unique,
)
from earthmind_jax.data.datasets._refer import ANSWER
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

_EVALUATION = {
    "vqa": ("VRSBench_EVAL_vqa.json", "{}"),
    "caption": ("VRSBench_EVAL_Cap.json", "{}"),
    "referring": ("VRSBench_EVAL_referring.json", "[refer] could you tell me the location for <p>{}</p>?"),
}
"""File, and how its field ``question`` is asked: expressions in the words of the training file."""
_BOX = re.compile(r"\{((?:<-?\d{1,9}>)+)((?:\|<-?\d{1,9}>)?)\}")  # and the angle of an oriented one


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "train":
        return _conversations(root)
    if split in _EVALUATION:
        return unique(_evaluation(root, split))
    return _objects(root, split.partition("_")[0])


def _images(root: Path, split: str) -> str:
    """The folder of images, which one of the archives holds in a folder of the same name."""
    return folder(root, f"Images_{split}/Images_{split}", f"Images_{split}")


def _conversations(root: Path) -> Iterator[Line]:
    path, place = require_file(root / "VRSBench_train.json"), _images(root, "train")

    def values(entry: Any, number: int) -> dict[str, Any]:
        image = picture(root, place, text(mapping(entry), "image"), (".png",))
        turns = _llava.turns(entry.get("conversations"))
        for turn in turns:
            turn["answer"] = turn["answer"] and _BOX.sub(_cut, turn["answer"])
            _check_boxes(turn["answer"] or "")
        return {"id": f"train/{number}", "optical": image, "turns": turns}  # the file's own ids are not unique

    for number, entry in enumerate(_json.items(path)):
        yield line(f"{path} entry {number + 1}", root, partial(values, entry, number))


def _evaluation(root: Path, split: str) -> Iterator[Line]:
    name, asked = _EVALUATION[split]
    path, place = require_file(root / name), _images(root, "val")

    def values(entry: Any) -> dict[str, Any]:
        image = picture(root, place, text(mapping(entry), "image_id"), (".png",))
        answer = text(entry, "ground_truth")
        if split == "referring" and not _check_boxes(answer):
            raise UserError(f"field 'ground_truth' must be a box {{<x1><y1><x2><y2>}}, not '{answer[:80]}'.")
        turn = {"question": asked.format(text(entry, "question")), "answer": answer}
        return {"id": f"{split}/{text(entry, 'question_id')}", "optical": image, "turns": [turn]}

    for number, entry in enumerate(_json.items(path), 1):
        yield line(f"{path} entry {number}", root, partial(values, entry))


def _cut(box: re.Match[str]) -> str:
    """A box in words that ends at the image's edge; one that is not on the image stays as it is."""
    x1, y1, x2, y2 = edges = _edges(box[1])
    if max(x1, y1) > 100 or min(x2, y2) < 0:
        return box[0]
    return f"{{{''.join(f'<{min(max(int(edge), 0), 100)}>' for edge in edges)}{box[2]}}}"


def _edges(words: str) -> list[float]:
    return numbers([int(edge) for edge in re.findall(r"-?\d+", words)], 4, "a box in words")


def _check_boxes(words: str) -> int:
    """Boxes in words that there are; UserError where one is inverted or not inside the image."""
    found = [edges for edges, _ in _BOX.findall(words)]
    for edges in found:
        x1, y1, x2, y2 = _edges(edges)
        if x1 > x2 or y1 > y2:
            raise UserError(f"the box {{{edges}}} is inverted; it must be x1, y1, x2, y2 with x1 <= x2 and y1 <= y2.")
        if min(x1, y1) < 0 or max(x2, y2) > 100:
            raise UserError(f"the box {{{edges}}} does not lie in the image, which is 0 to 100 percent.")
    return len(found)


def _objects(root: Path, split: str) -> Iterator[Line]:
    """One line for each image: its expressions, each answered by the object's oriented box."""
    name = f"Annotations_{split}"
    place, notes = _images(root, split), folder(root, f"{name}/{name}", name)

    def turn(thing: dict[str, Any], shape: tuple[int, int]) -> dict[str, Any]:
        corners = numbers(thing.get("obj_corner"), 8, "field 'obj_corner'")
        outline = [value * shape[1 - i % 2] for i, value in enumerate(corners)]
        phrase = text(thing, "referring_sentence")
        return {"question": DRAW_BOX.format(phrase), "answer": ANSWER, "mask": polygons([outline], shape)}

    def values(entry: Any, path: Path) -> dict[str, Any]:
        image = picture(root, place, text(mapping(entry), "image"), (".png",))
        shape = size(root, image)
        things = [mapping(thing) for thing in sequence(entry, "objects")]
        turns = [turn(thing, shape) for thing in things if thing.get("referring_sentence")]
        return {"id": f"{split}/{path.stem}", "optical": image, "turns": turns}

    for path in (root / notes / name for name in listed(root / notes) if name.endswith(".json")):
        try:
            entry = _json.load(path)
        except UserError as error:
            yield broken(str(path), str(error))
            continue
        if not _is_silent(entry):
            yield line(str(path), root, partial(values, entry, path))


def _is_silent(entry: Any) -> bool:
    """Whether an image has no object, or none with an expression, so that there is nothing to ask about."""
    things = entry.get("objects") if isinstance(entry, dict) else None
    return isinstance(things, list) and not any(
        thing.get("referring_sentence") if isinstance(thing, dict) else True for thing in things
    )


_NAMES = ("VRSBench_train.json", "Annotations_train", "Annotations_val", *(name for name, _ in _EVALUATION.values()))

DATASET = Dataset(
    title="VRSBench",
    splits=("train", *_EVALUATION, "train_boxes", "val_boxes"),
    read=_read,
    found=lambda root: any((root / name).exists() for name in _NAMES),
    layout="""
        VRSBench_train.json, Images_train/*.png
        VRSBench_EVAL_{vqa,Cap,referring}.json, Images_val/*.png
        Annotations_{train,val}/*.json               the splits of boxes: boxes as masks
    """,
    licence="annotations CC BY 4.0; images of DOTA for academic use only, and of DIOR",
    source="https://huggingface.co/datasets/xiang709/VRSBench (Li et al., NeurIPS 2024)",
)
