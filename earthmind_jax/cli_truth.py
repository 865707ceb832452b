"""The option --truth of ``earthmind segment``: masks beside a raster of labels."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.infer.result import Mask

SOME = np.finfo(float).tiny  # of the image has to have labels


@dataclass(frozen=True)
class Truth:
    """A raster of labels, and the value that each mask has in it."""

    path: Path
    values: tuple[int, ...]

    @classmethod
    def of(cls, path: Path | None, values: Sequence[int], names: Sequence[str]) -> Truth | None:
        """What the options say, checked as far as they and the header tell; ``names`` of the masks, none where they are
        not known yet.

        Raises:
          UserError: the file is no raster of one band, or values and masks are not as many.
        """
        if path is None:
            if values:
                raise UserError("--truth-value tells what to look for in --truth; name that raster, too.")
            return None
        from earthmind_jax.geo.raster import open_raster

        with open_raster(path, True) as dataset:
            if dataset.count != 1:
                raise UserError(f"{path} has {dataset.count} bands; --truth is a raster of labels with one.")
        truth = cls(path, tuple(values) or (1,))
        if names:
            truth.require(names)
        return truth

    def require(self, names: Sequence[str]) -> None:
        """UserError unless there is one value for each mask."""
        if len(self.values) != len(names):
            raise UserError(
                f"--truth-value has {len(self.values)} value(s) for {len(names)} masks ({', '.join(names)}); give the "
                "value of each in --truth, in this order."
            )

    def compare(self, masks: Sequence[Mask], scene: tuple[int, int] | None) -> list[float]:
        """The foreground IoU of each mask over the pixels that it and the labels know; the masks of all dates of one
        target stand side by side and have one value.

        Args:
          scene: rows and columns of the whole image, where it has no place on the map.

        Raises:
          UserError: as of :meth:`require`, or the labels do not lie on the image.
        """
        dates = len({mask.date for mask in masks})
        self.require([mask.name or f"mask {i}" for i, mask in enumerate(masks[::dates], 1)])
        return self.compare_each(masks, np.repeat(self.values, dates).tolist(), scene)

    def compare_each(
        self, masks: Iterable[Mask], values: Sequence[int], scene: tuple[int, int] | None = None
    ) -> list[float]:
        """:meth:`compare` of masks with a value each, which need not be in memory together."""
        from earthmind_jax.evaluate.metrics import foreground_iou

        found: list[float] = []
        for mask in masks:
            if not found:  # all masks of an answer lie on the same pixels
                labels, known = self._on(mask, scene)
                for value in set(values) - set(np.unique(labels[known]).tolist()):
                    print(f"note: no pixel of {self.path} has the value {value} here", file=sys.stderr)
            found.append(foreground_iou(mask.array, labels == values[len(found)], mask.valid & known))
        return found

    def _on(self, mask: Mask, scene: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Labels on the pixels of a mask, and where there are any."""
        from earthmind_jax.geo.align import align
        from earthmind_jax.geo.grid import Grid
        from earthmind_jax.geo.raster import open_raster, read_raster

        with open_raster(self.path, True) as dataset:
            placed = dataset.crs is not None
        if placed and mask.crs is not None:
            grid = Grid(mask.transform, mask.crs, *mask.array.shape)
            found = align(self.path, grid, "label", min_overlap=SOME).raster
            return found.data[0], found.valid
        found = read_raster(self.path, labels=True, native=True)
        shape = scene if scene is not None else mask.array.shape
        if found.valid.shape != shape:
            raise UserError(
                f"{self.path} has {found.valid.shape} pixels (rows, columns) but the image has {shape}, and not both "
                "say where on the map they lie."
            )
        (row, column), (height, width) = mask.offset, mask.array.shape
        part = slice(row, row + height), slice(column, column + width)
        return found.data[0][part], found.valid[part]


def shown(names: Sequence[str], scores: Sequence[float]) -> float | dict[str, float]:
    """Scores as they are printed: the number of a single mask, else each by its name."""
    rounded = [round(score, 4) for score in scores]
    return rounded[0] if len(rounded) == 1 else dict(zip(names, rounded, strict=True))
