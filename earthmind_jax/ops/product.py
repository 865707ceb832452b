"""Products with weights, in the form that is fast on the platform at hand."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

LARGE = 16 * 2**20
"""Bytes of a half-precision kernel that are converted at a time for a single row on a CPU."""


def on_cpu() -> bool:
    """Whether computations run on the CPU unless placed elsewhere."""
    return jax.default_backend() == "cpu"


def product(spec: str, x: Array, kernel: Array, output: DTypeLike | None = None) -> Array:
    """``jnp.einsum(spec, x, kernel)``, accumulated and returned in ``output``; None is the dtype of the operands.

    On a CPU half-precision matrices are accumulated in float32 and rounded after it. XLA knows the processor's bfloat16
    instructions for that form only: a product that is bfloat16 throughout takes two to three times as long. For a
    single row XLA converts the whole kernel first, so that a large one (a vocabulary head) goes block by block.
    """
    wanted = jnp.dtype(output or jnp.result_type(x, kernel))
    if not on_cpu() or jnp.result_type(x, kernel).itemsize == 4:
        return jnp.einsum(spec, x, kernel, preferred_element_type=output).astype(wanted)
    rows, summed = _rows(spec, x, kernel)
    if rows == 1 and summed and kernel.dtype == jnp.bfloat16 and kernel.nbytes > LARGE:
        shape = jax.eval_shape(functools.partial(jnp.einsum, spec), x, kernel).shape
        return _row(x.reshape(summed), kernel.reshape(summed, -1)).reshape(shape).astype(wanted)
    return jnp.einsum(spec, x, kernel, preferred_element_type=jnp.float32).astype(wanted)


@jax.custom_vjp
def _row(x: Array, kernel: Array) -> Array:
    """x [K], kernel bfloat16 [K N] -> float32 [N], by blocks of K: what is converted stays in caches."""
    depth, width = kernel.shape
    least = -(-kernel.nbytes // LARGE)
    count = next((n for n in range(least, depth + 1) if depth % n == 0), depth)
    # As integers, since XLA would convert all of the kernel before it cuts the first block.
    blocks = jax.lax.bitcast_convert_type(kernel, jnp.uint16).reshape(count, -1, width)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        part, weights = block[0], jax.lax.bitcast_convert_type(block[1], jnp.bfloat16)
        return total + jnp.einsum("k,kn->n", part, weights, preferred_element_type=jnp.float32), None

    return jax.lax.scan(add, jnp.zeros(width, jnp.float32), (x.reshape(count, -1), blocks))[0]


def _row_gradients(operands: tuple[Array, Array], given: Array) -> tuple[Array, Array]:
    x, kernel = operands
    return (kernel @ given).astype(x.dtype), jnp.outer(x, given).astype(kernel.dtype)


_row.defvjp(lambda x, kernel: (_row(x, kernel), (x, kernel)), _row_gradients)


def _rows(spec: str, x: Array, kernel: Array) -> tuple[int, int]:
    """Rows of ``x`` as a matrix whose columns are the axes that the product sums over, and their number where those are
    the first axes of ``kernel`` and the last of ``x``, else 0."""
    inputs, letters = spec.split("->")[0].split(",")
    result = spec.split("->")[1]
    sizes = dict(zip(letters, kernel.shape, strict=True))
    summed = [letter for letter in letters if letter not in result]
    total = math.prod(sizes[letter] for letter in summed)
    leading = letters.startswith("".join(summed)) and inputs.endswith("".join(summed))
    return x.size // total, total if leading else 0
