"""Parts of a scene: the window that is asked about, and what is drawn where a user points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.config import DataConfig
from earthmind_jax.data.collate import Buckets, collate
from earthmind_jax.data.pointed import visual_prompts
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Turn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark, place
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer.answer import overview, token_grid, upsample_each
from earthmind_jax.infer.marks import grid_of
from earthmind_jax.infer.samples import sample_of
from earthmind_jax.infer.windows import Blend, stretched

if TYPE_CHECKING:
    from earthmind_jax.infer.engine import Engine

Window = tuple[slice, slice]
Zoom = tuple[int, int, int, int] | Prompt
"""(row, column, height, width) in pixels of the reference image, or a box in map coordinates (``Prompt.from_box``)."""

MARGIN = 0.25  # of an object's size that its surroundings add on each side, where it is larger than a window


def zoomed(zoom: Zoom, images: Images) -> tuple[Window, tuple[str, ...]]:
    """The window that a request names, and what to say about it.

    Raises:
      UserError: the window lies outside the image, or is none.
    """
    if isinstance(zoom, Prompt):
        (mark,), notes = place([zoom], grid_of(images))
        x0, y0, x1, y1 = mark.bounds
        top, left = int(np.floor(y0)), int(np.floor(x0))
        return (slice(top, max(int(np.ceil(y1)), top + 1)), slice(left, max(int(np.ceil(x1)), left + 1))), notes
    numbers = list(zoom) if isinstance(zoom, tuple | list) else []
    if len(numbers) != 4 or any(isinstance(v, bool) or not isinstance(v, int | np.integer) for v in numbers):
        raise UserError(f"A window is row, column, height, width in whole pixels, not {zoom!r}.")
    top, left, height, width = (int(v) for v in numbers)
    rows, columns = images.shape
    if height < 1 or width < 1 or top < 0 or left < 0 or top + height > rows or left + width > columns:
        raise UserError(
            f"The window of {height} x {width} pixels at row {top}, column {left} does not lie on the image, which has "
            f"{rows} x {columns}."
        )
    return (slice(top, top + height), slice(left, left + width)), ()


def within(marks: Sequence[Mark], window: Window) -> tuple[Mark, ...]:
    """Marks of the scene on a window of it; UserError where one has nothing there."""
    rows, columns = window
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    cut = tuple(mark.window(rows.start, columns.start, shape) for mark in marks)
    for mark, part in zip(marks, cut, strict=True):
        if part is None:
            raise UserError(f"'{mark.name}' lies outside the window that is asked about; widen the window.")
    return tuple(part for part in cut if part is not None)


def around(marks: Sequence[Mark], side: int) -> Window:
    """The window around marks: ``side`` pixels, or a margin more than their bounds where these are larger; the whole
    image where ``side`` is 0 or it is no larger."""
    height, width = marks[0].shape
    if not side:
        return slice(0, height), slice(0, width)
    bounds = np.array([mark.bounds for mark in marks])
    (x0, y0), (x1, y1) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    size = max(side, int(np.ceil((1 + 2 * MARGIN) * max(x1 - x0, y1 - y0))))

    def centred(middle: float, most: int) -> slice:
        length = min(size, most)
        start = int(np.clip(round(middle - length / 2), 0, most - length))
        return slice(start, start + length)

    return centred((y0 + y1) / 2, height), centred((x0 + x1) / 2, width)


def closer_to(marks: Sequence[Mark], side: int) -> tuple[Window, tuple[str, ...]]:
    """:func:`around`, and what to say about it."""
    rows, columns = around(marks, side)
    said = (
        f"Answered from rows {rows.start} to {rows.stop} and columns {columns.start} to {columns.stop}, around what is "
        "pointed at; name a window to show another part."
    )
    return (rows, columns), (said,)


def windows_of(marks: Sequence[Mark], side: int) -> list[tuple[Window, list[int]]]:
    """Windows in which marks are drawn, each with those that it serves: one that is there already takes every further
    mark whose surroundings of half a window it shows."""
    found: list[tuple[Window, list[int]]] = []
    for i, mark in enumerate(marks):
        wanted = around([mark], side)
        core = around([mark], side // 2) if side else wanted
        for window, members in found:
            same_size = all(w.stop - w.start == v.stop - v.start for w, v in zip(window, wanted, strict=True))
            inside = all(w.start <= c.start and c.stop <= w.stop for w, c in zip(window, core, strict=True))
            if same_size and inside:
                members.append(i)
                break
        else:
            found.append((wanted, [i]))
    return found


def surroundings(marks: Sequence[Mark], side: int, shape: tuple[int, int]) -> Zoom:
    """The part of an image of ``shape`` that has all of :func:`windows_of`; the image itself without marks."""
    found = [window for window, _ in windows_of(marks, side)] or [(slice(0, shape[0]), slice(0, shape[1]))]
    top, left = (min(window[axis].start for window in found) for axis in (0, 1))
    bottom, right = (max(window[axis].stop for window in found) for axis in (0, 1))
    return top, left, bottom - top, right - left


def paste(part: np.ndarray, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """A window's values [h w ...] on the whole image [H W ...], zero elsewhere."""
    whole = np.zeros((*shape, *part.shape[2:]), part.dtype)
    whole[window] = part
    return whole


