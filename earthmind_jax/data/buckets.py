"""The shapes that programs are compiled for: one table for padding, training and inference."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from earthmind_jax.config import DataConfig, require
from earthmind_jax.errors import UserError


@dataclass(frozen=True)
class Buckets:
    """The shapes that a program is compiled for: tile counts, text lengths in tokens, and dates of a stack of images.
    One table for training and inference; a batch takes the smallest entry that holds all of its samples."""

    tiles: tuple[int, ...] = (1, 2, 4, 7, 13)
    text: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    dates: tuple[int, ...] = (1, 2, 3, 5)

    def __post_init__(self) -> None:
        for name in ("tiles", "text", "dates"):
            sizes = getattr(self, name)
            increasing = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
            require(bool(sizes) and increasing, f"Buckets of {name} must be increasing positive numbers, not {sizes}.")

    def fit_tiles(self, count: int) -> int:
        """The smallest bucket of at least ``count`` tiles."""
        for size in self.tiles:
            if size >= count:
                return size
        raise UserError(
            f"An image needs {count} tiles but the largest bucket holds {self.tiles[-1]}: lower sensors.max_tiles, use "
            "fewer band triplets, or add a larger bucket."
        )

    def fit_text(self, length: int) -> int:
        """The smallest bucket of at least ``length`` tokens."""
        for size in self.text:
            if size >= length:
                return size
        raise UserError(f"A conversation of {length} tokens is longer than the largest bucket, {self.text[-1]}.")

    def fit_dates(self, count: int) -> int:
        """The smallest bucket of at least ``count`` dates."""
        for size in self.dates:
            if size >= count:
                return size
        raise UserError(f"A sample has {count} dates but the largest bucket holds {self.dates[-1]}: add a larger one.")

    def fit(self, shape: Shape) -> Shape:
        """The shape that a batch of at most ``shape`` is padded to."""
        return Shape(self.fit_tiles(max(1, shape.tiles)), self.fit_text(shape.text), self.fit_dates(shape.dates))

    def only(self, shape: Shape) -> Buckets:
        """The table of one shape."""
        return Buckets(tiles=(shape.tiles,), text=(shape.text,), dates=(shape.dates,))

    @property
    def count(self) -> int:
        """How many shapes there are, and with them programs at most."""
        return len(self.tiles) * len(self.text) * len(self.dates)


@dataclass(frozen=True, order=True)
class Shape:
    """What a sample or a batch takes: dates of its images (1 where there is none), tiles, tokens."""

    tiles: int
    text: int
    dates: int = 1


DEFAULT = Buckets()

TRAINING = Buckets(
    tiles=(1, 3, 5, 7, 10, 13),
    text=(
        256, 320, 384, 448, 512, 640, 768, 896, 1088, 1280, 1536, 1792, 2112, 2496, 2944, 3456, 4096, 4864, 5760, 6784,
        8192,
    ),
    dates=(1, 5),
)  # fmt: skip
"""For training on samples of all sizes: steps of a fifth, about twenty programs for a mixture of 1 to 13 tiles."""

TRAINING_WINDOW = 32
"""Batches that are sorted together there."""


def bucketed(data: DataConfig) -> DataConfig:
    """``data`` with the shapes of :data:`TRAINING` up to its ``text_length``, and samples sorted by size."""
    text = (*(size for size in TRAINING.text if size < data.text_length), data.text_length)
    return dataclasses.replace(data, text_buckets=text, tile_buckets=TRAINING.tiles, window=TRAINING_WINDOW)
