"""EarthMind-Bench: questions, open and with options, and expressions with masks over pairs of optical and SAR images.

Facts: shuyansy/EarthMind ``evaluation/infer_earthmindbench_{mcq,oe}.py`` (fields, and how options follow the question)
and ``scripts_eval/earrthmind-bench.sh`` (names of the files).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json, _refer
from earthmind_jax.data.datasets._entry import PICTURES, folder, line, mapping, picture, require_file, shown, text
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError

_CHOICES = (
    "hallucination_detection", "object_counting", "object_existence", "scene_classification", "spatial_relationship",
)  # fmt: skip
_OPEN = ("caption", "disaster", "navigation", "urban")
_NOTES, _IMAGES = ("json", "formal_data_test"), ("test", "pair_data/test")


def _read(root: Path, split: str) -> Iterator[Line]:
    if split == "segmentation":
        return _segmentation(root)
    if split == "ms_scene_classification":
        return _multispectral(root)
    tasks = _CHOICES if split == "choices" else _OPEN if split == "open" else (split,)
    return _questions(root, tasks)


def _questions(root: Path, tasks: tuple[str, ...]) -> Iterator[Line]:
    notes, images = root / folder(root, *_NOTES), folder(root, *_IMAGES)
    files = {task: _file(notes, task) for task in tasks}  # all of them, before the first line is given

    def values(task: str, entry: Any, number: int) -> dict[str, Any]:
        name = text(mapping(entry), "file_name").removesuffix(".json")
        pair = {
            sensor: picture(root, f"{images}/{place}/img", f"{name.removesuffix('.png')}.png", PICTURES)
            for sensor, place in (("optical", "rgb"), ("sar", "sar"))
        }
        return {"id": f"{task}/{number}", **pair, "turns": [_turn(entry, task in _CHOICES)]}

    for task, path in files.items():
        for number, entry in enumerate(_json.items(path)):
            yield line(f"{path} entry {number + 1}", root, partial(values, task, entry, number))


def _file(notes: Path, task: str) -> Path:
    """The file of a task, such as ``object_counting_all_unmatched.json``."""
    found = [p for p in sorted(notes.glob("*_unmatched.json")) if p.name.lower().startswith(f"{task}_")]
    if not found:
        raise UserError(f"There is no file '{notes / f'{task}*_unmatched.json'}'.")
    return found[0]


def _turn(entry: dict[str, Any], options: bool) -> dict[str, Any]:
    """The question with its options, a line each, and the answer, one of them."""
    question, answer = text(entry, "question"), text(entry, "answer")
    given = entry.get("candidate") or entry.get("candidates")
    if not options:
        return {"question": question, "answer": answer}
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(one, str) and one.strip() for one in given):
        raise UserError(f"field 'candidate' must be a list of at least two options, not {shown(given)}.")
    given = [one.strip() for one in given]
    if answer not in given:
        raise UserError(f"the answer {shown(answer)} is none of the options {shown(given)}.")
    return {"question": "\n".join((question, *given)), "answer": answer}


def _multispectral(root: Path) -> Iterator[Line]:
    """Scene classification with all bands: ``ms_sar/ms/img/{id}_B01.tif`` ... beside ``ms_sar/sar/img/{id}.png``."""
    home, name = folder(root, "ms_sar", *(f"{place}/ms_sar" for place in _IMAGES)), "ms_scene_classification_qa.json"
    paths = [root / notes / name for notes in (home, ".", *_NOTES)]
    path = next((path for path in paths if path.is_file()), None) or require_file(paths[0])

    def values(entry: Any, number: int) -> dict[str, Any]:
        stem = text(mapping(entry), "file_name").removesuffix(".json").removesuffix(".png")
        sar = picture(root, f"{home}/sar/img", f"{stem}.png", PICTURES)
        files = sorted((root / home / "ms/img").glob(f"{escape(stem)}_B*.tif"))
        if not files:
            raise UserError(f"there is no band file '{root / home / 'ms/img' / f'{stem}_B*.tif'}'.")
        bands = {file.stem.rpartition("_")[2]: str(file.relative_to(root)) for file in files}
        return {
            "id": f"ms_scene_classification/{number}",
            # The published preparation stretches counts of 0 to 3000: reflectance without an offset.
            "optical": {"bands": bands, "sensor": "s2_l1c" if "B10" in bands else "s2_l2a", "offset": 0},
            "sar": sar,
            "turns": [_turn(entry, True)],
        }

    for number, entry in enumerate(_json.items(path)):
        yield line(f"{path} entry {number + 1}", root, partial(values, entry, number))


def _segmentation(root: Path) -> Iterator[Line]:
    home = folder(root, "Refer_Segm/sarnew", "sarnew")
    refs, instances = (require_file(root / home / name) for name in ("refs(unc).p", "instances.json"))

    def files(name: str) -> dict[str, str]:
        return {
            "optical": picture(root, f"{home}/rgb", name, PICTURES),
            "sar": picture(root, f"{home}/sar", name, PICTURES),
        }

    return _refer.read(root, "test", refs, instances, files)


def _found(root: Path) -> bool:
    names = ("scene_classification_unmatched.json", "scene_classification_all_unmatched.json")
    return any((root / notes / name).is_file() for notes in _NOTES for name in names) or (root / "ms_sar").is_dir()


DATASET = Dataset(
    title="EarthMind-Bench",
    splits=("choices", "open", *_CHOICES, *_OPEN, "ms_scene_classification", "segmentation"),
    read=_read,
    found=_found,
    layout="""
        json/{object_counting_all,...}_unmatched.json, test/{rgb,sar}/img/*.png
        Refer_Segm/sarnew/{refs(unc).p,instances.json,rgb/,sar/}
        ms_sar/ms_scene_classification_qa.json, ms_sar/ms/img/*_B01.tif, ..., ms_sar/sar/img/*.png
    """,
    licence="not stated",
    source="https://huggingface.co/datasets/sy1998/EarthMind-Bench (Shu et al., EarthMind, arXiv 2506.01667)",
)
