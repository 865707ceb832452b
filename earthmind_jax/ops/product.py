"""Products with weights, in the form that is fast on the platform at hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike


def on_cpu() -> bool:
    """Whether computations run on the CPU unless placed elsewhere."""
    return jax.default_backend() == "cpu"


def product(spec: str, x: Array, kernel: Array, output: DTypeLike | None = None) -> Array:
    """``jnp.einsum(spec, x, kernel)``, accumulated and returned in ``output``; None is the dtype of the operands.

    On a CPU half-precision operands are always accumulated in float32 and rounded after it. XLA knows the processor's
    bfloat16 instructions for that form only: a product that is bfloat16 throughout takes two to three times as long.
    """
    wanted = jnp.dtype(output or jnp.result_type(x, kernel))
    accumulate = jnp.float32 if on_cpu() and wanted.itemsize < 4 else output
    return jnp.einsum(spec, x, kernel, preferred_element_type=accumulate).astype(wanted)
