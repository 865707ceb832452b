"""Marks as prompts of the mask decoder: those of a request, and those that a record asks to learn with.

A record's turn with ``"steer": true`` shows its regions to the mask decoder as well, beside the words of its ``[SEG]``
and alone, as ``earthmind ask --steer`` and ``earthmind segment --point`` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from earthmind_jax.config import GroundingConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.masks import decode, is_marks, read_mark
from earthmind_jax.data.records import RecordTurn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.types import VisualPrompts

POINTS = (2, 4, 8, 16, 34)  # of one object, box corners included
CERTAIN = 10.0  # logit of a mask prompt's pixels, as SAM2 makes logits of given masks
LARGEST = 2048  # pixels on a side that regions are drawn with: tokens and decoder see less


def steering(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> tuple[Mark, ...]:
    """What a turn as written shows to the mask decoder, on an image of ``shape``: its regions, where it asks for it.

    Raises:
      UserError: naming the turn, and the region that is wrong or empty.
    """
    if not turn.steer:
        return ()
    name, made = f"turns[{index}].region", []
    for spec in turn.regions:
        if is_marks(spec):
            made.append(read_mark(spec, shape, name))
            continue
        mask = decode(spec, shape, root, name)
        if not mask.any():
            raise UserError(
                f"{name} has no pixel of the image, so it cannot steer; give another, or leave out 'steer'."
            )
        made.append(Mark("region", mask.shape, np.zeros((0, 2)), np.zeros(0, np.int32), mask=mask))
    return tuple(made)


def check_room(marks: Sequence[Mark | None], room: int) -> None:
    """UserError where one of the marks has more points than ``data.prompt_points`` gives room for."""
    for mark in marks:
        count = 0 if mark is None else len(clicks(mark)[1])
        if count > room:
            raise UserError(
                f"a mark has {count} points (two of a box among them) but data.prompt_points {room} is the most; raise "
                "it, or point with fewer."
            )


def training_prompts(
    marks: Sequence[Sequence[Mark | None]], config: GroundingConfig, masks: int, points: int
) -> VisualPrompts:
    """Marks of each sample's masks as prompts numpy [B M ...] of one shape: ``masks`` for each sample, ``points`` for
    each mask. Where there is no mark there is "no point at all", and the words speak alone."""
    side, lead = config.mask_size, (len(marks), masks)
    made = VisualPrompts(
        np.zeros((*lead, points, 2), np.float32),
        np.full((*lead, points), -1, np.int32),
        np.zeros((*lead, points), bool),
        np.zeros((*lead, side, side), np.float32),
        np.zeros(lead, bool),
    )
    made.valid[..., 0] = True
    for row, of_sample in enumerate(marks):
        for slot, mark in enumerate(of_sample):
            if mark is None:
                continue
            one = visual_prompts([mark], config)
            count = int(one.valid.sum())
            made.points[row, slot, :count] = one.points[0, 0, :count]
            made.labels[row, slot, :count] = one.labels[0, 0, :count]
            made.valid[row, slot] = np.arange(points) < count
            if one.masks is not None:
                made.masks[row, slot], made.masked[row, slot] = one.masks[0, 0], True
    return made


def visual_prompts(marks: Sequence[Mark], config: GroundingConfig) -> VisualPrompts:
    """Marks on one image as prompts of the mask decoder, numpy [1 M ...].

    Coordinates are scaled to the grounding image as SAM2's own processor scales them. A box goes as its two corners; a
    polygon or mask as the corners of its bounds and as a mask prompt; a scribble as points along it.
    """
    made = [clicks(mark) for mark in marks]
    most = max(len(labels) for _, labels in made)
    count = next((size for size in POINTS if size >= most), most)
    points, labels = np.zeros((len(marks), count, 2), np.float32), np.full((len(marks), count), -1, np.int32)
    valid = np.zeros((len(marks), count), bool)
    for i, (xy, kinds) in enumerate(made):
        points[i, : len(kinds)] = xy * config.image_size / np.array(marks[i].shape[::-1])
        labels[i, : len(kinds)], valid[i, : len(kinds)] = kinds, True
    drawn = [mark.drawn() for mark in small(marks, marks[0].shape)]
    side, masks, masked = config.mask_size, None, None
    if any(d is not None for d in drawn):
        none = np.zeros((side, side), np.float32)
        shares = np.stack([none if d is None else tiles.valid_share(d, (side, side)) for d in drawn])
        masks = (shares * 2 - 1)[None] * np.float32(CERTAIN)
        masked = np.array([[d is not None for d in drawn]])
    return VisualPrompts(points[None], labels[None], valid[None], masks, masked)


def clicks(mark: Mark) -> tuple[np.ndarray, np.ndarray]:
    """Points [P 2] that the decoder is shown of a mark, corners of its box first, and their labels [P]."""
    box = mark.box
    if box is None and (mark.area is not None or mark.mask is not None):
        box = mark.bounds
    points, labels = mark.clicks
    if box is None:
        return points, labels
    return np.concatenate([np.reshape(box, (2, 2)), points]), np.concatenate([[2, 3], labels])


def small(marks: Sequence[Mark], shape: tuple[int, int]) -> list[Mark]:
    """Marks on an image of ``shape``, or on a smaller one where regions would be drawn with too many pixels."""
    scale = min(1.0, LARGEST / max(shape))
    if scale == 1.0:
        return list(marks)
    return [mark.resized((max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))) for mark in marks]


def padded(prompts: VisualPrompts, count: int) -> VisualPrompts:
    """Prompts of ``count`` objects, those that are added with "no point at all", as the decoder has it for words
    alone."""
    more = count - prompts.points.shape[1]
    if more <= 0:
        return prompts

    def pad(x: np.ndarray | None, value: float) -> np.ndarray | None:
        return None if x is None else np.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    valid = pad(prompts.valid, False)
    assert valid is not None
    valid[:, -more:, 0] = True
    return VisualPrompts(
        pad(prompts.points, 0), pad(prompts.labels, -1), valid, pad(prompts.masks, 0), pad(prompts.masked, False)
    )
