"""Rotary position embedding on a grid: half of the planes turn with the column, half with the row. All float32.

Planes are pairs of neighbouring channels. Source: ``compute_axial_cis`` and ``apply_rotary_enc`` of SAM2.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def axial_tables(
    h: int, w: int, head_dim: int, theta: float = 1e4
) -> tuple[Float[Array, "S half"], Float[Array, "S half"]]:
    """cos and sin of the angles of the cells of an h x w grid, row by row: [h w, head_dim / 2], the planes that turn
    with the column first.

    Raises:
      ValueError: ``head_dim`` that is no multiple of four (two axes, two channels a plane).
    """
    if head_dim % 4:
        raise ValueError(f"Axial rotary embedding needs a head dimension that is a multiple of four, not {head_dim}.")
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 4) / head_dim)
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    angles = np.concatenate([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], axis=-1)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def rotate_pairs(
    x: Float[Array, "*batch S h"], cos: Float[Array, "S half"], sin: Float[Array, "S half"]
) -> Float[Array, "*batch S h"]:
    """Rotate plane (2k, 2k + 1) of every position by its angle; computed in float32, result in ``x.dtype``."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
