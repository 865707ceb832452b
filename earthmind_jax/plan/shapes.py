"""The batch of a run as shapes alone: what :func:`earthmind_jax.data.collate.stack` will make of its data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from earthmind_jax.config import RunConfig, require
from earthmind_jax.data.buckets import DEFAULT, Buckets
from earthmind_jax.types import Batch


def most_tiles(config: RunConfig, buckets: Buckets = DEFAULT) -> int:
    """Tiles of the largest batch that a run can meet: all that its frames can give, as far as the text holds them.

    Each frame gives up to ``sensors.max_tiles`` tiles and a thumbnail beside more than one; the visual tokens of all of
    them, and a word at least, must fit into ``data.text_length``.
    """
    sensors, model = config.model.sensors, config.model
    frames = max(len(sensors.optical_bands) // 3, -(-len(sensors.sar_bands) // 3))
    each = sensors.max_tiles + (1 if sensors.thumbnail and sensors.max_tiles > 1 else 0)
    room = (config.data.text_length - 1) // (model.vision.tokens * model.fusion.sensors_out)
    require(
        room > 0,
        f"data.text_length {config.data.text_length} does not hold the "
        f"{model.vision.tokens * model.fusion.sensors_out} visual tokens of one tile; raise it.",
    )
    return buckets.fit_tiles(min(frames * each, room, buckets.tiles[-1]))


def batch_shapes(config: RunConfig, tiles: int, sharding: Sharding | None = None) -> Batch:
    """A training batch with both sensors, of ``tiles`` tiles a sample, as ``ShapeDtypeStruct`` leaves."""
    model, data = config.model, config.data
    batch, text, side, tokens = data.batch_size, data.text_length, model.vision.image_size, model.vision.tokens

    def array(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding)

    whole = Batch(
        tokens=array(jnp.int32, text),
        loss_mask=array(jnp.bool_, text),
        lengths=array(jnp.int32),
        question=array(jnp.bool_, text),
        visual_index=array(jnp.int32, text),
    )
    pixels, valid = array(jnp.float32, tiles, side, side, 3), array(jnp.bool_, tiles, tokens)
    whole = whole.replace(optical=pixels, sar=pixels, optical_valid=valid, sar_valid=valid)
    if model.grounding is None:
        return whole
    ground, there = array(jnp.float32, *(model.grounding.image_size,) * 2, 3), array(jnp.bool_)
    return whole.replace(
        places=array(jnp.int32, tiles, 4),
        ground_optical=ground,
        ground_sar=ground,
        ground_optical_valid=there,
        ground_sar_valid=there,
        seg_index=array(jnp.int32, data.masks_per_sample),
        masks=array(jnp.float32, data.masks_per_sample, *(model.grounding.mask_size,) * 2),
        mask_valid=array(jnp.bool_, data.masks_per_sample),
    )
