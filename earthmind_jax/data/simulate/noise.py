"""Cheap smooth random fields: random numbers on a coarse grid, upsampled by two small matrix products.

The upsampling matrices are quadratic B-splines with rows of unit norm, so a field has exactly unit variance everywhere;
they are cached, which makes a 64 x 64 field cost some ten microseconds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

_PHASES = 8  # sub-cell offsets of the coarse grid: fields of one scene do not share nodes


_ONE_THREAD = 64**3  # multiplications of a product up to which OpenBLAS uses the calling thread alone


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` [... n m] [... m k], in pieces that are computed in the calling thread, unless they would be slivers.

    BLAS shares larger products out to threads of its own, which spin while they wait: beside a training step on the
    same processor a scene of 128 pixels then takes thirty times as long.
    """
    rows = _ONE_THREAD // (a.shape[-1] * b.shape[-1])
    if rows < 8 or rows >= a.shape[-2]:
        return a @ b
    return np.concatenate([a[..., i : i + rows, :] @ b for i in range(0, a.shape[-2], rows)], axis=-2)


@lru_cache(maxsize=2048)
def _upsample(n: int, cell: float, phase: int) -> np.ndarray:
    """B-spline weights float32 [n nodes] of ``n`` pixels over nodes that are ``cell`` pixels apart."""
    position = np.arange(n) / cell + phase / _PHASES
    nodes = int(np.floor(position[-1])) + 3
    distance = np.abs(position[:, None] - (np.arange(nodes)[None, :] - 0.5))
    weight = np.where(distance < 0.5, 0.75 - distance**2, np.where(distance < 1.5, 0.5 * (1.5 - distance) ** 2, 0.0))
    return (weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Float[np.ndarray, "H W"]:
    """Gaussian field, mean 0 and variance 1 at every pixel, with features about ``cell`` pixels wide."""
    cell = max(1.0, round(4.0 * cell) / 4.0)
    phase = rng.integers(_PHASES, size=2)
    rows, columns = _upsample(shape[0], cell, int(phase[0])), _upsample(shape[1], cell, int(phase[1]))
    grid = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return product(product(rows, grid), columns.T)


def fractal_noise(
    rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 3
) -> Float[np.ndarray, "H W"]:
    """Sum of ``octaves`` fields, each with half the feature size and half the amplitude of the last; variance 1."""
    out = smooth_noise(rng, shape, cell)
    total = 1.0
    for octave in range(1, octaves):
        amplitude = 0.5**octave
        out += amplitude * smooth_noise(rng, shape, cell * amplitude)
        total += amplitude**2
    return out * np.float32(total**-0.5)


@lru_cache(maxsize=256)
def blur_matrix(n: int, width: float) -> np.ndarray:
    """Row-stochastic float32 [n n] matrix of a Gaussian point spread function, ``width`` pixels at half maximum."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    weight = np.exp(-4.0 * np.log(2.0) * (distance / max(width, 1e-3)) ** 2)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def shift(mask: np.ndarray, rows: int, columns: int, fill: float = 0) -> np.ndarray:
    """The last two axes moved by (rows, columns); what comes in from outside is ``fill``."""
    out = np.full_like(mask, fill)
    h, w = mask.shape[-2:]
    if abs(rows) < h and abs(columns) < w:
        target = (..., slice(max(rows, 0), h + min(rows, 0)), slice(max(columns, 0), w + min(columns, 0)))
        source = (..., slice(max(-rows, 0), h + min(-rows, 0)), slice(max(-columns, 0), w + min(-columns, 0)))
        out[target] = mask[source]
    return out


def dilate(mask: Bool[np.ndarray, "H W"], steps: int = 1) -> Bool[np.ndarray, "H W"]:
    """The mask grown by ``steps`` pixels in the four directions."""
    out = mask.copy()
    for _ in range(steps):
        grown = out.copy()
        grown[1:] |= out[:-1]
        grown[:-1] |= out[1:]
        grown[:, 1:] |= out[:, :-1]
        grown[:, :-1] |= out[:, 1:]
        out = grown
    return out


def components(values: Int[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """4-connected components of equal values: each pixel gets the smallest flat index of its component.

    Minima are spread along whole row and column runs, so the number of rounds follows the number of turns of a shape,
    not its length.
    """
    h, w = values.shape
    labels = np.arange(h * w).reshape(h, w)
    row_cut = np.ones((h, w), bool)
    row_cut[:, 1:] = values[:, 1:] != values[:, :-1]
    column_cut = np.ones((w, h), bool)
    column_cut[:, 1:] = (values[1:] != values[:-1]).T
    row_starts, column_starts = np.flatnonzero(row_cut), np.flatnonzero(column_cut)
    row_lengths = np.diff(np.append(row_starts, h * w))
    column_lengths = np.diff(np.append(column_starts, h * w))
    while True:
        spread = np.repeat(np.minimum.reduceat(labels.ravel(), row_starts), row_lengths).reshape(h, w)
        turned = np.ascontiguousarray(spread.T).ravel()
        spread = np.repeat(np.minimum.reduceat(turned, column_starts), column_lengths).reshape(w, h).T
        if np.array_equal(spread, labels):
            return labels
        labels = np.ascontiguousarray(spread)
