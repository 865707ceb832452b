"""A record's files to arrays: calibrated, aligned, decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.images import Image as Described
from earthmind_jax.data.masks import decode, draw_marks, is_marks
from earthmind_jax.data.model_bands import model_bands, of_other_colours
from earthmind_jax.data.records import SENSORS, Dated, Picture, Record, RecordTurn, Sample, Turn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark

RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".dat", ".bin", ".bsq", ".bil", ".bip", ".ntf", ".nitf", ".nc")
RASTER_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ")

MOST_PIXELS = 2**25  # of an image in memory; bands, windows and masks of one take some 100 bytes a pixel


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


def picture_sizes(record: Record, sensors: SensorConfig) -> dict[str, tuple[tuple[int, int], bool, int]]:
    """Of each sensor of a record: rows and columns, whether it is a finished picture, and the dates; from headers.

    Raises:
      UserError: naming the file that is missing or cannot be opened.
    """
    dated = {name: images for name in SENSORS if (images := record.images(name))}
    first = {name: image_header(images[0], name, sensors) for name, images in dated.items()}
    placed = [name for name, (_, _, placed) in first.items() if placed]
    sizes = {}
    for name, (shape, finished, _) in first.items():
        # A SAR image with a place is brought onto the grid of an optical one.
        on = "optical" if name in placed and "optical" in placed else name
        sizes[name] = (first[on][0] if on != name else shape, finished, len(dated[name]))
    return sizes


def image_header(image: Described, name: str, sensors: SensorConfig) -> tuple[tuple[int, int], bool, bool]:
    """(rows and columns, whether it is a finished picture, whether it is brought onto a partner's grid or the partner
    onto its) of an ``optical`` or ``sar`` image."""
    if image.plain:
        header = picture_header(str(image.file))
        return header.shape, header.finished, header.is_raster(name)
    from earthmind_jax.data import imagery

    made = imagery.header(image, name, sensors)
    return made.shape, made.finished, made.placed


class Header(NamedTuple):
    """Of an image file: rows and columns, whether it is an 8-bit picture as it is, and whether it lies on a map."""

    shape: tuple[int, int]
    finished: bool
    raster: bool
    placed: bool

    def is_raster(self, sensor: str) -> bool:
        """Whether it is calibrated and aligned; a SAR picture without a place on the map is a finished frame."""
        return self.raster and not (self.finished and not self.placed and sensor == "sar")


@lru_cache(maxsize=2**20)
def picture_header(path: str) -> Header:
    """:func:`read_header`, once for each file of a data set."""
    return read_header(path)


def read_header(path: str | Path) -> Header:
    """What the header of an image file tells."""
    file = Path(path)
    if file.suffix.lower() in RASTERS:
        from earthmind_jax.geo.raster import is_finished_picture, open_raster

        with open_raster(file) as dataset:
            shape = dataset.height, dataset.width
        finished, placed = is_finished_picture(file)
        return Header(shape, finished, True, placed)
    with _open_picture(file) as image:
        return Header((image.height, image.width), True, False, False)


def load_record(record: Record, sensors: SensorConfig) -> Sample:
    """The sample that a record describes.

    Rasters are calibrated, and a pair of them is brought onto the optical grid
    (:func:`earthmind_jax.geo.align.load_pair`); 8-bit pictures are finished frames, used as they are (grey is
    replicated, as in the published model). Masks lie on the grid of the optical image, or of the SAR image where it
    stands alone. Each date is a pair of its own; where one sensor has a single image, it goes with the first.

    Raises:
      UserError: naming the record's line, and the file or field.
    """
    given = {name: images for name in SENSORS if (images := record.images(name))}
    try:
        dates = _load_dates(given, record.dates, sensors)
        shape = dates[0].shape if dates else (1, 1)
        turns = tuple(
            Turn(
                turn.question,
                turn.answer,
                _masks(turn, shape, record.root, i),
                _regions(turn, shape, record.root, i),
                _steering(turn, shape, record.root, i),
            )
            for i, turn in enumerate(record.turns)
        )
    except UserError as error:
        raise UserError(f"{record.where or f'Record {record.id!r}'}: {error}") from error
    arrays: dict[str, Any] = {}
    for name, described in given.items():
        pictures, valid = zip(*(images.pictures[name] for images in dates[: len(described)]), strict=True)
        arrays |= (
            {name: pictures, f"{name}_valid": valid}
            if len(described) > 1
            else {name: pictures[0], f"{name}_valid": valid[0]}
        )
    return Sample(record.id, turns, **arrays)


def described_images(record: Record, sensors: SensorConfig) -> Images:
    """The images of a record that tells more of them than their paths, all dates on one grid.

    Raises:
      UserError: naming the file.
    """
    given = {name: images for name in SENSORS if (images := record.images(name))}
    first, *later = _load_dates(given, record.dates, sensors)
    several = [name for name, images in given.items() if len(images) > 1]
    dated = tuple(
        replace(images, date=f"date_{i}", pictures={name: images.pictures[name] for name in several})
        for i, images in enumerate(later, 2)
    )
    return replace(first, date="date_1" if later else "", later=dated)


def _load_dates(given: Mapping[str, tuple[Described, ...]], count: int, sensors: SensorConfig) -> list[Images]:
    dates = [
        _load_date({name: images[min(i, len(images) - 1)] for name, images in given.items()}, sensors)
        for i in range(count)
    ]
    _one_grid(dates, given)
    return dates


def _load_date(given: Mapping[str, Described], sensors: SensorConfig) -> Images:
    """The images of one date: plain paths as :func:`load_images` takes them, described ones as they tell."""
    if all(image.plain for image in given.values()):
        return load_images({n: i.file for n, i in given.items() if i.file}, sensors, training=True)
    from earthmind_jax.data import imagery

    # A plain picture has no place that could matter to the other image.
    finished = {n: i.file for n, i in given.items() if i.plain and i.file and not image_header(i, n, sensors)[2]}
    made = imagery.load({name: image for name, image in given.items() if name not in finished}, sensors)
    pictures = dict(load_images(finished, sensors).pictures)
    pictures |= {
        name: (imagery.as_picture(raster, given[name], name, sensors), raster.valid) for name, raster in made.items()
    }
    reference = made.get("optical" if "optical" in given else "sar")
    placed = reference is not None and reference.georeferenced
    return Images(
        pictures,
        reference.transform if placed else None,
        reference.crs if placed else None,
        tuple(note for raster in made.values() for note in raster.notes),
    )


def _one_grid(dates: Sequence[Images], given: Mapping[str, tuple[Described, ...]]) -> None:
    for i, images in enumerate(dates[1:], 1):
        if (images.shape, images.transform, images.crs) != (dates[0].shape, dates[0].transform, dates[0].crs):
            name = "optical" if len(given.get("optical", ())) > i else "sar"
            raise UserError(
                f"'{given[name][i].name}' lies on another grid than the first date; bring all dates onto one."
            )


def check_marks(
    turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(field, what raises UserError where it is wrong) of each mask and region of a turn as written; ``shape`` is that
    of the image, None where it cannot be read."""
    for i, spec in enumerate(turn.masks):
        name = f"turns[{index}].masks[{i}]" if len(turn.masks) > 1 else f"turns[{index}].mask"
        one = RecordTurn(turn.question, turn.answer, (spec,))
        yield name, partial(_masks, one, shape, root, index)
    for i, spec in enumerate(turn.regions):
        name = f"turns[{index}].regions[{i}]" if len(turn.regions) > 1 else f"turns[{index}].region"
        one = RecordTurn(turn.question, turn.answer, region=spec, steer=turn.steer)
        yield name, partial(_check_region, one, shape, root, index)


