"""Image resizing with PyTorch's rules (align_corners False), channels last: [..., H, W, C].

Each kernel is separable, so an axis is a small table of taps (source index, weight) computed once in NumPy from the two
sizes; rows first, then columns. Interpolation is done in float32; floating inputs keep their dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

Taps = tuple[np.ndarray, np.ndarray]  # source index [out taps], weight [out taps]


def bicubic(x: Float[Array, "*batch H W C"], size: tuple[int, int]) -> Float[Array, "*batch h w C"]:
    """Cubic convolution with a = -0.75, edges repeated (``F.interpolate(mode="bicubic")``)."""
    return _interpolate(x, size, _cubic_taps)


def bilinear(x: Float[Array, "*batch H W C"], size: tuple[int, int]) -> Float[Array, "*batch h w C"]:
    """Linear interpolation between pixel centres, edges repeated (``F.interpolate(mode="bilinear")``)."""
    return _interpolate(x, size, _linear_taps)


def bilinear_antialiased(x: Float[Array, "*batch H W C"], size: tuple[int, int]) -> Float[Array, "*batch h w C"]:
    """:func:`bilinear` whose triangle widens as the image shrinks (``F.interpolate(..., antialias=True)``)."""
    return _interpolate(x, size, _triangle_taps)


def nearest(x: Shaped[Array, "*batch H W C"], size: tuple[int, int]) -> Shaped[Array, "*batch h w C"]:
    """Source pixel floor(i * H / h), of any dtype (``F.interpolate(mode="nearest")``)."""
    _check(x, size)
    for axis, target in zip((-3, -2), size, strict=True):
        x = jnp.take(x, _nearest_index(x.shape[axis], target), axis=axis)
    return x


def adaptive_average(x: Float[Array, "*batch H W C"], size: tuple[int, int]) -> Float[Array, "*batch h w C"]:
    """Mean over bin [floor(i H / h), ceil((i+1) H / h)) of each axis (``F.adaptive_avg_pool2d``)."""
    return _interpolate(x, size, _mean_taps)


def adaptive_max(x: Shaped[Array, "*batch H W C"], size: tuple[int, int]) -> Shaped[Array, "*batch h w C"]:
    """Maximum over the bins of :func:`adaptive_average` (``F.adaptive_max_pool2d``), of any dtype."""
    _check(x, size)
    for axis, target in zip((-3, -2), size, strict=True):
        index, _ = _bins(x.shape[axis], target)
        out = jnp.take(x, index[:, 0], axis=axis)
        for column in index.T[1:]:
            out = jnp.maximum(out, jnp.take(x, column, axis=axis))
        x = out
    return x


def _interpolate(x: Array, size: tuple[int, int], taps: Callable[[int, int], Taps]) -> Array:
    _check(x, size)
    out = x.astype(jnp.result_type(jnp.float32, x))
    for axis, target in zip((-3, -2), size, strict=True):
        if out.shape[axis] == target:
            continue  # every kernel is the identity there
        index, weight = taps(out.shape[axis], target)
        weight = weight.astype(out.dtype).reshape(-1, *([1] * (-1 - axis)), index.shape[1])
        out = sum(jnp.take(out, index[:, t], axis=axis) * weight[..., t] for t in range(index.shape[1]))
    return out.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else out


def _check(x: Array, size: tuple[int, int]) -> None:
    if x.ndim < 3 or len(size) != 2 or min(size) < 1 or min(x.shape[-3:-1]) < 1:
        raise ValueError(f"Resizing needs an image [... H W C] and a positive size (h, w), not {x.shape} and {size}.")


def _centres(source: int, target: int) -> np.ndarray:
    """Position of each target pixel's centre on the source grid, in source pixels."""
    return (np.arange(target) + 0.5) * (source / target) - 0.5


def _nearest_index(source: int, target: int) -> np.ndarray:
    # PyTorch multiplies in float32, which now and then lands just below the whole number.
    index = np.floor(np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target)))
    return np.minimum(index.astype(np.int32), source - 1)


def _linear_taps(source: int, target: int) -> Taps:
    position = np.clip(_centres(source, target), 0, source - 1)
    first = np.floor(position).astype(np.int32)
    t = position - first
    return np.stack([first, np.minimum(first + 1, source - 1)], axis=1), np.stack([1 - t, t], axis=1)


def _triangle_taps(source: int, target: int) -> Taps:
    """Source pixels under a triangle of half-width max(1, source / target); those beyond the edge do not count."""
    reach = max(source / target, 1.0)
    centre = (np.arange(target) + 0.5) * (source / target)
    index = np.floor(centre - reach).astype(np.int32)[:, None] + np.arange(int(2 * reach) + 2)
    weight = np.maximum(1 - np.abs(index + 0.5 - centre[:, None]) / reach, 0)
    weight = np.where((index >= 0) & (index < source), weight, 0)
    return np.clip(index, 0, source - 1).astype(np.int32), weight / weight.sum(axis=1, keepdims=True)


def _cubic_taps(source: int, target: int, a: float = -0.75) -> Taps:
    position = _centres(source, target)
    first = np.floor(position)
    distance = np.abs((position - first)[:, None] - np.arange(-1, 3))  # [out 4], at most 2
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = a * (((distance - 5) * distance + 8) * distance - 4)
    index = np.clip(first[:, None] + np.arange(-1, 3), 0, source - 1).astype(np.int32)
    return index, np.where(distance <= 1, inner, outer)


def _bins(source: int, target: int) -> Taps:
    """Members of each adaptive bin, short bins filled up by repeating their last member with weight zero."""
    start = np.arange(target) * source // target
    stop = -(-(np.arange(target) + 1) * source // target)
    members = start[:, None] + np.arange((stop - start).max())
    return np.minimum(members, stop[:, None] - 1).astype(np.int32), (members < stop[:, None]).astype(np.float64)


def _mean_taps(source: int, target: int) -> Taps:
    index, member = _bins(source, target)
    return index, member / member.sum(axis=1, keepdims=True)
