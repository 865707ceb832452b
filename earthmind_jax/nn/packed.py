"""Half-precision weights that a loop over layers slices without converting them.

On a CPU XLA widens bfloat16 wherever it moves data: a loop that takes layer after layer out of stacked weights first
makes a float32 copy of the whole stack and then rounds every slice back. For a few tokens that takes longer than their
products, and the weights take up three times their memory. Pairs of bfloat16 numbers seen as float32 are moved as they
are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from earthmind_jax.ops.product import on_cpu

COLLECTIONS = ("params", "lora")


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


@struct.dataclass
class Packed:
    """Tells packed weights from those that are float32 themselves."""

    pairs: Array


def over_packed(block: type[nn.Module], loop: Callable[[type[nn.Module]], Any]) -> Any:
    """``loop(block)``, where weights of bfloat16 cross into the loop packed."""
    if not on_cpu():
        return loop(block)
    inside = nn.map_variables(block, COLLECTIONS, _unpack_tree, _pack_tree)
    return nn.map_variables(loop(inside), COLLECTIONS, _pack_tree, _unpack_tree)


def _pack_tree(variables: Any) -> Any:
    def one(x: Any) -> Any:
        fits = getattr(x, "dtype", None) == jnp.bfloat16 and x.ndim > 0 and x.shape[-1] % 2 == 0
        return Packed(pack(x)) if fits else x

    return jax.tree.map(one, variables)


def _unpack_tree(variables: Any) -> Any:
    return jax.tree.map(
        lambda x: unpack(x.pairs) if isinstance(x, Packed) else x, variables, is_leaf=lambda x: isinstance(x, Packed)
    )
