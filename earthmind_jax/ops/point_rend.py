"""PointRend's sampling: points drawn where a mask's prediction is uncertain, and the values of maps there.

Axis letters: M masks, H W mask rows and columns, n points.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def sample_points(
    key: Array, logits: Float[Array, "M H W"], points: int, oversample: float = 3.0, importance: float = 0.75
) -> Float[Array, "M n 2"]:
    """Coordinates (x, y) in 0..1 of ``points`` points per mask, most of them where the prediction is uncertain.

    Of ``oversample * points`` uniform candidates the ``int(importance * points)`` with the smallest |logit| are kept;
    the rest is uniform. No gradient flows through the choice. Source: PointRend, as in EarthMind's ``sample_points``.

    Raises:
      ValueError: ``oversample`` below one or ``importance`` outside 0..1.
    """
    if points < 1 or oversample < 1 or not 0 <= importance <= 1:
        raise ValueError(
            f"Point sampling needs points >= 1, oversample >= 1 and importance in 0..1, not {points}, {oversample} and "
            f"{importance}."
        )
    masks, kept = logits.shape[0], int(importance * points)
    first, second = jax.random.split(key)
    candidates = jax.random.uniform(first, (masks, int(oversample * points), 2))
    return select_points(logits, candidates, jax.random.uniform(second, (masks, points - kept, 2)), kept)


def select_points(
    logits: Float[Array, "M H W"], candidates: Float[Array, "M c 2"], extra: Float[Array, "M e 2"], kept: int
) -> Float[Array, "M n 2"]:
    """The ``kept`` candidates of smallest |logit|, most uncertain first, followed by ``extra``."""
    uncertainty = -jnp.abs(jax.lax.stop_gradient(point_sample(logits, candidates)))
    _, index = jax.lax.top_k(uncertainty, kept)
    return jnp.concatenate([jnp.take_along_axis(candidates, index[..., None], axis=1), extra], axis=1)


def point_sample(maps: Shaped[Array, "M H W"], coords: Float[Array, "M n 2"]) -> Float[Array, "M n"]:
    """Bilinear value of each map at (x, y) in 0..1 of its extent; outside the map there are zeros.

    Source: mmcv ``point_sample`` = ``grid_sample(2 p - 1, align_corners=False)``.
    """
    masks, height, width = maps.shape
    flat = maps.astype(jnp.float32).reshape(masks, height * width)
    x, y = coords[..., 0] * width - 0.5, coords[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros(coords.shape[:2], jnp.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - jnp.abs(x - column)) * (1 - jnp.abs(y - row))
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            value = jnp.take_along_axis(flat, index.astype(jnp.int32), axis=1)
            total += jnp.where(inside, weight * value, 0.0)
    return total
