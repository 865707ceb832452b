"""The part of a scene that a request is about, and of large files nothing but that part read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import EarthMindConfig, SensorConfig
from earthmind_jax.data.dates import load_dates
from earthmind_jax.data.read import MOST_PIXELS, Images, is_raster, picture_header
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.marks import Marks, gather
from earthmind_jax.infer.overview import look_side, overview, tile_side
from earthmind_jax.infer.pointing import Zoom, closer_to, surroundings, within, zoomed
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.scene_read import SceneReader

WHOLE = 2**22  # pixels; of larger rasters only the part that is asked about is read


def most_whole(dates: int) -> int:
    """Pixels of an image up to which so many dates of it are read as a whole: those of all must fit into memory."""
    return min(WHOLE, MOST_PIXELS // max(dates, 1))


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
        height, width = (round(n * scale) for n, scale in zip(self.images.shape, self.images.scale, strict=True))
        return slice(row, row + height), slice(column, column + width)

    def placed(self, answer: Answer) -> Answer:
        """The answer with its masks at their place in the scene, and with what was pointed at."""
        masks = tuple(replace(mask, offset=self.offset) for mask in answer.masks)
        notes = answer.notes
        if masks and self.images.reduced:
            notes = (*notes, f"{at_one_look(self.images)} segment (segment_scene) draws at full resolution, to files.")
        return replace(answer, masks=masks, marks=self.marks, offset=self.offset, notes=notes)


def at_one_look(images: Images) -> str:
    """What masks are drawn from, to be followed by what sharpens them."""
    rows, columns = images.shape
    return f"Masks are drawn from {rows} x {columns} pixels at one look;"


def images_of(optical: Any, sar: Any, sensors: SensorConfig, told: Told = NOTHING) -> Images | None:
    """The images of a request, one source or several dates of each sensor, read, calibrated and aligned; None without
    any.

    Raises:
      UserError: a file cannot be used, or the images do not fit each other.
    """
    given = {name: source for name, source in (("optical", optical), ("sar", sar)) if source is not None}
    told.require_files(given)
    sources = {name: _several(source) for name, source in given.items()}
    for name, several in sources.items():
        if not several:
            raise UserError(f"The list of {name} images is empty; give at least one, or leave it out.")
    return load_dates(sources, sensors, told) if sources else None


def in_windows(images: Images, side: int) -> bool:
    """Whether masks of images are drawn in windows of ``side`` pixels (0: never); those of a reduced look are not."""
    return not images.reduced and 0 < side < max(images.shape)


def view_of(
    images: Images,
    side: int,
    region: np.ndarray | None = None,
    marks: Marks | None = None,
    window: Zoom | None = None,
    closer: bool = False,
    before: int = 0,
) -> View:
    """The part of a scene that is asked about, with what is pointed at on it.

    Args:
      side: of the model's own window, in pixels; 0 where it has none.
      region, marks, window: as of ``EarthMind.ask``.
      closer: of an image larger than the model's own window the one around what is pointed at, unless one is named.
      before: objects that were pointed at earlier.

    Raises:
      UserError: what is pointed at or named does not lie on the image, or no sensor has data there.
    """
    if region is not None and region.shape != images.shape:
        raise UserError(f"The region has {region.shape} pixels (rows, columns) but the image has {images.shape}.")
    placed, notes = gather(marks, region, images, before)
    if window is None and not (closer and placed and in_windows(images, side)):
        return seen(View(replace(images, notes=(*images.notes, *notes)), images, marks=placed))
    part, said = zoomed(window, images) if window is not None else closer_to(placed, side)
    crop = images.crop(part)
    crop = replace(crop, notes=(*images.notes, *said, *notes))
    return seen(View(crop, images, (part[0].start, part[1].start), within(placed, part)))


def part_of(
    optical: Any,
    sar: Any,
    config: EarthMindConfig,
    told: Told = NOTHING,
    *,
    region: np.ndarray | None = None,
    marks: Marks | None = None,
    window: Zoom | None = None,
    closer: bool = False,
    reduced: bool = False,
    light: bool = False,
) -> View | None:
    """:func:`view_of` files; None without any. Of rasters too large for memory nothing but the part is read, and where
    only something is pointed at, that is what the mask decoder looks at around it.

    Args:
      reduced: a raster, or a window of it, that does not fit into memory is seen reduced (:func:`overview`) instead of
        being refused; ``light``: and so is every whole that has more than 4 million pixels.

    Raises:
      UserError: as of :func:`view_of` and :func:`images_of`, or the part is too large.
    """
    pointed = not (region is None and marks is None and window is None)
    dates = max(len(_several(source)) for source in (optical, sar))
    above = None if pointed or light else MOST_PIXELS // max(dates, 1)
    reader = part_reader(optical, sar, config.sensors, told, above) if pointed or reduced else None
    if reader is None:
        images = images_of(optical, sar, config.sensors, told)
        if images is not None:
            return view_of(images, config.sensors.window, region, marks, window, closer)
        if pointed:
            raise UserError("There is no image to point at; give an optical image, a SAR image, or both.")
        return None
    if not pointed:
        return look(reader, config)
    scene = outline(reader)
    side = tile_side(config)
    if window is None and not closer:
        window = surroundings(gather(marks, region, scene)[0], side, scene.shape)
    view = view_of(scene, side, region, marks, window, closer)
    if view.images.shape[0] * view.images.shape[1] * dates <= MOST_PIXELS:
        images = reader.images(view.window)
    elif reduced and not view.marks:
        images = overview(reader, look_side(config), view.window)
    else:
        raise _too_large(view, reader, dates)
    return seen(replace(view, images=replace(images, notes=(*images.notes, *view.images.notes))))


def _too_large(view: View, reader: SceneReader, dates: int) -> UserError:
    rows, columns = view.images.shape
    how = (
        "point at things that lie closer together, or name a smaller part"
        if view.marks
        else "name a smaller part, or draw on all of it from file to file (segment without a part, segment_scene)"
    )
    each = f", {dates} dates together" if dates > 1 else ""
    return UserError(
        f"The part of {next(iter(reader.sources.values()))} that is asked about has {rows} x {columns} pixels, too "
        f"many to be held in memory at once (at most {MOST_PIXELS / 1e6:.0f} million{each}); {how}."
    )


def part_reader(
    optical: Any, sar: Any, sensors: SensorConfig, told: Told, above: int | None = None
) -> SceneReader | None:
    """What reads parts of a scene, on one date or several; None where its rasters have no more pixels than ``above``
    (4 million, or less where there are many dates), or it is not of rasters on a map.

    Raises:
      UserError: as of :class:`SceneReader`.
    """
    given = {name: _several(source) for name, source in (("optical", optical), ("sar", sar)) if source is not None}
    if not given or not all(given.values()):
        return None
    told.require_files(given)
    files = [(name, source) for name, sources in given.items() for source in sources]
    if any(not isinstance(s, str | Path) or not is_raster(s) for _, s in files):
        return None
    headers = [picture_header(str(source)) for _, source in files]
    most = most_whole(max(map(len, given.values()))) if above is None else above
    if headers[0].shape[0] * headers[0].shape[1] <= most:
        return None
    if not all(header.is_raster(name) for (name, _), header in zip(files, headers, strict=True)):
        return None
    if not all(header.placed or _controlled(s, told) for (_, s), header in zip(files, headers, strict=True)):
        return None
    if len(files) > len(given) and (told.scl or told.mtl):
        return None  # which is refused of several dates
    return SceneReader(given, sensors, told=told)


def _controlled(source: str | Path, told: Told) -> bool:
    """Whether control points or RPCs place an image, which is then read on a map grid of its own."""
    from earthmind_jax.geo.control import place_of
    from earthmind_jax.geo.raster import open_raster

    with open_raster(source) as dataset:
        return place_of(dataset, **told.ground()) is not None


def look(reader: SceneReader, config: EarthMindConfig) -> View:
    """The whole of a scene, seen with as many pixels as the model and a page need."""
    return seen(View(overview(reader, look_side(config)), outline(reader)))


def outline(reader: SceneReader) -> Images:
    """A scene without its pixels: size and place on the map."""
    nothing = np.broadcast_to(np.zeros(1, np.uint8), reader.shape)
    return Images(dict.fromkeys(reader.sources, (nothing, None)), reader.grid.transform, reader.grid.crs)


def seen(view: View) -> View:
    """The view; UserError where no sensor has data in it, or at something that is pointed at."""
    valid = view.images.valid_on_some_date
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


def _several(source: Any) -> list[Any]:
    return list(source) if isinstance(source, list | tuple) else [source]
