"""Visual tokens and fusion weights on their two-dimensional grids."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from earthmind_jax.errors import UserError
from earthmind_jax.ops import resize


def pool_to_grid(
    x: Float[Array, "*axes P D"], from_grid: tuple[int, int], to_grid: tuple[int, int]
) -> Float[Array, "*axes N D"]:
    """Row-major tokens of one (rows, columns) grid averaged onto another: the adaptive pooling before Eq. 2, P -> N.

    Bin i of n over m cells covers floor(i m / n) .. ceil((i + 1) m / n), as ``adaptive_avg_pool2d`` does; it also
    enlarges. Raises :class:`UserError` when the tokens do not fill ``from_grid``.
    """
    _check(x.shape[-2], from_grid)
    if tuple(from_grid) == tuple(to_grid):
        return x
    pooled = resize.adaptive_average(x.reshape(*x.shape[:-2], *from_grid, x.shape[-1]), to_grid)
    return pooled.reshape(*x.shape[:-2], to_grid[0] * to_grid[1], x.shape[-1])


def pool_valid_to_grid(
    x: Float[Array, "*axes P D"],
    valid: Bool[Array, "*axes P"],
    from_grid: tuple[int, int],
    to_grid: tuple[int, int],
) -> tuple[Float[Array, "*axes N D"], Bool[Array, "*axes N"]]:
    """:func:`pool_to_grid` over the valid tokens of each bin, and whether a bin had one (its token is 0 otherwise)."""
    kept = jnp.where(valid[..., None], x, 0)  # not a product: an invalid token may hold NaN
    share = pool_to_grid(valid[..., None].astype(jnp.result_type(jnp.float32, x)), from_grid, to_grid)
    pooled = pool_to_grid(kept, from_grid, to_grid)
    return (pooled / jnp.where(share > 0, share, 1.0)).astype(x.dtype), share[..., 0] > 0


def weights_to_grid(
    weights: Float[Array, "*axes N 2"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "*axes h w 2"]:
    """Fusion weights (optical, SAR) of one token grid, bilinear on ``size`` = (h, w); they sum to 1 everywhere.

    Tokens valid in no sensor (weights 0, 0) do not count in the interpolation. A place with no valid token around it
    takes the mean weights of the grid, so that a sensor that is missing everywhere stays at 0 there too; 0.5 each when
    the whole grid is invalid. Source: ours, for feature pyramids blended with the weights of Eq. 7.
    """
    _check(weights.shape[-2], grid)
    weights = weights.astype(jnp.result_type(jnp.float32, weights))
    mean = _share(weights.sum(-2), jnp.full(2, 0.5, weights.dtype))
    placed = resize.bilinear(weights.reshape(*weights.shape[:-2], *grid, 2), size)
    return _share(placed, mean[..., None, None, :])


def _share(weights: Array, otherwise: Array) -> Array:
    """``weights`` divided by their sum over the last axis, or ``otherwise`` where that is 0."""
    total = weights.sum(-1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), otherwise)


def _check(tokens: int, grid: tuple[int, int]) -> None:
    if tokens != grid[0] * grid[1]:
        raise UserError(f"{tokens} tokens do not fill a grid of {grid[0]} x {grid[1]}.")
