"""Clicks and boxes drawn from target masks: what the mask decoder learns to be pointed with.

SAM2 is trained on prompts made from the masks themselves (Ravi et al. 2024, section 5): a click inside, or the box with
noise. So no record needs to hold any. SAM2's masks are single objects; those of land cover are all areas of a class,
which neither a click on one of them nor the box round all of them tells apart from the other classes. So a mark means
the connected part that its click lies in (``loss.mark_parts``).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import RunConfig
from earthmind_jax.types import Batch, VisualPrompts

NOISE = 0.1  # of a box's sides, standard deviation of its corners
KINDS = 3  # a click, two clicks, a box
RADIUS = 0.125  # of the image: the disc that stands for a click where marks stand for shapes
SMALLEST = 0.1  # of the image: sides of boxes that stand for themselves


class Marked(NamedTuple):
    """Marks [B N ...] (of stacks for each on every date [(B F) N ...]), what they mean, bool [B N h w], and the masks
    that they are of, int [B N]."""

    prompts: VisualPrompts
    targets: Array
    of: Array


def sample_marks(key: Array, batch: Batch, config: RunConfig) -> Marked | None:
    """One mark for each target mask, or ``loss.marks`` for each image: a click on the object, a click on it and another
    beside or on it, or its box, each a third of the time. An empty mask's means nothing.

    Of a share ``loss.mark_shapes`` the target is the mark's own shape instead, wherever it lies: all of a box drawn
    anywhere, or a disc round the click.
    """
    if batch.masks is None or config.model.grounding is None:
        return None
    masks = batch.masks.reshape(-1, *batch.masks.shape[-3:]) > 0.5  # [B M h w]
    of = _masks_of(jax.random.fold_in(key, 1), masks.any((-2, -1)), config.loss.marks)
    masks = jnp.take_along_axis(masks, of[..., None, None], axis=1)  # [B N h w]
    height, width = masks.shape[-2:]
    scale = config.model.grounding.image_size / width
    kinds, inner, second, outer, noise, shapes, corners = jax.random.split(key, 7)
    kind, click = jax.random.randint(kinds, masks.shape[:2], 0, KINDS), _pixel(inner, masks)
    boxed = kind == 2
    targets = _part(masks, click) if config.loss.mark_parts else masks
    beside = jax.random.bernoulli(outer, 0.5, kind.shape)
    if config.loss.mark_shapes:
        shape = jnp.where(boxed[..., None, None], _any_box(corners, masks.shape), _disc(click, masks.shape))
        shaped = jax.random.bernoulli(shapes, config.loss.mark_shapes, masks.shape[:2]) & masks.any((-2, -1))
        targets = jnp.where(shaped[..., None, None], shape, targets)
        beside |= shaped  # clicks have no order: which of two the disc is round could not be told
    beside &= ~targets.all((-2, -1))  # of an object that fills the image nothing is beside it
    other = _pixel(second, targets ^ beside[..., None, None])
    clicks = jnp.stack([click, other], axis=2)  # [B N 2 2]
    box = _box(targets)
    sides = jnp.concatenate([box[..., 1, :] - box[..., 0, :]] * 2, -1).reshape(box.shape)
    box = jnp.clip(box + NOISE * sides * jax.random.normal(noise, box.shape), 0, jnp.array([width, height]))
    points = jnp.where(boxed[..., None, None], box, clicks) * scale
    labels = jnp.where(boxed[..., None], jnp.array([2, 3]), jnp.stack([jnp.ones_like(kind), ~beside], axis=-1))
    valid = jnp.stack([jnp.ones_like(boxed), kind > 0], axis=-1)
    return Marked(VisualPrompts(points.astype(jnp.float32), labels.astype(jnp.int32), valid), targets, of)


def pointing(key: Array, batch: Batch, config: RunConfig) -> Marked | None:
    """:func:`sample_marks`, but of masks that have marks of their own (``batch.marks``) these, on every date; they mean
    the whole mask."""
    drawn, own = sample_marks(key, batch, config), batch.marks
    if drawn is None or own is None:
        return drawn
    prompts, masks = drawn.prompts, batch.masks.reshape(-1, *batch.masks.shape[-3:]) > 0.5
    own = jax.tree.map(lambda x: jnp.repeat(x, len(prompts.labels) // len(x), axis=0), own)
    own, masks = jax.tree.map(lambda x: x[jnp.arange(len(x))[:, None], drawn.of], (own, masks))
    there = own.labels[..., 0] >= 0
    more = [(0, 0), (0, 0), (0, own.labels.shape[2] - prompts.labels.shape[2])]
    prompts = VisualPrompts(
        jnp.where(there[..., None, None], own.points, jnp.pad(prompts.points, [*more, (0, 0)])),
        jnp.where(there[..., None], own.labels, jnp.pad(prompts.labels, more, constant_values=-1)),
        jnp.where(there[..., None], own.valid, jnp.pad(prompts.valid, more)),
        own.masks,
        own.masked,
    )
    told = there if own.masked is None else there | own.masked
    return Marked(prompts, jnp.where(told[..., None, None], masks, drawn.targets), drawn.of)


def _masks_of(key: Array, there: Array, marks: int) -> Array:
    """Which of the masks [B M] each mark is of, int [B N]: all in their order, or where ``marks`` has a number as many
    of those that are ``there``, again and again in a random order."""
    if not marks:
        return jnp.broadcast_to(jnp.arange(there.shape[1]), there.shape)
    order = jnp.argsort(jnp.where(there, jax.random.uniform(key, there.shape), 2.0), axis=1)
    turn = jnp.arange(marks) % jnp.maximum(there.sum(1, keepdims=True), 1)
    return jnp.take_along_axis(order, turn, axis=1)


def _part(masks: Array, click: Array) -> Array:
    """The 8-connected part of each mask [B M h w] that the pixel at ``click`` [B M 2] lies in.

    What is reached spreads by one pixel in every direction and then along whole runs of rows and columns, so the number
    of rounds follows the turns of a shape, not its length.
    """
    rows, columns = jnp.indices(masks.shape[-2:])
    x, y = (click[..., axis, None, None].astype(jnp.int32) for axis in (0, 1))
    seed = (rows == y) & (columns == x) & masks

    def along(reached: Array, axis: int, reverse: bool) -> Array:
        def follow(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
            return first[0] & second[0], second[1] | (second[0] & first[1])

        return jax.lax.associative_scan(follow, (masks, reached), reverse=reverse, axis=axis)[1]

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        reached, _ = state
        wide = jax.lax.reduce_window(reached, False, jax.lax.bitwise_or, (1, 1, 3, 3), (1, 1, 1, 1), "SAME") & masks
        for axis in (2, 3):
            wide = along(wide, axis, False) | along(wide, axis, True)
        return wide, reached

    return jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), spread, spread((seed, seed)))[0]


def _disc(click: Array, shape: tuple[int, ...]) -> Array:
    """Discs [B M h w] of :data:`RADIUS` round clicks [B M 2]."""
    rows, columns = jnp.indices(shape[-2:]) + 0.5
    x, y = click[..., 0, None, None], click[..., 1, None, None]
    return (columns - x) ** 2 + (rows - y) ** 2 < (RADIUS * shape[-1]) ** 2


def _any_box(key: Array, shape: tuple[int, ...]) -> Array:
    """Random boxes [B M h w] that lie in the image, no side shorter than :data:`SMALLEST`."""
    ends = jnp.sort(jax.random.uniform(key, (*shape[:2], 2, 2)), axis=-1)  # [B M axis end]
    low = jnp.minimum(ends[..., 0], 1 - SMALLEST)
    high = jnp.maximum(ends[..., 1], low + SMALLEST)
    sides = [
        (place >= low[..., axis, None]) & (place <= high[..., axis, None])
        for axis, place in enumerate((jnp.arange(n) + 0.5) / n for n in shape[-2:])
    ]
    return sides[0][..., :, None] & sides[1][..., None, :]


def _pixel(key: Array, masks: Array) -> Array:
    """(x, y) of the centre of a random pixel of each mask [B M h w] -> [B M 2]."""
    width = masks.shape[-1]
    flat = masks.reshape(*masks.shape[:2], -1)
    chosen = jnp.argmax(jnp.where(flat, jax.random.uniform(key, flat.shape), -1.0), axis=-1)
    return jnp.stack([chosen % width, chosen // width], axis=-1) + 0.5


def _box(masks: Array) -> Array:
    """Corners [B M 2 2] of the outer edges of each mask; nothing useful where it is empty."""
    corners = []
    for axis in (-2, -1):  # columns, rows
        there = masks.any(axis)
        size = there.shape[-1]
        corners.append(jnp.stack([jnp.argmax(there, -1), size - jnp.argmax(there[..., ::-1], -1)], axis=-1))
    return jnp.stack(corners, axis=-1).astype(jnp.float32)
