"""A large scene, of one date or several, of which parts are read: any window, or as 8-bit frames strip by strip, the
next strip while one is in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rasterio.windows import Window

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.dates import count_dates, load_dates
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.layout import View
from earthmind_jax.data.read import RASTERS, Images, is_raster, picture_header
from earthmind_jax.data.records import SENSORS
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import MIN_OVERLAP
from earthmind_jax.geo.contents import Wanted
from earthmind_jax.geo.control import Control, check_ground, map_grid, place_of
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.raster import Raster, open_raster, read_raster, require_georeference
from earthmind_jax.geo.scene import has_data, sampled_overlap, strips
from earthmind_jax.geo.told import NOTHING, Told

Files = str | Path | Sequence[str | Path]
"""The raster file of a sensor, or one for each date."""

Frames = tuple[np.ndarray, np.ndarray]
"""uint8 [F h w 3] of one sensor, and bool [h w], where it has data."""


DatedFrames = dict[str, list[Frames]]
"""Of each sensor the frames of every date, or of the single one that it has."""


@dataclass(frozen=True)
class Rows:
    """Whole rows of a scene."""

    top: int
    frames: DatedFrames

    @property
    def bottom(self) -> int:
        return self.top + len(next(iter(self.frames.values()))[0][1])

    @property
    def valid(self) -> np.ndarray:
        """bool [D h W], where any sensor has data on each date; the single image of a sensor is one of the first."""
        count = max(map(len, self.frames.values()))
        seen = [[dates[i][1] for dates in self.frames.values() if i < len(dates)] for i in range(count)]
        return np.stack([np.logical_or.reduce(valid) for valid in seen])

    def part(self, top: int, bottom: int) -> Rows:
        return Rows(top, self.window(slice(top - self.top, bottom - self.top), slice(None)))

    def window(self, rows: slice, columns: slice) -> DatedFrames:
        """The frames of a part of these rows."""
        return {
            name: [(frames[:, rows, columns], valid[rows, columns]) for frames, valid in dates]
            for name, dates in self.frames.items()
        }


class SceneReader:
    """Reads a scene from top to bottom.

    Attributes:
      sources: sensor -> raster file, of several dates the first.
      dates: sensor -> the raster files of all dates.
      names: what each date is called; a single one has an empty name.
      grid: the scene's pixels on the map: those of the optical image, or of the SAR image where it stands alone.
      views: sensor -> the size of its images, the dates, and three-channel frames that each makes.
      overlap: the part of the optical image that the SAR image covers, by a decimated look (1 with one sensor).
      strips: the parts in which to read it, from top to bottom, each as wide as the scene.
      notes: what was found out or decided while reading, the same for all parts read so far.
      seconds: time spent on reading.
    """

    def __init__(self, sources: Mapping[str, Files], sensors: SensorConfig, **options: Any) -> None:
        """Looks at the headers, and at a decimated view of the files.

        Args:
          sources: of each sensor one file, or one for each date; all dates are brought onto the grid of the first.
          options: what the caller knows about the files, as of :func:`earthmind_jax.data.read.load_images`.

        Raises:
          UserError: a file that cannot be used, no georeference, no data, or too little ground in common.
        """
        self.dates = {name: _paths(sources[name]) for name in SENSORS if sources.get(name) is not None}
        if not self.dates:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        for name, paths in self.dates.items():
            if not paths:
                raise UserError(f"The list of {name} images is empty; give at least one, or leave it out.")
            for path in paths:
                _require_raster(path, name)
        count = count_dates(self.dates)
        self.sources = {name: paths[0] for name, paths in self.dates.items()}
        self.sensors, self.options = sensors, options
        self.told: Told = options.get("told", NOTHING)
        check_ground([path for paths in self.dates.values() for path in paths], **self.told.ground())
        first, places = {}, {}
        for name, path in self.sources.items():
            first[name], places[name] = self._glance(path, name)
        self.reference = "optical" if "optical" in first else "sar"
        place = places[self.reference]
        controlled = isinstance(place, Control)
        # What only control places is brought onto a map grid of its own, of which every part is then a window.
        self.grid = map_grid(place) if controlled else place
        self.overlap = (
            sampled_overlap(first["optical"], first["sar"], self.grid, places["optical"], places["sar"])
            if len(first) == 2
            else 1.0
        )
        _require_overlap(self.overlap, self.sources.get("sar"), self.sources.get("optical"))
        here = self.reference
        for name, paths in self.dates.items():
            for path in paths[1:]:
                later, place = self._glance(path, name)
                share = sampled_overlap(first[here], later, self.grid, places[here], place)
                _require_overlap(share, path, self.sources[here])
        self.notes: tuple[str, ...] | None = None
        self.seconds = 0.0
        self.strips = strips(self.sources[self.reference], self.grid if controlled else None, count)
        self._tops = [strip[0].row_off for strip in self.strips]
        corner = self._images(Window(0, 0, 1, 1))
        self.names = tuple(images.date for images in (corner, *corner.later))
        files = {name: ", ".join(map(str, paths)) for name, paths in self.dates.items()}
        self.views = views_of(framed(corner, sensors), self.shape, files)
        self.notes = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the scene."""
        return self.grid.shape

    @property
    def inputs(self) -> dict[str, str]:
        """The files by sensor, of several dates by sensor and date."""
        if len(self.names) == 1:
            return {name: str(path) for name, path in self.sources.items()}
        files = {name: zip(self.names, paths, strict=False) for name, paths in self.dates.items()}
        return {f"{name} {date}": str(path) for name, dated in files.items() for date, path in dated}

    @property
    def pictures(self) -> tuple[str, ...]:
        """What each image is called in a panel: its sensor, of later dates with the date."""
        return tuple(self.picture(name, i) for name, paths in self.dates.items() for i in range(len(paths)))

    def picture(self, sensor: str, date: int) -> str:
        return f"{sensor} {self.names[date]}" if date else sensor

    def rows(self, bands: Iterator[tuple[int, int]]) -> Iterator[Rows]:
        """The rows [top, bottom) of each of ``bands``, which move down the scene and may overlap."""
        with ThreadPoolExecutor(1, "read") as pool:
            held: list[Rows] = []
            ahead: Future[Rows] | None = None
            number = -1
            try:
                for top, bottom in bands:
                    held = [strip for strip in held if strip.bottom > top]
                    while not held or held[-1].bottom < bottom:
                        if number < 0:  # the first strip that is needed
                            number = max(i for i, first in enumerate(self._tops) if first <= top)
                            ahead = pool.submit(self._read, number)
                        assert ahead is not None
                        held.append(ahead.result())
                        number += 1
                        if number < len(self.strips):
                            ahead = pool.submit(self._read, number)
                    yield _join([s.part(max(top, s.top), min(bottom, s.bottom)) for s in held if s.top < bottom])
            finally:
                if ahead is not None:
                    ahead.cancel()

    def images(self, window: tuple[slice, slice]) -> Images:
        """A part of the scene with the values that it has in the whole."""
        rows, columns = window
        return self._images(Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))

    def _read(self, number: int) -> Rows:
        """One strip of the scene."""
        started = perf_counter()
        parts = [framed(self._images(window), self.sensors) for window in self.strips[number]]
        self.seconds += perf_counter() - started
        return Rows(self._tops[number], _joined(parts, 1))

    def _glance(self, path: Path, name: str) -> tuple[Raster, Grid | Control]:
        """A file by its first pixel, and where it lies; UserError where it has no place on the map, or no data."""
        known = self.told.image_options(name)
        wanted = Wanted(names=known["names"], kind=name)
        raster = read_raster(path, wanted, Window(0, 0, 1, 1), sensor=known["sensor"])
        with open_raster(path) as dataset:
            place = place_of(dataset, **self.told.ground()) or raster.grid
        if isinstance(place, Grid):
            require_georeference(raster, "a map, unlike a plain picture (--picture),")
        if not has_data(raster):
            raise UserError(f"{path} has no valid pixel: all are nodata, masked or zero.")
        return raster, place

    def _images(self, window: Window) -> Images:
        images = load_dates(
            self.dates, self.sensors, window=window, scene=self.grid, min_overlap=0.0, report_shift=False,
            **self.options,
        )  # fmt: skip
        # Counts of pixels differ from part to part; what was decided about the files does not.
        self.notes = images.notes if self.notes is None else tuple(n for n in self.notes if n in images.notes)
        return images


