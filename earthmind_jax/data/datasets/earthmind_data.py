"""EarthMind-data: the training data of the published model, in the folders that its configuration names.

Facts: shuyansy/EarthMind ``configs/earthmind_4b_sft.py`` (paths, order of the parts) and its ``datasets``. Parts
that are not there are left out of ``train``; the repeats of the published mixture are weights of a run's sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _refer
from earthmind_jax.data.datasets._entry import PICTURES, inside, listed, picture, require_file
from earthmind_jax.data.datasets._llava import Images, conversations, pair
from earthmind_jax.data.datasets._regions import captions
from earthmind_jax.data.records import Line
from earthmind_jax.errors import UserError


def _optical(place: str) -> Images:
    return lambda root, name: {"optical": picture(root, place, name, PICTURES)}


def _frames(place: str) -> Images:
    """``x/y.png`` stands for the frames ``rgb_*.png`` of the folder ``x/y``, taken in the order of their numbers."""

    def images(root: Path, name: str) -> dict[str, Any]:
        home = inside(place, name.removesuffix(".png"))
        names = listed(root / home) if os.path.isdir(root / home) else []
        found = [file for file in names if file.startswith("rgb_") and file.lower().endswith(".png")]
        if not found:
            raise UserError(f"there is no frame '{root / home}/rgb_*.png'.")
        frames = [f"{home}/{file}" for file in sorted(found, key=lambda file: (len(file), file))]
        return {"optical": frames if len(frames) > 1 else frames[0]}

    return images


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part: the file that it must have, and the lines of (root, name of the part, that file)."""

    file: str
    lines: Callable[[Path, str, Path], Iterator[Line]]


def _expressions(home: str, images: Images, split: str = "train") -> _Part:
    def lines(root: Path, name: str, refs: Path) -> Iterator[Line]:
        polygons = root / home / "instances_new.json"  # the form that the published training reads, where there are two
        instances = polygons if split == "train" and polygons.is_file() else root / home / "instances.json"
        return _refer.read(root, split, refs, require_file(instances), partial(images, root), f"{name}/")

    return _Part(file=f"{home}/refs(unc).p", lines=lines)


def _conversations(file: str, images: Images) -> _Part:
    return _Part(file=file, lines=partial(conversations, images=images))


def _regions(file: str, place: str) -> _Part:
    return _Part(file=file, lines=partial(captions, place=place))


_RES = {n: (f"Refer_Segm/{n}", _optical(f"Refer_Segm/{n}/images")) for n in ("rrsisd", "refsegrs", "risbench")}
_RSVG, _GEOCHAT = "region_caption/rsvg/images", "GeoChat_finetuning/final_images_llava"
_PARTS = {
    **{name: _expressions(*given) for name, given in _RES.items()},
    "vrsbench_vqa": _conversations("vrsbenchvqa/annotations/vqatrain.json", _optical("vrsbenchvqa/Images_train")),
    "earthgpt_vqa": _conversations("earthgptvqa/annotations/train.json", _optical("earthgptvqa/images")),
    "geochat_vqa": _conversations("geochatdata/GeoChatvqa.json", _optical(_GEOCHAT)),
    "ms_vqa": _conversations("multi-spectrum/ms_train.json", _frames("multi-spectrum/rgb_images")),
    "rsvg": _regions("region_caption/rsvg_train.json", _RSVG),
    "geochat_region": _regions("geochatdata/GeoChatregion_train_cleaned.json", _GEOCHAT),
    "vrsbench_seg": _expressions("vrsbench_seg", _optical("vrsbench_seg/images")),
    "sarnew": _expressions("Refer_Segm/sarnew", pair("Refer_Segm/sarnew")),
    "pairs": _conversations("pair_data/train/final_all.json", pair("pair_data/train", "/img")),
}
_ALONE = ("sarnew", "pairs")
"""Parts that are published by themselves, too (in EarthMind-Bench, and as FusionEO)."""
_TESTS = {
    **{f"{name}_test": _expressions(*given, split="test") for name, given in _RES.items()},
    "rsvg_test": _regions("region_caption/rsvg_test.json", _RSVG),
}


def _read(root: Path, split: str) -> Iterator[Line]:
    if split != "train":
        part = (_PARTS | _TESTS)[split]
        yield from part.lines(root, split, require_file(root / part.file))
        return
    there = {name: part for name, part in _PARTS.items() if (root / part.file).is_file()}
    if not there:
        raise UserError(
            f"'{root}' has none of EarthMind-data's parts, such as '{root / next(iter(_PARTS.values())).file}'."
        )
    for name, part in there.items():
        yield from part.lines(root, name, root / part.file)


DATASET = Dataset(
    title="EarthMind-data",
    splits=("train", *_PARTS, *_TESTS),
    read=_read,
    found=lambda root: any((root / part.file).is_file() for name, part in _PARTS.items() if name not in _ALONE),
    layout="""
        Refer_Segm/{rrsisd,refsegrs,risbench}/{refs(unc).p,instances.json,images/}, vrsbench_seg/ likewise
        Refer_Segm/sarnew/{refs(unc).p,instances.json,rgb/,sar/}
        vrsbenchvqa/annotations/vqatrain.json, vrsbenchvqa/Images_train/
        earthgptvqa/annotations/train.json, earthgptvqa/images/
        geochatdata/{GeoChatvqa,GeoChatregion_train_cleaned}.json, GeoChat_finetuning/final_images_llava/
        multi-spectrum/ms_train.json, multi-spectrum/rgb_images/
        region_caption/rsvg_{train,test}.json, region_caption/rsvg/images/
        pair_data/train/final_all.json, pair_data/train/{rgb,sar}/img/
        The split "train" is all parts that are there.
    """,
    licence="not stated; each part under the terms of the set that it is from",
    source="https://huggingface.co/datasets/sy1998/EarthMind-data",
)
