"""What a conversation looks at: the whole image and windows of it, and regions of one of these seen in another."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.encode import Example
from earthmind_jax.data.read import Images
from earthmind_jax.geo.place import Window
from earthmind_jax.infer import view
from earthmind_jax.infer.compiled import Pyramids
from earthmind_jax.infer.kept import Kept
from earthmind_jax.infer.overview import look_side, overview
from earthmind_jax.types import Batch, Fused

if TYPE_CHECKING:
    from earthmind_jax.infer.scene_read import SceneReader

VIEWS = 8  # whose features are kept; those not looked at for longest are forgotten first


@dataclass(eq=False)
class View:
    """The image or a window of it, and what is kept of it.

    Attributes:
      window: None for the whole image.
      batch: its arrays, without the pixels.
      fused: visual tokens, guided by the first question asked about the view.
      pyramids: the mask decoder's features; None where it has none, or of several dates.
      kept: keys and values of the conversation so far.
    """

    images: Images
    window: Window | None
    batch: Batch | None = None
    example: Example | None = None
    fused: Fused | None = None
    pyramids: Pyramids | None = None
    kept: Kept | None = None


class Views:
    """The views of one image, made when they are first looked at.

    Args:
      images: the whole; of a scene that ``reader`` reads in parts its outline; None without an image.
    """

    def __init__(self, config: EarthMindConfig, images: Images | None, reader: SceneReader | None) -> None:
        self.config, self.images, self.reader = config, images, reader
        self._kept: OrderedDict[Window | None, View] = OrderedDict()
        self._overview: Images | None = None  # reading all of a large scene takes its time

    def of(self, window: Window | None) -> View:
        """The view of a window; None: of the whole."""
        found = self._kept.pop(window, None) or View(self._images(window), window)
        self._kept[window] = found
        while len(self._kept) > VIEWS:
            self._kept.popitem(last=False)
        return found

    def forget(self, window: Window | None) -> None:
        """Let the keys and values of a view go."""
        if window in self._kept:
            self._kept[window].kept = None

    def extent(self, window: Window | None) -> Window:
        """Where a view lies in the image."""
        assert self.images is not None
        return (0, 0, *self.images.shape) if window is None else window

    def reduced(self, window: Window | None) -> bool:
        """Whether a view has fewer pixels than the file."""
        if self.reader is None:
            return False
        _, _, height, width = self.extent(window)
        return height * width > view.WHOLE

    def _images(self, window: Window | None) -> Images:
        if self.images is None:
            return Images({})
        part = slices(self.extent(window))
        if self.reader is None:
            return self.images if window is None else self.images.crop(part)
        if not self.reduced(window):
            return self.reader.images(part)
        if window is not None:
            return overview(self.reader, look_side(self.config), part)
        if self._overview is None:
            self._overview = overview(self.reader, look_side(self.config))
        return self._overview


def slices(window: Window) -> tuple[slice, slice]:
    """A window as rows and columns."""
    row, column, height, width = window
    return slice(row, row + height), slice(column, column + width)


def seen_from(region: np.ndarray, asked: Window, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """A region [h w] laid over the window in which it was asked about, on a grid of ``shape`` laid over another: the
    pixels whose centre lies in it, and, where they are larger than its own, those that it touches."""
    shown = np.zeros(shape, bool)
    back, inside, forth = [], [], []
    for axis in (0, 1):
        (start, size), (begin, length) = ((w[axis], w[axis + 2]) for w in (asked, window))
        there = (begin + (np.arange(shape[axis]) + 0.5) * length / shape[axis] - start) * region.shape[axis] / size
        inside.append((there >= 0) & (there < region.shape[axis]))
        back.append(there[inside[-1]].astype(int))
        centres = start + (np.arange(region.shape[axis]) + 0.5) * size / region.shape[axis]
        forth.append(np.floor((centres - begin) * shape[axis] / length).astype(int))
    shown[np.ix_(*inside)] = region[np.ix_(*back)]
    rows, columns = (positions[index] for positions, index in zip(forth, np.nonzero(region), strict=True))
    on = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    shown[rows[on], columns[on]] = True
    return shown
