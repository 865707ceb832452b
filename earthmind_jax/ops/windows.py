"""Rearrangements of image grids, channels last: attention windows, 2x2 pooling, space to depth."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def partition(x: Float[Array, "B H W C"], w: int) -> tuple[Float[Array, "Bn w w C"], tuple[int, int]]:
    """Cut into windows of w x w, row-major within an image, after zero padding at the bottom and right.

    Returns the windows [B n w w C] with B and n merged, and the padded size (Hp, Wp). As published (Hiera of SAM2),
    padded positions are ordinary zero tokens: attention does not mask them.
    """
    if w < 1:
        raise ValueError(f"A window has at least one pixel a side, not {w}.")
    batch, height, width, channels = x.shape
    rows, columns = -(-height // w), -(-width // w)
    x = jnp.pad(x, ((0, 0), (0, rows * w - height), (0, columns * w - width), (0, 0)))
    x = x.reshape(batch, rows, w, columns, w, channels).swapaxes(2, 3)
    return x.reshape(batch * rows * columns, w, w, channels), (rows * w, columns * w)


def unpartition(
    windows: Float[Array, "Bn w w C"], w: int, padded: tuple[int, int], original: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """Inverse of :func:`partition`: ``padded`` is the size it returned, ``original`` the size before padding."""
    rows, columns = padded[0] // w, padded[1] // w
    if windows.shape[1:3] != (w, w) or windows.shape[0] % max(1, rows * columns) or rows * columns == 0:
        raise ValueError(f"Windows {windows.shape} do not tile a {padded[0]} x {padded[1]} image in steps of {w}.")
    x = windows.reshape(-1, rows, columns, w, w, windows.shape[-1]).swapaxes(2, 3)
    return x.reshape(x.shape[0], rows * w, columns * w, -1)[:, : original[0], : original[1]]


def max_pool_2x2(x: Float[Array, "*batch H W C"]) -> Float[Array, "*batch h w C"]:
    """Maximum of each 2 x 2 block; an odd last row or column is dropped (``F.max_pool2d(x, 2)``)."""
    rows, columns, channels = x.shape[-3] // 2, x.shape[-2] // 2, x.shape[-1]
    x = x[..., : 2 * rows, : 2 * columns, :]
    return x.reshape(*x.shape[:-3], rows, 2, columns, 2, channels).max(axis=(-4, -2))


def pixel_shuffle(x: Float[Array, "B H W C"], factor: int = 2, version: str = "v2") -> Float[Array, "B h w c"]:
    """Space to depth: block (dr, dc) of the input goes to channels (dr * factor + dc) * C onwards (InternVL).

    ``factor`` is the inverse of the published ``downsample_ratio``. Version ``v1`` returns rows and columns swapped, as
    the first release did.

    Raises:
      ValueError: a side that is no multiple of ``factor``, or an unknown version.
    """
    batch, height, width, channels = x.shape
    if height % factor or width % factor:
        raise ValueError(f"A {height} x {width} grid cannot be shuffled by a factor of {factor}.")
    if version not in ("v1", "v2"):
        raise ValueError(f"Unknown pixel shuffle version {version!r}; choices: v1, v2.")
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels).swapaxes(2, 3)
    x = x.reshape(batch, height // factor, width // factor, factor * factor * channels)
    return x.swapaxes(1, 2) if version == "v1" else x
