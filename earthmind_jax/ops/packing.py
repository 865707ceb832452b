"""Pairs of bfloat16 numbers seen as float32, so that a CPU moves them as they are instead of widening them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def pack(x: Array) -> Array:
    """bfloat16 [... 2n] -> the same bits as float32 [... n]."""
    return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 2), jnp.float32)


@jax.custom_vjp
def unpack(x: Array) -> Array:
    """float32 [... n] -> the bfloat16 [... 2n] that :func:`pack` made it from."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16).reshape(*x.shape[:-1], -1)


# Between the two lies data movement alone, so that cotangents can be packed as the values are.
pack.defvjp(lambda x: (pack(x), None), lambda _, ct: (unpack(ct),))
unpack.defvjp(lambda x: (unpack(x), None), lambda _, ct: (pack(ct),))
