"""What the header of an image file tells, and pictures that are used as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.images import Image as Described
from earthmind_jax.data.records import SENSORS, Record
from earthmind_jax.errors import UserError

RASTERS = (
    ".tif",
    ".tiff",
    ".vrt",
    ".jp2",
    ".img",
    ".dat",
    ".bin",
    ".bsq",
    ".bil",
    ".bip",
    ".ntf",
    ".nitf",
    ".nc",
    ".h5",
    ".hdf5",
    ".he5",
    ".gpkg",
    ".hdr",
    ".xml",
)
RASTER_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ")


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


def is_raster(path: str | Path) -> bool:
    """Whether an image is read as a raster or a product, and not as a picture without a place: by its name and kind."""
    from earthmind_jax.geo.product_variables import split
    from earthmind_jax.geo.products import is_product

    file = Path(path)
    return file.suffix.lower() in RASTERS or is_product(path) or split(str(path)) is not None or _is_deep(file)


def _is_deep(file: Path) -> bool:
    """Whether a PNG has 16 bits a channel: numbers, of which a picture of 8 bits would show the upper half."""
    if file.suffix.lower() != ".png" or not file.is_file():
        return False
    with file.open("rb") as opened:
        start = opened.read(25)
    return start.startswith(b"\x89PNG") and start[24:] == b"\x10"


def read_header(path: str | Path) -> Header:
    """What the header of an image file tells."""
    file = Path(path)
    if is_raster(file):
        from earthmind_jax.geo.raster import is_finished_picture, open_raster

        with open_raster(file) as dataset:
            shape = dataset.height, dataset.width
        finished, placed = is_finished_picture(file)
        return Header(shape, finished, True, placed)
    with _open_picture(file) as image:
        return Header((image.height, image.width), True, False, False)


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
