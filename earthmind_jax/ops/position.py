"""Position codes of SAM2, float32, channels last."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def fourier(coords: Float[Array, "*batch 2"], gaussian: Float[Array, "2 F"]) -> Float[Array, "*batch twoF"]:
    """Random Fourier features [sin | cos] of 2 pi (2 (x, y) - 1) G, for (x, y) in 0..1 of the image.

    Source: ``PositionEmbeddingRandom`` of the SAM2 prompt encoder.
    """
    coords = 2.0 * coords.astype(jnp.float32) - 1.0
    gaussian = gaussian.astype(jnp.float32)
    # Two products rather than a matmul: angles of many turns would not survive a reduced-precision one.
    angles = 2.0 * math.pi * (coords[..., :1] * gaussian[0] + coords[..., 1:] * gaussian[1])
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_grid(h: int, w: int, gaussian: Float[Array, "2 F"]) -> Float[Array, "h w twoF"]:
    """:func:`fourier` at the pixel centres of an h x w grid: the dense position code of the mask decoder."""
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return fourier(jnp.asarray(np.stack([x, y], axis=-1), jnp.float32), gaussian)


def sine(h: int, w: int, features: int, temperature: float = 1e4) -> Float[Array, "h w features"]:
    """Sine code of an h x w grid: half the channels for y, then half for x, each interleaved sin, cos.

    Coordinates 1..n are scaled to 2 pi n / (n + 1e-6). Source: ``PositionEmbeddingSine(normalize=True)`` of SAM2.

    Raises:
      ValueError: ``features`` that is no multiple of four (two axes, sine and cosine).
    """
    if features % 4:
        raise ValueError(f"A sine position code needs a multiple of four features, not {features}.")
    half = features // 2
    period = temperature ** (2 * (np.arange(half) // 2) / half)

    def axis(n: int) -> np.ndarray:
        angles = (np.arange(1, n + 1) / (n + 1e-6) * 2 * math.pi)[:, None] / period
        return np.where(np.arange(half) % 2 == 0, np.sin(angles), np.cos(angles))

    rows = np.broadcast_to(axis(h)[:, None], (h, w, half))
    columns = np.broadcast_to(axis(w)[None, :], (h, w, half))
    return jnp.asarray(np.concatenate([rows, columns], axis=-1), jnp.float32)


def sine_time(
    times: Float[Array, "*batch"], features: int, temperature: float = 1e4
) -> Float[Array, "*batch features"]:
    """Sine code [sin | cos] of times (``get_1d_sine_pe`` of SAM2); two neighbouring features share a period.

    Raises:
      ValueError: an odd number of ``features``.
    """
    if features % 2:
        raise ValueError(f"A sine time code needs an even number of features, not {features}.")
    half = features // 2
    period = jnp.asarray(temperature ** (2 * (np.arange(half) // 2) / half), jnp.float32)
    angles = times.astype(jnp.float32)[..., None] / period
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