def framed(images: Images, sensors: SensorConfig) -> DatedFrames:
    """What the model sees of each sensor on each of its dates."""
    dates = (images, *images.later)
    return {
        name: [sensor_frames(*each.pictures[name], name, sensors) for each in dates if name in each.pictures]
        for name in SENSORS
        if name in images.pictures
    }


def views_of(frames: DatedFrames, shape: tuple[int, int], files: Mapping[str, str]) -> dict[str, View]:
    """What the images of each sensor are in a scene of ``shape``; UserError, which names its ``files``, where they
    differ from date to date."""
    views = {}
    for name, dates in frames.items():
        counts = {len(seen) for seen, _ in dates}
        if len(counts) > 1:
            given = files.get(name, "in memory")
            raise UserError(
                f"Some of the {name} images ({given}) are finished pictures and some have bands: give dates of one "
                "kind."
            )
        views[name] = View(shape, counts.pop(), len(dates))
    return views


def _paths(given: Files) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _require_raster(path: Path, sensor: str) -> None:
    if not is_raster(path):
        picture_header(str(path))  # a file that cannot be read says so
        raise UserError(
            f"{path} is no GeoTIFF; several targets, windows and large scenes are read from rasters "
            f"({', '.join(RASTERS)}), or ask for plain pictures (--picture)."
        )
    if sensor == "sar" and not picture_header(str(path)).is_raster(sensor):
        raise UserError(f"{path} is an 8-bit rendering; give the SAR image of a large scene as backscatter.")


def _require_overlap(share: float, path: Path | None, reference: Path | None) -> None:
    if share < MIN_OVERLAP:
        raise UserError(
            f"{path} covers {share:.1%} of {reference} and {MIN_OVERLAP:.0%} is needed; give images of the same ground."
        )


def _join(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else Rows(parts[0].top, _joined([part.frames for part in parts], 0))


def _joined(parts: list[DatedFrames], axis: int) -> DatedFrames:
    """Parts that lie below (``axis`` 0) or beside (1) one another as one."""
    return {
        name: [
            (np.concatenate([f for f, _ in date], axis + 1), np.concatenate([valid for _, valid in date], axis))
            for date in zip(*(part[name] for part in parts), strict=True)
        ]
        for name in parts[0]
    }
