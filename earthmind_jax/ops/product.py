"""Products with weights, in the form that is fast on the platform at hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike


def on_cpu() -> bool:
    """Whether computations run on the CPU unless placed elsewhere."""
    return jax.default_backend() == "cpu"


def product(spec: str, x: Array, kernel: Array, output: DTypeLike | None = None) -> Array:
    """``jnp.einsum(spec, x, kernel)``, accumulated and returned in ``output``; None is the dtype of the operands.

    On a CPU half-precision matrices are accumulated in float32 and rounded after it. XLA knows the processor's bfloat16
    instructions for that form only: a product that is bfloat16 throughout takes two to three times as long. A single
    row is left alone, since for matrix-vector products XLA converts the kernel in either form.
    """
    wanted = jnp.dtype(output or jnp.result_type(x, kernel))
    wide = on_cpu() and wanted.itemsize < 4 and _rows(spec, x, kernel) > 1
    return jnp.einsum(spec, x, kernel, preferred_element_type=jnp.float32 if wide else output).astype(wanted)


def _rows(spec: str, x: Array, kernel: Array) -> int:
    """Rows of ``x`` as a matrix whose columns are the axes that the product sums over."""
    letters, result = spec.split(",")[1].split("->")
    return x.size // math.prod(size for letter, size in zip(letters, kernel.shape, strict=True) if letter not in result)
