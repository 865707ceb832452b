"""A record's files to arrays: calibrated, aligned, decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.headers import (
    RASTERS,
    image_header,
    is_raster,
    picture_header,
    picture_sizes,
    read_header,
    read_picture,
)
from earthmind_jax.data.images import Image as Described
from earthmind_jax.data.model_bands import model_bands, of_other_colours
from earthmind_jax.data.records import SENSORS, Picture, Record, Sample
from earthmind_jax.data.scene_images import Images, picture_shape
from earthmind_jax.data.turns import check_marks, decode_regions, decode_turn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

__all__ = [
    "MOST_PIXELS",
    "RASTERS",
    "Images",
    "check_marks",
    "decode_regions",
    "described_images",
    "image_header",
    "is_raster",
    "load_images",
    "load_record",
    "picture_header",
    "picture_shape",
    "picture_sizes",
]

MOST_PIXELS = 2**25  # of an image in memory; bands, windows and masks of one take some 100 bytes a pixel


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
        turns = tuple(decode_turn(turn, shape, record.root, i) for i, turn in enumerate(record.turns))
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
