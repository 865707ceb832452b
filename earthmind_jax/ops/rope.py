"""Rotary position embedding in the half-split form, with the published frequency scalings. All float32.

Sources: the rotary embeddings of Qwen2 (``default``), InternLM2 (``dynamic``: NTK-aware base) and Phi-3 (``longrope``,
published as ``su``); ``linear`` divides positions by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def inverse_frequencies(
    head_dim: int,
    theta: float,
    *,
    kind: str = "default",
    factor: float = 1.0,
    max_position: int = 0,
    original_max_position: int = 0,
    short_factor: Sequence[float] = (),
    long_factor: Sequence[float] = (),
    length: int | Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch half"]:
    """Angle per position of each of the h/2 planes, radians, float32: [h/2], or [B h/2] for lengths [B].

    ``length`` is the number of positions in play (largest position + 1), a Python number or traced: ``dynamic``
    enlarges the base to theta (f L / M - (f - 1))^(h / (h-2)) once L exceeds M = ``max_position``, and ``longrope``
    goes from ``short_factor`` to ``long_factor`` once L exceeds ``original_max_position``. Keys that are already
    cached keep the frequencies of the step that wrote them, as published.

    Raises:
      ValueError: an unknown kind, an odd head dimension, a longrope table of the wrong length, or no length where the
        kind depends on it.
    """
    if head_dim % 2:
        raise ValueError(f"Rotary embedding needs an even head dimension, not {head_dim}.")
    # As published, exponents and powers are rounded to float32: at thousands of positions the difference is visible.
    exponent = (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)).astype(np.float64)
    base = (float(theta) ** exponent).astype(np.float32)  # [h/2]
    if kind == "default":
        return jnp.asarray(1.0 / base)
    if kind == "linear":
        return jnp.asarray(1.0 / base / np.float32(factor))
    if kind not in ("dynamic", "longrope"):
        raise ValueError(f"Unknown rotary scaling {kind!r}; choices: default, linear, dynamic, longrope.")
    if length is None:
        raise ValueError(f"Rotary scaling {kind!r} depends on the sequence length.")
    if kind == "dynamic":
        return _dynamic(base, exponent, head_dim, factor, max_position, length)
    for name, table in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(table) != head_dim // 2:
            raise ValueError(f"Rotary {name} needs {head_dim // 2} entries, not {len(table)}.")
    long = jnp.asarray(length)[..., None] > original_max_position
    scaled = [1.0 / (np.asarray(table, np.float32) * base) for table in (long_factor, short_factor)]
    return jnp.where(long, *scaled)


def _dynamic(
    base: np.ndarray, exponent: np.ndarray, head_dim: int, factor: float, max_position: int, length: int | Array
) -> Array:
    """theta' = theta g with g = (f L / M - (f - 1))^(h / (h-2)), so that every plane turns slower by g^(2k/h)."""
    power = exponent * head_dim / (head_dim - 2)
    if isinstance(length, int | np.integer):
        growth = factor * max(int(length), max_position) / max_position - (factor - 1)
        return jnp.asarray((1.0 / (base * growth**power)).astype(np.float32))
    longer = jnp.maximum(length, max_position).astype(jnp.float32)[..., None]
    growth = factor * longer / max_position - (factor - 1)
    return 1.0 / (base * growth ** power.astype(np.float32))


def table_scale(kind: str, *, max_position: int = 0, original_max_position: int = 0) -> float:
    """Factor of cos and sin: sqrt(1 + ln(max / original) / ln(original)) for ``longrope``, else 1 (Phi-3 ``su``)."""
    if kind != "longrope" or max_position <= original_max_position:
        return 1.0
    return math.sqrt(1.0 + math.log(max_position / original_max_position) / math.log(original_max_position))


def rope_tables(
    positions: Int[Array, "B T"], inv_freq: Float[Array, "*batch half"], scale: float = 1.0
) -> tuple[Float[Array, "B T h"], Float[Array, "B T h"]]:
    """cos and sin of position x frequency, float32 [B T h], the h/2 planes repeated twice, times ``scale``."""
    angles = positions[..., None].astype(jnp.float32) * jnp.atleast_2d(inv_freq)[:, None, :]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def apply_rope(
    x: Float[Array, "B T N h"], cos: Float[Array, "B T h"], sin: Float[Array, "B T h"]
) -> Float[Array, "B T N h"]:
    """Rotate plane (k, k + h/2) of every head by its angle; computed in float32, result in ``x.dtype``."""
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (wide * cos[:, :, None, :] + turned * sin[:, :, None, :]).astype(x.dtype)