def _check_region(turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int) -> None:
    decode_regions(turn, shape, root, index)
    if shape is not None:
        _steering(turn, shape, root, index)


def decode_regions(
    turn: RecordTurn, shape: tuple[int, int] | None, root: Path, index: int = 0
) -> tuple[np.ndarray, ...]:
    """The parts of an image of ``shape`` that a turn as written asks about, each bool [h w]; none for the whole."""
    name = f"turns[{index}].region"
    made = []
    for spec in turn.regions:
        if not is_marks(spec):
            made.append(_decode(spec, shape, root, name))
        elif shape is not None:
            made.append(draw_marks(spec, shape, name))
    return tuple(made)


def _regions(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> Any:
    """A turn's regions in the forms of :class:`Turn`."""
    made = decode_regions(turn, shape, root, index)
    return made if len(made) > 1 else made[0] if made else None


def _steering(turn: RecordTurn, shape: tuple[int, int], root: Path, index: int) -> tuple[Mark, ...]:
    if not turn.steer:
        return ()
    from earthmind_jax.data.pointed import steering

    return steering(turn, shape, root, index)


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
        if isinstance(spec, list) and spec and not mask.any():
            raise UserError(f"{name}: its polygons lie outside the image of {shape[0]} x {shape[1]} pixels.")
    return mask


def load_images(
    sources: Mapping[str, str | Path | Picture],
    sensors: SensorConfig,
    told: Told = NOTHING,
    *,
    training: bool = False,
    **options: Any,
) -> Images:
    """The images of ``optical`` and/or ``sar``, given as files or as arrays (8-bit pictures, or bands by name).

    A raster of another sensor than the model's gives the bands that stand for the model's own
    (:mod:`earthmind_jax.geo.counterparts`). What is a brightness and no measurement (stretched colour, infrared) is
    spread over the range that the model expects of each band, a grey image over all of them, and a missing
    cross-polarised channel is padded as ``sensors.sar_channels`` says.

    Args:
      told: what the caller knows about the files; it wins over what would be detected.
      training: without measuring how far the two lie apart (some 30 ms), and every image on the pixels that its masks
        were drawn on, even where only control points or RPCs place them.
      options: for reading rasters, as of :func:`earthmind_jax.geo.align.load_pair` (a ``window``, ``min_overlap``).

    Raises:
      UserError: naming the file that is missing, unsuitable or does not overlap the other.
    """
    pictures: dict[str, tuple[Picture, np.ndarray | None]] = {}
    rasters: dict[str, Path] = {}
    bands: dict[str, tuple[str, ...] | None] = {}
    told.require_files(sources)
    for name, source in sources.items():
        if not isinstance(source, str | Path):
            pictures[name] = source, None
            continue
        path = Path(source)
        header, spoken = read_header(path), told.about(name)
        if not training:
            if name == ("optical" if "optical" in sources else "sar") and "window" not in options:
                _require_size(path, header.shape)
            if told.sensor_of(name) is None and not told.names_of(name):
                from earthmind_jax.geo.no_sensor import require_image

                require_image(path, name)
        if not header.is_raster(name) and not (header.raster and spoken):
            if spoken:
                raise UserError(f"{path} is a finished picture, for which '{spoken[0]}' means nothing; leave it out.")
            pictures[name] = read_picture(path), None
        else:
            rasters[name] = path
            wanted = sensors.optical_bands if name == "optical" else sensors.sar_bands
            as_it_is = header.finished and told.is_picture(name)
            bands[name] = None if as_it_is else tuple(dict.fromkeys(wanted))
    notes = of_other_colours(pictures, bands, sensors)
    files = {name: str(source) for name, source in sources.items() if isinstance(source, str | Path)}
    if not rasters:
        for fact in (fact for fact, value in told.ground().items() if value is not None):
            raise UserError(
                f"'{fact}' is for an image placed by RPCs, and {' and '.join(files.values())} is a picture."
            )
        return Images(pictures, notes=notes, sources=files)
    from earthmind_jax.geo.align import load_pair

    pair = load_pair(
        rasters.get("optical"),
        rasters.get("sar"),
        optical_bands=bands.get("optical"),
        sar_bands=bands.get("sar"),
        **told.pair_options(),
        **{"report_shift": not training, "as_stored": training} | options,
    )
    for name in rasters:
        raster = getattr(pair, name)
        if bands[name] is None and raster.unit == "display":
            picture = np.moveaxis(np.clip(np.rint(raster.data), 0, 255).astype(np.uint8), 0, -1)
            pictures[name] = picture, raster.valid
        else:
            pictures[name] = model_bands(raster, name, sensors), raster.valid
    reference = pair.sar if pair.optical is None else pair.optical
    # The georeference belongs to the reference image.
    placed = reference.georeferenced and ("optical" in rasters or "optical" not in pictures)
    return Images(
        pictures,
        pair.transform if placed else None,
        pair.crs if placed else None,
        (*map(str, pair.notes), *notes),
        files,
    )


def _require_size(path: Path, shape: tuple[int, int]) -> None:
    """UserError where an image is too large for its pixels, and all that is made of them, to be held at once."""
    if shape[0] * shape[1] > MOST_PIXELS:
        raise UserError(
            f"{path} has {shape[0]} x {shape[1]} pixels, too many to be held in memory at once (at most "
            f"{MOST_PIXELS / 1e6:.0f} million); name a part (--crop, --area, window) or draw on all of it from file to "
            "file (earthmind segment TARGET --out DIR, infer.scene.segment_scene), or, without a place on the map, "
            "cut out a part first (gdal_translate -srcwin)."
        )


def read_picture(path: Path) -> np.ndarray:
    """An 8-bit picture file as [H W 3]; UserError where it cannot be read."""
    with _open_picture(path) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        from earthmind_jax.geo.opening import ADDRESS, require_file

        if path.exists() or ADDRESS.match(str(path)):
            require_file(str(path))
        raise UserError(f"there is no file '{path}'.")
    with path.open("rb") as file:
        start = file.read(12)
    if start.startswith(RASTER_STARTS) and path.suffix.lower() not in RASTERS:
        raise UserError(f"'{path}' is a TIFF or JPEG 2000 file by its content; give its name the ending .tif or .jp2.")
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"'{path}' is not an 8-bit picture; save measurements as GeoTIFF with named bands.")
            yield image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'{path}' cannot be read as a picture ({error}).") from error


def _same_extent(mask: tuple[int, ...], image: tuple[int, int], where: str) -> None:
    """Masks are stretched over the image, so a mask of another shape is of another extent."""
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(mask[0] * image[1], mask[1] * image[0]) * 0.02:
        raise UserError(
            f"{where} is {mask[0]} x {mask[1]} but the image is {image[0]} x {image[1]}: they do not match."
        )
