"""The images of one scene in memory: each sensor's picture with its validity, and the ground that they lie over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from earthmind_jax.data.records import Picture
from earthmind_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one scene, over the same ground.

    Attributes:
      pictures: sensor name -> the picture and its validity (None: valid everywhere).
      transform, crs: of the reference grid (the optical image, or the SAR image where it stands alone); ``None`` for
        plain pictures.
      notes: what was found out or decided while reading.
      sources: sensor name -> the file it was read from.
      date: what this date is called; empty where there is only one.
      later: the images of further dates, on the same grid; a sensor with a single image has none there.
      scale: pixels of the file in one of these, down and across; more than 1 where a scene is seen reduced.
    """

    pictures: dict[str, tuple[Picture, np.ndarray | None]]
    transform: Any = None
    crs: Any = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    later: tuple[Images, ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def reduced(self) -> bool:
        """Whether these pixels are means of several of the file's."""
        return self.scale != (1.0, 1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the reference image."""
        return picture_shape(self._reference[0])

    @property
    def valid(self) -> np.ndarray:
        """Pixels of the reference grid that at least one sensor sees, bool [H W]."""
        seen = np.zeros(self.shape, bool)
        for _, valid in self.pictures.values():
            if valid is None or valid.shape != self.shape:  # a picture of another size covers the same ground
                return np.ones(self.shape, bool)
            seen |= valid
        return seen

    @property
    def valid_on_some_date(self) -> np.ndarray:
        """Pixels of the reference grid that at least one sensor sees on one of the dates, bool [H W]."""
        return np.logical_or.reduce([images.valid for images in (self, *self.later) if images.pictures])

    def crop(self, window: tuple[slice, slice]) -> Images:
        """The part of a window of the reference grid; the transform moves along."""
        pictures = {}
        for name, (picture, valid) in self.pictures.items():
            part = tuple(
                slice(s.start * new // old, max(s.stop * new // old, s.start * new // old + 1))
                for s, old, new in zip(window, self.shape, picture_shape(picture), strict=True)
            )
            cut = picture[part] if isinstance(picture, np.ndarray) else {k: v[part] for k, v in picture.items()}
            pictures[name] = cut, None if valid is None else valid[part]
        rows, columns = window
        transform = self.transform
        if transform is not None:
            transform = transform @ type(transform).translation(columns.start, rows.start)
        later = tuple(images.crop(window) for images in self.later)
        return replace(self, pictures=pictures, transform=transform, later=later)

    def only(self, sensor: str) -> Images:
        """One sensor's images; a picture of another size than the reference has no place on the map."""
        later = tuple(i.only(sensor) for i in self.later if sensor in i.pictures)
        pictures = {sensor: self.pictures[sensor]}
        placed = picture_shape(pictures[sensor][0]) == self.shape
        transform, crs = (self.transform, self.crs) if placed else (None, None)
        sources = {name: path for name, path in self.sources.items() if name == sensor}
        return Images(pictures, transform, crs, self.notes, sources, self.date, later, self.scale)

    @property
    def _reference(self) -> tuple[Picture, np.ndarray | None]:
        return self.pictures["optical" if "optical" in self.pictures else "sar"]


def picture_shape(picture: Picture) -> tuple[int, int]:
    """Rows and columns of a picture or of its bands."""
    array = picture if isinstance(picture, np.ndarray) else next(iter(picture.values()), np.zeros(()))
    if array.ndim < 2:
        raise UserError(f"An image needs rows and columns, not the shape {array.shape}.")
    return array.shape[0], array.shape[1]
