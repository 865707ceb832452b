"""A scene, or a part of it, seen with fewer pixels than its files have: each is the mean of those that it covers.

What does not fit into memory is looked at as a whole in this way, read part by part. The model resizes what it sees to
its own size in any case; this is larger than that, so that little is lost on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.read import Images

if TYPE_CHECKING:
    from earthmind_jax.data.records import Picture
    from earthmind_jax.infer.scene_read import SceneReader

PICTURED = 1024  # pixels of the longer side, at least: what a page or a map of the whole is worth looking at with
HALF = 0.5  # share of valid pixels from which on their mean is valid

Window = tuple[slice, slice]


def tile_side(config: EarthMindConfig) -> int:
    """Pixels of the longer side that the language model can see of an image at once, where it has no window of its
    own."""
    sensors = config.sensors
    return sensors.window or config.vision.image_size * int(np.ceil(sensors.max_tiles**0.5))


def look_side(config: EarthMindConfig) -> int:
    """Pixels of the longer side of an overview, at most: no part of the model sees more."""
    grounding = 0 if config.grounding is None else config.grounding.image_size
    return max(PICTURED, tile_side(config), grounding)


def overview(reader: SceneReader, side: int, window: Window | None = None) -> Images:
    """The scene, or a window of it, with at most ``side`` pixels along its longer side; on all dates.

    Values are those of the file's pixels in the units of the model's bands, averaged over the valid ones (backscatter
    as linear power, before it is dB again); a pixel is valid where at least half of those are. The georeference is that
    of the larger pixels, which cover exactly the same ground.
    """
    rows, columns = window or (slice(0, reader.shape[0]), slice(0, reader.shape[1]))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    times = max(1.0, max(height, width) / side)
    shape = max(1, round(height / times)), max(1, round(width / times))
    scale = height / shape[0], width / shape[1]
    means: dict[tuple[int, str], _Mean] = {}
    last: Images | None = None
    for strip in reader.strips:
        for part in strip:
            top, bottom = max(rows.start, part.row_off), min(rows.stop, part.row_off + part.height)
            left, right = max(columns.start, part.col_off), min(columns.stop, part.col_off + part.width)
            if top >= bottom or left >= right:
                continue
            last = reader.images((slice(top, bottom), slice(left, right)))
            place = (
                _cells(top - rows.start, bottom - rows.start, scale[0]),
                _cells(left - columns.start, right - columns.start, scale[1]),
            )
            for date, images in enumerate((last, *last.later)):
                for name, (picture, valid) in images.pictures.items():
                    means.setdefault((date, name), _Mean(shape, name == "sar")).add(picture, valid, place)
    assert last is not None
    transform = reader.grid.transform @ Affine.translation(columns.start, rows.start) @ Affine.scale(*scale[::-1])

    def seen(date: int, images: Images) -> Images:
        pictures = {name: means[date, name].made(picture) for name, (picture, _) in images.pictures.items()}
        later = tuple(seen(i, each) for i, each in enumerate(images.later, 1))
        place = {"transform": transform, "crs": reader.grid.crs, "scale": scale}
        return replace(images, pictures=pictures, later=later, **place)

    made = seen(0, last)
    return replace(made, notes=(*(reader.notes or ()), sentence(made)))


def sentence(images: Images) -> str:
    """With what resolution a scene is seen."""
    height, width = images.shape
    down, across = images.scale
    return (
        f"Seen with {height} x {width} pixels (rows, columns), each the mean of about {down:.1f} x {across:.1f} of the "
        f"{round(height * down)} x {round(width * across)} that were read"
    )


def _cells(first: int, last: int, scale: float) -> np.ndarray:
    """For each of the rows or columns [first, last) the larger pixel that its centre lies in."""
    return ((np.arange(first, last) + 0.5) / scale).astype(int)


@dataclass
class _Mean:
    """The mean of a picture's values over larger pixels, gathered part by part.

    Attributes:
      shape: rows and columns of the larger pixels.
      radar: bands are backscatter in dB.
      total: float32 [C h w]; ``count`` and ``area`` [h w], of valid pixels and of all.
    """

    shape: tuple[int, int]
    radar: bool
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    count: np.ndarray = field(default_factory=lambda: np.zeros(0))
    area: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, picture: Picture, valid: np.ndarray | None, cells: tuple[np.ndarray, np.ndarray]) -> None:
        """Add pixels that lie in the ``cells`` (row, column)."""
        finished = isinstance(picture, np.ndarray)
        bands = np.moveaxis(picture, -1, 0) if finished else list(picture.values())
        known = np.ones(bands[0].shape, bool) if valid is None else valid
        if self.radar and not finished:
            bands = [10 ** (np.where(known, band, np.float32(0)) / 10) for band in bands]
        if not self.total.size:
            self.total = np.zeros((len(bands), *self.shape), np.float32)
            self.count, self.area = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        (top, bottom), (left, right) = ((axis[0], axis[-1] + 1) for axis in cells)
        place = np.s_[top:bottom, left:right]
        starts = [np.flatnonzero(np.diff(axis, prepend=-1)) for axis in cells]

        def summed(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(np.add.reduceat(values, starts[1], 1), starts[0], 0)

        for total, band in zip(self.total, bands, strict=True):
            total[place] += summed(np.where(known, band, np.float32(0)).astype(np.float32, copy=False))
        self.count[place] += summed(known.astype(np.float32))
        self.area[place] += np.outer(*(np.diff([*first, len(axis)]) for first, axis in zip(starts, cells, strict=True)))

    def made(self, like: Picture) -> tuple[Picture, np.ndarray]:
        """The means in the form of a picture that was added, and where they are valid."""
        values = self.total / np.maximum(self.count, 1)
        valid = (self.count >= HALF * self.area) & (self.count > 0)
        if isinstance(like, np.ndarray):
            return np.rint(np.moveaxis(values, 0, -1)).astype(like.dtype), valid
        if self.radar:
            values = 10 * np.log10(np.where(valid, values, 1))
        return dict(zip(like, values, strict=True)), valid
