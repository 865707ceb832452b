"""The part of a scene that a request is about, and of large files nothing but that part read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.dates import load_dates
from earthmind_jax.data.read import RASTERS, Images, picture_header
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.marks import Marks, gather
from earthmind_jax.infer.pointing import Zoom, closer_to, within, zoomed
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.scene_read import SceneReader

WHOLE = 2**22  # pixels; of larger rasters only the part that is asked about is read


@dataclass(frozen=True, eq=False)
class View:
    """The part of a scene that is asked about.

    Attributes:
      images: of the part.
      scene: the whole; of a large file its outline alone (:func:`outline`).
      offset: (row, column) where the part begins.
      marks: what is pointed at on it.
    """

    images: Images
    scene: Images
    offset: tuple[int, int] = (0, 0)
    marks: tuple[Mark, ...] = ()

    @property
    def window(self) -> tuple[slice, slice]:
        """Where it lies in the scene."""
        row, column = self.offset
        height, width = self.images.shape
        return slice(row, row + height), slice(column, column + width)

    def placed(self, answer: Answer) -> Answer:
        """The answer with its masks at their place in the scene, and with what was pointed at."""
        masks = tuple(replace(mask, offset=self.offset) for mask in answer.masks)
        return replace(answer, masks=masks, marks=self.marks, offset=self.offset)


def images_of(optical: Any, sar: Any, sensors: SensorConfig, told: Told = NOTHING) -> Images | None:
    """The images of a request, one source or several dates of each sensor, read, calibrated and aligned; None without
    any.

    Raises:
      UserError: a file cannot be used, or the images do not fit each other.
    """
    given = {name: source for name, source in (("optical", optical), ("sar", sar)) if source is not None}
    told.require_files(given)
    sources = {name: list(s) if isinstance(s, list | tuple) else [s] for name, s in given.items()}
    for name, several in sources.items():
        if not several:
            raise UserError(f"The list of {name} images is empty; give at least one, or leave it out.")
    return load_dates(sources, sensors, told) if sources else None


def in_windows(images: Images, sensors: SensorConfig) -> bool:
    """Whether masks of images are drawn window by window."""
    return sensors.window > 0 and max(images.shape) > sensors.window


def view_of(
    images: Images,
    sensors: SensorConfig,
    region: np.ndarray | None = None,
    marks: Marks | None = None,
    window: Zoom | None = None,
    closer: bool = False,
    before: int = 0,
) -> View:
    """The part of a scene that is asked about, with what is pointed at on it.

    Args:
      region, marks, window: as of ``EarthMind.ask``.
      closer: of an image larger than the model's own window the one around what is pointed at, unless one is named.
      before: objects that were pointed at earlier.

    Raises:
      UserError: what is pointed at or named does not lie on the image, or no sensor has data there.
    """
    if region is not None and region.shape != images.shape:
        raise UserError(f"The region has {region.shape} pixels (rows, columns) but the image has {images.shape}.")
    placed, notes = gather(marks, region, images, before)
    if window is None and not (closer and placed and in_windows(images, sensors)):
        return seen(View(replace(images, notes=(*images.notes, *notes)), images, marks=placed))
    part, said = zoomed(window, images) if window is not None else closer_to(placed, sensors.window)
    crop = images.crop(part)
    crop = replace(crop, notes=(*images.notes, *said, *notes))
    return seen(View(crop, images, (part[0].start, part[1].start), within(placed, part)))


def part_reader(optical: Any, sar: Any, sensors: SensorConfig, told: Told) -> SceneReader | None:
    """What reads parts of a scene of one date; None where the files are small, or no rasters on a map.

    Raises:
      UserError: as of :class:`SceneReader`.
    """
    given = {name: _single(source) for name, source in (("optical", optical), ("sar", sar)) if source is not None}
    files = {name: Path(s) for name, s in given.items() if isinstance(s, str | Path)}
    if not files or len(files) < len(given) or any(f.suffix.lower() not in RASTERS for f in files.values()):
        return None
    headers = {name: picture_header(str(path)) for name, path in files.items()}
    reference = next(iter(headers.values()))
    if np.prod(reference.shape) <= WHOLE or not reference.placed:
        return None
    if not all(header.is_raster(name) for name, header in headers.items()):
        return None
    return SceneReader(files, sensors, told=told)


def outline(reader: SceneReader) -> Images:
    """A scene without its pixels: size and place on the map."""
    nothing = np.broadcast_to(np.zeros(1, np.uint8), reader.shape)
    return Images(dict.fromkeys(reader.sources, (nothing, None)), reader.grid.transform, reader.grid.crs)


def read_part(reader: SceneReader, view: View) -> View:
    """A view of an outline with its pixels."""
    images = reader.images(view.window)
    return seen(replace(view, images=replace(images, notes=(*images.notes, *view.images.notes))))


def seen(view: View) -> View:
    """The view; UserError where no sensor has data in it, or at something that is pointed at."""
    dates = [images for images in (view.images, *view.images.later) if images.pictures]
    valid = np.logical_or.reduce([images.valid for images in dates])
    if not valid.any():
        raise UserError("No sensor has data in the part that is asked about: all of it is nodata; ask about another.")
    for mark in view.marks:
        if not _sees(valid, mark):
            raise UserError(f"'{mark.name}' lies where no sensor has data; point at something else.")
    return view


def _sees(valid: np.ndarray, mark: Mark) -> bool:
    """Whether a mark touches a valid pixel [H W]."""
    points, labels = mark.clicks
    columns, rows = np.minimum(points[labels == 1].astype(int), np.array(valid.shape[::-1]) - 1).T
    found = bool(valid[rows, columns].any())
    if mark.box is not None:
        x0, y0 = np.floor(mark.box[:2]).astype(int)
        x1, y1 = np.ceil(mark.box[2:]).astype(int)
        found = found or bool(valid[y0:y1, x0:x1].any())
    drawn = None if found else mark.drawn()
    return found or bool(drawn is not None and (drawn & valid).any())


def _single(source: Any) -> Any:
    several = isinstance(source, Sequence) and not isinstance(source, str)
    return source[0] if several and len(source) == 1 else source
