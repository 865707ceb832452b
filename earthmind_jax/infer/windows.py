"""Scenes larger than the model's own window: overlapping windows, blended without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

OVERLAP = 0.5  # each pixel lies a quarter of a window from the border in one of them; more changes next to nothing


def starts(length: int, size: int, overlap: float) -> list[int]:
    """First pixels of windows of ``size`` covering ``length`` with at least ``overlap`` (0..1) shared by neighbours.

    The last window ends with the scene; a scene shorter than a window has one, starting at 0.
    """
    if length <= size:
        return [0]
    step = int(size * (1 - overlap))
    # An odd step lays the model's grids (tokens, mask logits) differently in each window, so that none shows through.
    step = max(1, step - 1 + step % 2)
    count = -(-(length - size) // step) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def windows(shape: tuple[int, int], size: int, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Row and column slices of the windows of a scene [H W], row-major."""
    for top in starts(shape[0], size, overlap):
        for left in starts(shape[1], size, overlap):
            yield slice(top, min(top + size, shape[0])), slice(left, min(left + size, shape[1]))


@dataclass(frozen=True)
class Lattice:
    """Where the windows of a scene [H W] lie: their first rows and columns, and the token grid over all of them.

    Attributes:
      cell: pixels of a token, down and across.
    """

    shape: tuple[int, int]
    side: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    cell: tuple[float, float]

    @classmethod
    def of(cls, shape: tuple[int, int], side: int, overlap: float, tokens: int) -> Lattice:
        tops, lefts = (tuple(starts(length, side, overlap)) for length in shape)
        down, across = (min(side, length) / tokens for length in shape)
        return cls(shape, side, tops, lefts, (down, across))

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of the token grid: cells whose centre lies in the scene."""
        height, width = (max(1, self.token(length, axis)) for axis, length in enumerate(self.shape))
        return height, width

    def token(self, pixel: int, axis: int = 0) -> int:
        """The first cell whose centre does not lie before the row (or, on ``axis`` 1, column) ``pixel``."""
        return int(np.ceil(pixel / self.cell[axis] - 0.5))

    def next_top(self, row: int) -> int:
        """The first pixel row that windows after the row ``row`` still change."""
        return self.rows[row + 1] if row + 1 < len(self.rows) else self.shape[0]

    def first_row(self, pixels: int) -> int:
        """The first row of windows that reaches beyond the first ``pixels`` rows."""
        return next(i for i, top in enumerate(self.rows) if top + self.side > pixels)

    def band(self, row: int) -> tuple[int, int]:
        return self.rows[row], min(self.rows[row] + self.side, self.shape[0])


@lru_cache(maxsize=16)
def ramp(shape: tuple[int, int]) -> np.ndarray:
    """Blending weight [h w]: highest in the middle, above zero everywhere, so that windows fade into one another."""
    sides = [np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)).astype(np.float32) for n in shape]
    return sides[0][:, None] * sides[1][None, :]


def stretched(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A grid laid over an image, [n m ...], at its pixels [H W ...], nearest."""
    rows, columns = (np.arange(size) * count // size for size, count in zip(shape, values.shape[:2], strict=True))
    return values[rows[:, None], columns[None, :]]


class Blend:
    """Weighted mean of overlapping windows on a canvas [H W C] of ``rows`` rows, which moves down a scene.

    Rows above the canvas are finished. A canvas as large as the scene never has to move.

    Attributes:
      top: the scene's row that the canvas starts with.
    """

    def __init__(self, shape: tuple[int, int], channels: int, top: int = 0) -> None:
        self.top = top
        self.total = np.zeros((*shape, channels), np.float32)
        self.weight = np.zeros((*shape, 1), np.float32)

    def add(self, window: tuple[slice, slice], values: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Add ``values`` [h w C] of one window of the scene; where ``valid`` [h w] is False it says nothing."""
        weight = ramp(values.shape[:2])[..., None]
        if valid is not None:
            weight = weight * valid[..., None]
        rows = slice(window[0].start - self.top, window[0].stop - self.top)
        self.total[rows, window[1]] += values * weight
        self.weight[rows, window[1]] += weight

    def mean(self, rows: slice = slice(None), channels: slice = slice(None)) -> np.ndarray:
        """[H W C], of ``rows`` of the canvas or of ``channels`` alone if given; zero where no window said anything."""
        weight = self.weight[rows]
        return self.total[rows, :, channels] / np.where(weight > 0, weight, 1)

    def finish(self, top: int) -> np.ndarray:
        """The mean of the scene's rows above ``top``, [top - self.top W C]; the canvas moves down to ``top``."""
        count = min(top - self.top, len(self.total))
        done = self.mean(slice(count))
        for canvas in (self.total, self.weight):
            canvas[: len(canvas) - count] = canvas[count:]
            canvas[len(canvas) - count :] = 0
        self.top = top
        return done
