"""What is wrong with the plain values of a record, every field of them, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from earthmind_jax.config import nearest
from earthmind_jax.data import images
from earthmind_jax.data.images import is_text
from earthmind_jax.data.samples import SENSORS
from earthmind_jax.data.tokenizer import SEG

TURN = ("question", "answer", "mask", "masks", "region", "regions")


def problems(values: Any) -> Iterator[str]:
    """What is wrong with the plain JSON values of a record, one sentence for each field."""
    if isinstance(values, list):
        yield f"the record must be an object, not a list of {len(values)}; a record file has one object in each line."
        return
    if not isinstance(values, dict):
        yield f"the record must be an object, not {values!r}."
        return
    yield from _unknown(values, "the record", ("id", *SENSORS, "turns"))
    name = values.get("id")
    if not (is_text(name) or (isinstance(name, int) and not isinstance(name, bool))):
        yield f"field 'id' must be text, not {name!r}."
    counts = {}
    for sensor in SENSORS:
        given = values.get(sensor)
        if given is None:
            continue
        several = isinstance(given, list) and bool(given)
        wrong = [
            problem
            for i, one in enumerate(given if several else [given])
            for problem in images.problems(one, f"{sensor}[{i}]" if several else sensor)
        ]
        yield from wrong
        if not wrong:
            counts[sensor] = len(given) if several else 1
    most = max(counts.values(), default=0)
    for sensor, count in counts.items():
        if count not in (1, most):
            yield f"field '{sensor}' has {count} dates but the other sensor {most}; give as many, or one."
    turns = values.get("turns")
    if not isinstance(turns, list) or not turns:
        yield f"field 'turns' must be a list of at least one turn, not {turns!r}."
        return
    for i, turn in enumerate(turns):
        yield from _turn_problems(turn, f"turns[{i}]", i == len(turns) - 1, most)


def _turn_problems(turn: Any, name: str, last: bool, dates: int) -> Iterator[str]:
    if not isinstance(turn, dict):
        yield f"{name} must be an object, not {turn!r}."
        return
    yield from _unknown(turn, name, (*TURN, "steer"))
    if not is_text(turn.get("question")):
        yield f"field '{name}.question' must be text, not {turn.get('question')!r}."
    answer = turn.get("answer")
    if not (is_text(answer) or answer is None):
        yield f"field '{name}.answer' must be text, not {answer!r}."
        answer = None
    elif answer is None and not last:
        yield f"field '{name}.answer' is missing; only the last turn may lack one."
    masks = turn.get("masks")
    if masks is None:
        masks = [] if turn.get("mask") is None else [turn["mask"]]
    elif not isinstance(masks, list) or turn.get("mask") is not None:
        yield f"field '{name}.masks' must be a list, and stands instead of 'mask'."
        return
    for spec in masks:
        yield from _mask_problems(spec, f"{name}.mask", dates)
    regions = turn.get("regions")
    if regions is None:
        regions = [] if turn.get("region") is None else [turn["region"]]
    elif not isinstance(regions, list) or not regions or turn.get("region") is not None:
        yield f"field '{name}.regions' must be a list of at least one, and stands instead of 'region'."
        return
    for region in regions:
        if isinstance(region, dict) and "dates" in region:
            yield f"field '{name}.region' must be one region, not one for each date."
        yield from _mask_problems(region, f"{name}.region", dates)
    if (masks or regions) and not dates:
        yield f"field '{name}' has a mask or a region, but the record has no image."
    count = (answer or "").count(SEG)
    if count != len(masks):
        yield f"field '{name}.answer' has {count} {SEG} but there are {len(masks)} masks."
    yield from _steer_problems(turn.get("steer"), name, len(regions), len(masks), dates)


def _steer_problems(steer: Any, name: str, regions: int, masks: int, dates: int) -> Iterator[str]:
    if steer is not None and not isinstance(steer, bool):
        yield f"field '{name}.steer' must be true or false, not {steer!r}."
    elif steer and dates > 1:
        yield f"field '{name}.steer': regions steer the masks of one image, not of {dates} dates; leave it out."
    elif steer and not masks:
        yield f"field '{name}.steer' needs an answer with {SEG} and its mask."
    elif steer and regions not in (1, masks):
        yield f"field '{name}.steer' needs one region for all masks or one for each: {regions} regions, {masks} masks."


def _mask_problems(spec: Any, name: str, dates: int) -> Iterator[str]:
    dated = isinstance(spec, dict) and "dates" in spec
    each = spec["dates"] if dated else [spec]
    if dated and not (isinstance(each, list) and len(each) == dates):
        yield f"field '{name}.dates' must be a list of {dates}, one for each date, null where the mask is not known."
        return
    for one in each:
        nested = dated and isinstance(one, dict) and "dates" in one
        if nested or not (isinstance(one, str | dict | list) or (dated and one is None)):
            yield f"field '{name}' must be a path, a label value, a run-length code or polygons, not {one!r}."
            continue
        path = one.get("file") if isinstance(one, dict) else one
        if isinstance(path, str):
            yield from images.path_problems(path, name)


def _unknown(values: dict[str, Any], name: str, fields: tuple[str, ...]) -> Iterator[str]:
    for key in values:
        if key not in fields:
            yield f"{name} has the unknown field '{key}'.{nearest(key, fields)}"
