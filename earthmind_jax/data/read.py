"""A record's files to arrays: calibrated, aligned, decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.masks import decode
from earthmind_jax.data.records import SENSORS, Dated, Picture, Record, RecordTurn, Sample, Turn
from earthmind_jax.errors import UserError

RASTERS = (".tif", ".tiff", ".vrt", ".jp2")


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one scene, over the same ground.

    Attributes:
      pictures: sensor name -> the picture and its validity (None: valid everywhere).
      transform, crs: of the reference grid (the optical image, or the SAR image where it stands alone); ``None`` for
        plain pictures.
      notes: what was found out or decided while reading.
    """

    pictures: dict[str, tuple[Picture, np.ndarray | None]]
    transform: Any = None
    crs: Any = None
    notes: tuple[str, ...] = ()

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
        return Images(pictures, transform, self.crs, self.notes)

    @property
    def _reference(self) -> tuple[Picture, np.ndarray | None]:
        return self.pictures["optical" if "optical" in self.pictures else "sar"]


def picture_shape(picture: Picture) -> tuple[int, int]:
    """Rows and columns of a picture or of its bands."""
    array = picture if isinstance(picture, np.ndarray) else next(iter(picture.values()), np.zeros(()))
    if array.ndim < 2:
        raise UserError(f"An image needs rows and columns, not the shape {array.shape}.")
    return array.shape[0], array.shape[1]


def picture_sizes(record: Record) -> dict[str, tuple[tuple[int, int], bool, int]]:
    """Of each sensor of a record: rows and columns, whether it is a finished picture, and the dates; from headers.

    Raises:
      UserError: naming the file that is missing or cannot be opened.
    """
    files = {name: paths for name in SENSORS if (paths := record.paths(name))}
    first = {name: picture_header(str(paths[0])) for name, paths in files.items()}
    rasters = [name for name, (_, eight_bit, raster) in first.items() if raster and not (eight_bit and name == "sar")]
    sizes = {}
    for name, (shape, eight_bit, _) in first.items():
        # A SAR raster is brought onto the grid of an optical one.
        on = "optical" if name in rasters and "optical" in rasters else name
        sizes[name] = (first[on][0] if on != name else shape, eight_bit, len(files[name]))
    return sizes


@lru_cache(maxsize=2**20)
def picture_header(path: str) -> tuple[tuple[int, int], bool, bool]:
    """(rows and columns, whether it is 8-bit, whether it is a raster) of an image file."""
    file = Path(path)
    if file.suffix.lower() in RASTERS:
        from earthmind_jax.geo.raster import open_raster

        with open_raster(file) as dataset:
            return (dataset.height, dataset.width), dataset.dtypes[0] == "uint8", True
    with _open_picture(file) as image:
        return (image.height, image.width), True, False


def load_record(record: Record, sensors: SensorConfig) -> Sample:
    """The sample that a record describes.

    Rasters are calibrated, and a pair of them is brought onto the optical grid
    (:func:`earthmind_jax.geo.align.load_pair`); 8-bit pictures are finished frames, used as they are (grey is
    replicated, as in the published model). Masks lie on the grid of the optical image, or of the SAR image where it
    stands alone. Each date is a pair of its own; where one sensor has a single image, it goes with the first.

    Raises:
      UserError: naming the record's line, and the file or field.
    """
    files = {name: paths for name in SENSORS if (paths := record.paths(name))}
    try:
        dates = [
            load_images({name: paths[min(i, len(paths) - 1)] for name, paths in files.items()}, sensors)
            for i in range(record.dates)
        ]
        _one_grid(dates, files)
        shape = dates[0].shape if dates else (1, 1)
        turns = tuple(
            Turn(
                turn.question,
                turn.answer,
                _masks(turn, shape, record.root, i),
                decode_region(turn, shape, record.root, i),
            )
            for i, turn in enumerate(record.turns)
        )
    except UserError as error:
        raise UserError(f"{record.where or f'Record {record.id!r}'}: {error}") from error
    given: dict[str, Any] = {}
    for name, paths in files.items():
        pictures, valid = zip(*(images.pictures[name] for images in dates[: len(paths)]), strict=True)
        given |= (
            {name: pictures, f"{name}_valid": valid}
            if len(paths) > 1
            else {name: pictures[0], f"{name}_valid": valid[0]}
        )
    return Sample(record.id, turns, **given)


def _one_grid(dates: Sequence[Images], files: Mapping[str, tuple[Path, ...]]) -> None:
    for i, images in enumerate(dates[1:], 1):
        if (images.shape, images.transform, images.crs) != (dates[0].shape, dates[0].transform, dates[0].crs):
            name = "optical" if len(files.get("optical", ())) > i else "sar"
            raise UserError(f"'{files[name][i]}' lies on another grid than the first date; bring all dates onto one.")


