"""The masks and regions of a turn as written, to arrays on the pixels of its image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.data.masks import decode, draw_marks, is_marks
from earthmind_jax.data.records import Dated, RecordTurn, Turn
from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark


def decode_turn(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> Turn:
    """A turn as written on an image of ``shape``; UserError names the field that is wrong."""
    return Turn(
        turn.question,
        turn.answer,
        _masks(turn, shape, root, index),
        _regions(turn, shape, root, index),
        _steering(turn, shape, root, index),
    )


def check_marks(
    turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(field, what raises UserError where it is wrong) of each mask and region of a turn as written; ``shape`` is that
    of the image, None where it cannot be read."""
    for i, spec in enumerate(turn.masks):
        name = f"turns[{index}].masks[{i}]" if len(turn.masks) > 1 else f"turns[{index}].mask"
        one = RecordTurn(turn.question, turn.answer, (spec,))
        yield name, partial(_masks, one, shape, root, index)
    for i, spec in enumerate(turn.regions):
        name = f"turns[{index}].regions[{i}]" if len(turn.regions) > 1 else f"turns[{index}].region"
        one = RecordTurn(turn.question, turn.answer, region=spec, steer=turn.steer)
        yield name, partial(_check_region, one, shape, root, index)


def _check_region(turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int) -> None:
    decode_regions(turn, shape, root, index)
    if shape is not None:
        _steering(turn, shape, root, index)


def decode_regions(
    turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int = 0
) -> tuple[np.ndarray, ...]:
    """The parts of an image of ``shape`` that a turn as written asks about, each bool [h w]; none for the whole."""
    name = f"turns[{index}].region"
    made = []
    for spec in turn.regions:
        if not is_marks(spec):
            made.append(_decode(spec, shape, root, name))
        elif shape is not None:
            made.append(draw_marks(spec, shape, name))
    return tuple(made)


def _regions(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> Any:
    """A turn's regions in the forms of :class:`Turn`."""
    made = decode_regions(turn, shape, root, index)
    return made if len(made) > 1 else made[0] if made else None


def _steering(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> tuple[Mark, ...]:
    if not turn.steer:
        return ()
    from earthmind_jax.data.pointed import steering

    return steering(turn, shape, root, index)


def _masks(turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int) -> Any:
    """A turn's masks in the forms of :class:`Turn`."""
    name = f"turns[{index}].mask"
    made: list[Any] = []
    for spec in turn.masks:
        if isinstance(spec, dict) and "dates" in spec:
            made.append(Dated(tuple(None if s is None else _decode(s, shape, root, name) for s in spec["dates"])))
        else:
            made.append(_decode(spec, shape, root, name))
    if any(isinstance(m, Dated) for m in made) or len({m.shape for m in made}) > 1:
        return tuple(made)
    return None if not made else made[0] if len(made) == 1 else np.stack(made)


def _decode(spec: Any, shape: tuple[int, int] | None, root: Path, name: str) -> np.ndarray:
    mask = decode(spec, shape or (1, 1), root, name)
    if shape is not None:
        _same_extent(mask.shape, shape, name)
        if isinstance(spec, list) and spec and not mask.any():
            raise UserError(f"{name}: its polygons lie outside the image of {shape[0]} x {shape[1]} pixels.")
    return mask


def _same_extent(mask: tuple[int, ...], image: tuple[int, int], where: str) -> None:
    """Masks are stretched over the image, so a mask of another shape is of another extent."""
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(mask[0] * image[1], mask[1] * image[0]) * 0.02:
        raise UserError(
            f"{where} is {mask[0]} x {mask[1]} but the image is {image[0]} x {image[1]}: they do not match."
        )
