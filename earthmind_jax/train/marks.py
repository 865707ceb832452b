"""Clicks and boxes drawn from target masks: what the mask decoder learns to be pointed with.

SAM2 is trained on prompts made from the masks themselves (Ravi et al. 2024, section 5): a click inside, or the box with
noise. So no record needs to hold any.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.types import Batch, VisualPrompts

NOISE = 0.1  # of a box's sides, standard deviation of its corners
KINDS = 3  # a click, a click and one beside the object, a box


def sample_marks(key: Array, batch: Batch, config: EarthMindConfig) -> VisualPrompts | None:
    """One mark for each target mask [B M ...], of stacks for each on every date [(B F) M ...]: a click on the object, a
    click on it and another on the background, or its box, each a third of the time. An empty mask's means nothing."""
    if batch.masks is None or config.grounding is None:
        return None
    masks = batch.masks.reshape(-1, *batch.masks.shape[-3:]) > 0.5  # [B M h w]
    scale = config.grounding.image_size / masks.shape[-1]
    kinds, inner, outer, noise = jax.random.split(key, 4)
    kind = jax.random.randint(kinds, masks.shape[:2], 0, KINDS)
    clicks = jnp.stack([_pixel(inner, masks), _pixel(outer, ~masks)], axis=2)  # [B M 2 2]
    box = _box(masks)
    sides = jnp.concatenate([box[..., 1, :] - box[..., 0, :]] * 2, -1).reshape(box.shape)
    box = jnp.clip(box + NOISE * sides * jax.random.normal(noise, box.shape), 0, jnp.array(masks.shape[:-3:-1]))
    boxed = kind == 2
    points = jnp.where(boxed[..., None, None], box, clicks) * scale
    labels = jnp.where(boxed[..., None], jnp.array([2, 3]), jnp.array([1, 0]))
    # Of an object that fills the image nothing is beside it.
    beside = (kind == 1) & ~masks.all((-2, -1))
    valid = jnp.stack([jnp.ones_like(boxed), boxed | beside], axis=-1)
    return VisualPrompts(points.astype(jnp.float32), labels.astype(jnp.int32), valid)


def pointing(key: Array, batch: Batch, config: EarthMindConfig) -> VisualPrompts | None:
    """:func:`sample_marks`, but of masks that have marks of their own (``batch.marks``) these, on every date."""
    drawn, own = sample_marks(key, batch, config), batch.marks
    if drawn is None or own is None:
        return drawn
    own = jax.tree.map(lambda x: jnp.repeat(x, len(drawn.labels) // len(x), axis=0), own)
    there = own.labels[..., 0] >= 0
    more = [(0, 0), (0, 0), (0, own.labels.shape[2] - drawn.labels.shape[2])]
    return VisualPrompts(
        jnp.where(there[..., None, None], own.points, jnp.pad(drawn.points, [*more, (0, 0)])),
        jnp.where(there[..., None], own.labels, jnp.pad(drawn.labels, more, constant_values=-1)),
        jnp.where(there[..., None], own.valid, jnp.pad(drawn.valid, more)),
        own.masks,
        own.masked,
    )


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