def check_marks(
    turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(field, what raises UserError where it is wrong) of each mask and region of a turn as written; ``shape`` is that
    of the image, None where it cannot be read."""
    for i, spec in enumerate(turn.masks):
        name = f"turns[{index}].masks[{i}]" if len(turn.masks) > 1 else f"turns[{index}].mask"
        one = RecordTurn(turn.question, turn.answer, (spec,))
        yield name, partial(_masks, one, shape, root, index)
    if turn.region is not None:
        yield f"turns[{index}].region", partial(decode_region, turn, shape, root, index)


def decode_region(turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int = 0) -> np.ndarray | None:
    """The part of an image of ``shape`` that a turn as written asks about, bool [h w]; None for the whole."""
    if turn.region is None:
        return None
    return _decode(turn.region, shape, root, f"turns[{index}].region")


def _masks(turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int) -> Any:
    """A turn's masks in the forms of :class:`Turn`."""
    name = f"turns[{index}].mask"
    made: list[Any] = []
    for spec in turn.masks:
        if isinstance(spec, dict) and "dates" in spec:
            made.append(Dated(tuple(None if s is None else _decode(s, shape, root, name) for s in spec["dates"])))
        else:
            made.append(_decode(spec, shape, root, name))
    if any(isinstance(m, Dated) for m in made) or len({m.shape for m in made}) > 1:
        return tuple(made)
    return None if not made else made[0] if len(made) == 1 else np.stack(made)


def _decode(spec: Any, shape: tuple[int, int] | None, root: Path, name: str) -> np.ndarray:
    mask = decode(spec, shape or (1, 1), root, name)
    if shape is not None:
        _same_extent(mask.shape, shape, name)
    return mask


def load_images(sources: Mapping[str, str | Path | Picture], sensors: SensorConfig, **options: Any) -> Images:
    """The images of ``optical`` and/or ``sar``, given as files or as arrays (8-bit pictures, or bands by name).

    Args:
      options: for reading rasters, as of :func:`earthmind_jax.geo.align.load_pair` (a ``window``, ``min_overlap``).

    Raises:
      UserError: naming the file that is missing, unsuitable or does not overlap the other.
    """
    pictures: dict[str, tuple[Picture, np.ndarray | None]] = {}
    rasters: dict[str, Path] = {}
    bands: dict[str, tuple[str, ...] | None] = {}
    for name, source in sources.items():
        if not isinstance(source, str | Path):
            pictures[name] = source, None
            continue
        path = Path(source)
        if path.suffix.lower() not in RASTERS:
            pictures[name] = read_picture(path), None
            continue
        eight_bit = _is_8bit(path)
        if eight_bit and name == "sar":
            pictures[name] = read_picture(path), None
        else:
            rasters[name] = path
            wanted = sensors.optical_bands if name == "optical" else sensors.sar_bands
            bands[name] = None if eight_bit else tuple(dict.fromkeys(wanted))
    if not rasters:
        return Images(pictures)
    from earthmind_jax.geo.align import load_pair

    pair = load_pair(
        rasters.get("optical"),
        rasters.get("sar"),
        optical_bands=bands.get("optical"),
        sar_bands=bands.get("sar"),
        **options,
    )
    for name in rasters:
        raster = getattr(pair, name)
        picture: Picture = dict(zip(raster.bands, raster.data, strict=True))
        if raster.unit == "display":
            picture = np.moveaxis(np.clip(np.rint(raster.data), 0, 255).astype(np.uint8), 0, -1)
        pictures[name] = picture, raster.valid
    placed = "optical" in rasters or "optical" not in pictures  # the georeference belongs to the reference image
    return Images(
        pictures, pair.transform if placed else None, pair.crs if placed else None, tuple(str(n) for n in pair.notes)
    )


def _is_8bit(path: Path) -> bool:
    from earthmind_jax.geo.raster import peek_sensor

    return peek_sensor(path, None)[1] == "uint8"


def read_picture(path: Path) -> np.ndarray:
    """An 8-bit picture file as [H W 3]; UserError where it cannot be read."""
    with _open_picture(path) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        raise UserError(f"there is no file '{path}'.")
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"'{path}' is not an 8-bit picture; save measurements as GeoTIFF with named bands.")
            yield image
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as a picture ({error}).") from error


def _same_extent(mask: tuple[int, ...], image: tuple[int, int], where: str) -> None:
    """Masks are stretched over the image, so a mask of another shape is of another extent."""
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(mask[0] * image[1], mask[1] * image[0]) * 0.02:
        raise UserError(
            f"{where} is {mask[0]} x {mask[1]} but the image is {image[0]} x {image[1]}: they do not match."
        )