def draw(
    engine: Engine,
    images: Images,
    marks: Sequence[Mark],
    target: str,
    buckets: Buckets | None,
    max_new: int,
    sensors: tuple[str, ...] | None = None,
) -> tuple[list[np.ndarray], str, np.ndarray]:
    """Probability [H W] (of several dates [F H W]) of what each mark points at, what the model said, and the fusion
    weights [H W 2] where it looked.

    Without a target the mask decoder hears the marks alone, and the language model is not asked. With one, each mask is
    drawn from the ``[SEG]`` of "segment target" and the mark together, and is empty where the model gives no ``[SEG]``.
    Every image is encoded once for all marks on it.

    Args:
      sensors: those that batches have room for; None: those of the images.
    """
    config = engine.config
    assert config.grounding is not None
    question = SEGMENTATION_QUESTIONS[0].replace("{c}", target or "marked object")
    data, dates = DataConfig(masks_per_sample=1), len(images.later) + 1
    drawn: list[np.ndarray] = [np.zeros(0)] * len(marks)
    fusion = Blend(images.shape, 2)
    said = ""
    for window, members in windows_of(marks, config.sensors.window):
        part = images.crop(window)
        samples = [sample_of(part, Turn(question))]
        batch = collate(samples, config, data, engine.tokenizer, buckets or Buckets(), sensors=sensors, follow=True)
        fused = engine.encode(batch)
        prompts = visual_prompts(within([marks[i] for i in members], window), config.grounding)
        states = None
        if target:
            made = engine.generate(batch, fused, max_new=max_new)
            said = said or made.texts[0]
            if not made.seg_valid.any():
                prompts = None
            else:
                states = made.seg_states[:, :1].repeat(len(members), 1)
        logits = None if prompts is None else engine.masks(batch, fused, states, prompts)[0][0]
        found: Iterable[np.ndarray] = np.zeros((len(members), dates, *part.shape), np.float32)
        if logits is not None:
            each = logits[:dates].swapaxes(0, 1) if logits.ndim == 4 else logits[:, None]
            found = upsample_each(each[: len(members)], part.shape)
        for i, values in zip(members, found, strict=True):
            drawn[i] = paste(np.moveaxis(values, 0, -1).astype(np.float32), window, images.shape)
        weights = stretched(overview(token_grid(fused.weights)[0]), part.shape)
        fusion.add(window, weights, weights.sum(-1) > 0)
    return [np.moveaxis(values, -1, 0) for values in drawn], said, fusion.mean()
