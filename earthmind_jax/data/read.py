"""A record's files to arrays: calibrated, aligned, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.masks import decode
from earthmind_jax.data.records import Picture, Record, Sample, Turn
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
    array = picture if isinstance(picture, np.ndarray) else next(iter(picture.values()))
    return array.shape[0], array.shape[1]


def load_record(record: Record, sensors: SensorConfig) -> Sample:
    """The sample that a record describes.

    Rasters are calibrated, and a pair of them is brought onto the optical grid
    (:func:`earthmind_jax.geo.align.load_pair`); 8-bit pictures are finished frames, used as they are (grey is
    replicated, as in the published model). Masks lie on the grid of the optical image, or of the SAR image where it
    stands alone.

    Raises:
      UserError: naming the record's line, and the file or field.
    """
    paths = {name: record.root / path for name in ("optical", "sar") if (path := getattr(record, name)) is not None}
    try:
        images = load_images(paths, sensors) if paths else Images({})
        shape = images.shape if paths else (1, 1)
        turns = []
        for i, turn in enumerate(record.turns):
            specs = [decode(m, shape, record.root, f"turns[{i}].mask") for m in turn.masks]
            for mask in specs:
                _same_extent(mask.shape, shape, f"turns[{i}].mask")
            region = turn.region
            if region is not None:
                region = decode(region, shape, record.root, f"turns[{i}].region")
                _same_extent(region.shape, shape, f"turns[{i}].region")
            turns.append(Turn(turn.question, turn.answer, _join(specs), region))
    except UserError as error:
        raise UserError(f"{record.where or f'Record {record.id!r}'}: {error}") from error
    optical, optical_valid = images.pictures.get("optical", (None, None))
    sar, sar_valid = images.pictures.get("sar", (None, None))
    return Sample(record.id, tuple(turns), optical, sar, optical_valid, sar_valid)


def load_images(sources: Mapping[str, str | Path | Picture], sensors: SensorConfig) -> Images:
    """The images of ``optical`` and/or ``sar``, given as files or as arrays (8-bit pictures, or bands by name).

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
    if not path.is_file():
        raise UserError(f"there is no file '{path}'.")
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"'{path}' is not an 8-bit picture; save measurements as GeoTIFF with named bands.")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as a picture ({error}).") from error


def _same_extent(mask: tuple[int, ...], image: tuple[int, int], where: str) -> None:
    """Masks are stretched over the image, so a mask of another shape is of another extent."""
    if abs(mask[0] * image[1] - mask[1] * image[0]) > max(mask[0] * image[1], mask[1] * image[0]) * 0.02:
        raise UserError(
            f"{where} is {mask[0]} x {mask[1]} but the image is {image[0]} x {image[1]}: they do not match."
        )


def _join(masks: list[np.ndarray]) -> np.ndarray | None:
    if not masks:
        return None
    if len({m.shape for m in masks}) > 1:
        raise UserError("the masks of one answer must have one size.")
    return masks[0] if len(masks) == 1 else np.stack(masks)
