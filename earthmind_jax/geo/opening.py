"""Opening a raster: what can be wrong with a file is found before a pixel is read, and said in one sentence."""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.product_variables import split as variable_of
from earthmind_jax.geo.products import Product, open_product, product_of
from earthmind_jax.geo.sound import require_blocks, require_pixel_size

# GDAL decodes JPEG 2000 in threads of its own, and what fails in them it does not report: pixels of a file that is cut
# short would be whatever the memory held. With a single thread it says so, whatever number the user's shell has set.
os.environ["GDAL_NUM_THREADS"] = "1"

LARGEST_READ = 2**33  # bytes of one read; more is a header that lies, or a scene to be read in windows
ADDRESS = re.compile(r"(?i)(https?|ftp|s3|gs|az|abfss?):/")  # a path has one slash left
ARCHIVES = {b"PK\x03\x04": "zip archive", b"\x1f\x8b": "gzip file", b"7z\xbc\xaf": "7z archive", b"BZh": "bzip2 file"}


@contextlib.contextmanager
def open_raster(path: str | os.PathLike[str], labels: bool = False) -> Iterator[rasterio.DatasetReader]:
    """Opens a raster, or a product as one (see :mod:`earthmind_jax.geo.products`), and turns what can be wrong with a
    file into one sentence each.

    Raises:
      UserError: no such file, no raster, no bands, complex or palette values, a damaged file or transform.
      WorkError: it does not fit into memory.
    """
    name = os.fspath(path)
    product, inside = product_of(name), variable_of(name)
    if product is None and not name.startswith("/vsi"):
        require_file(inside[0] if inside else name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = open_product(product) if product else rasterio.open(inside[1] if inside else name)
    except (RasterioError, OSError, ValueError, UnicodeError) as error:
        if name.lower().endswith(".hdr"):
            raise UserError(f"{name} is the header of an ENVI image; give the image itself, beside it.") from error
        raise UserError(f"{name} cannot be opened as a raster; is it a GeoTIFF, PNG or JPEG, and complete?") from error
    with dataset:
        _require_image(dataset, name, labels)
        try:
            yield dataset
        except (RasterioError, OSError) as error:
            if product is not None:
                raise UserError(_damaged(product, error)) from error
            if dataset.driver == "VRT":
                raise UserError(
                    f"{name} is a virtual raster, and a file that it is made of is missing or damaged; give that file "
                    "its place again."
                ) from error
            raise UserError(f"{name} is damaged or cut short, its pixels cannot be read; copy it again.") from error
        except MemoryError as error:
            size = f"{dataset.count} x {dataset.height} x {dataset.width}"
            raise WorkError(f"{name} ({size}) does not fit into memory; read it in windows.") from error


def require_room(dataset: rasterio.DatasetReader, count: int, window: Window) -> None:
    """UserError before a read of ``count`` bands that no memory holds: a header may declare any size."""
    need = count * window.width * window.height * 4
    if need > LARGEST_READ:
        size = f"{count} x {window.height:.0f} x {window.width:.0f}"
        raise UserError(
            f"{dataset.name} declares {size} values ({need / 2**30:.0f} GiB), too much for one read; "
            "cut out a part, or read it in windows."
        )


def read_values(dataset: rasterio.DatasetReader, indexes: list[int], dtype: str | None, **options: Any) -> np.ndarray:
    """Bands [C H W], also where a virtual raster's bands differ in type; ``options`` as of ``dataset.read``."""
    given = {**options, **({"out_dtype": dtype} if dtype else {})}
    if len({dataset.dtypes[i - 1] for i in indexes}) == 1:
        return dataset.read(indexes, **given)
    if "out_shape" in given:
        given["out_shape"] = given["out_shape"][1:]
    return np.stack([dataset.read(i, **given) for i in indexes])


def read_masks(dataset: rasterio.DatasetReader, indexes: list[int], data: Sequence[int], **options: Any) -> np.ndarray:
    """bool [C H W]: what the file's own nodata value, mask or alpha band calls valid; ``options`` as of
    ``dataset.read_masks``.

    ``data``: every band that is a measurement. An alpha band among them is none: GDAL takes any fourth band of 8 bits
    for one, near infrared too.
    """
    if any(dataset.colorinterp[i - 1] == ColorInterp.alpha for i in data):
        window = options.get("window")
        shape = options.get("out_shape", (0, *dataset.shape) if window is None else (0, window.height, window.width))
        return np.ones((len(indexes), *map(int, shape[-2:])), bool)
    return dataset.read_masks(indexes, **options) > 0


def file_stamp(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """(last change, bytes) of what a raster or product is read from, by which a change of it is seen; None of what is
    no file."""
    name = os.fspath(path)
    inside = variable_of(name)
    name = inside[0] if inside else name
    if not os.path.exists(name):
        return None
    product = None if inside else product_of(name)
    files = {name, *(band.shown for band in product.bands)} if product is not None else {name}
    found = [os.stat(file) for file in files if os.path.exists(file)]
    return max(status.st_mtime_ns for status in found), sum(status.st_size for status in found)


def require_file(name: str) -> None:
    """UserError unless ``name`` is a readable file that opening will not wait for."""
    if ADDRESS.match(name):
        raise UserError(f"{name} is an address on the network, and images are read from files: download it first.")
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise UserError(
                f"{name} cannot be reached ({error.strerror}); check the permissions of its folder."
            ) from error
        what = "is a link to a file that is not there" if os.path.islink(name) else "does not exist"
        raise UserError(f"{name or 'The empty path'} {what}; check the path.") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a directory; give one raster file, such as a GeoTIFF.")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} is no regular file (a pipe or a device); give one raster file, such as a GeoTIFF.")
    try:
        with open(name, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}); check its permissions.") from error
    if not start:
        raise UserError(f"{name} is empty (0 bytes); it cannot be opened as a raster, copy it again.")
    for magic, kind in ARCHIVES.items():
        if start.startswith(magic):
            raise UserError(f"{name} is a {kind}, not a raster; unpack it first.")


def _damaged(product: Product, error: BaseException) -> str:
    """The sentence for a product whose pixels cannot be read; GDAL's own words name the file."""
    words = f"{error} {error.__cause__}"
    broken = [band.shown for band in product.bands if os.path.basename(band.shown) in words]
    which = broken[0] if broken else f"one of the files of {product.path}"
    return f"{which} is damaged or cut short, its pixels cannot be read; copy or download it again."


def _require_image(dataset: rasterio.DatasetReader, name: str, labels: bool) -> None:
    if dataset.count == 0:
        inside = dataset.subdatasets
        parts = f" but {len(inside)} data sets inside it; export one (gdal_translate {inside[0]})" if inside else ""
        raise UserError(f"{name} has no image bands{parts}; give a raster with at least one band.")
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise UserError(f"{name} holds complex numbers (single-look SAR?); give detected, calibrated backscatter.")
    if not labels and ColorInterp.palette in dataset.colorinterp:
        raise UserError(f"{name} is a palette image, its values are colour numbers; convert it to RGB bands first.")
    if dataset.crs is not None and not dataset.transform.almost_equals(Affine.identity()):
        _require_place(dataset, name)
    require_blocks(dataset, name)


def _require_place(dataset: rasterio.DatasetReader, name: str) -> None:
    """UserError where pixels have no size, or the image's centre is nowhere on Earth."""
    transform = dataset.transform
    require_pixel_size(transform, name)
    x, y = transform @ (dataset.width / 2, dataset.height / 2)
    try:
        (longitude,), (latitude,) = transform_points(dataset.crs, CRS.from_epsg(4326), [x], [y])
    except (CRSError, CPLE_BaseError):
        longitude = latitude = math.inf
    if not (abs(longitude) <= 540 and abs(latitude) <= 90):  # longitudes may run on past the antimeridian
        raise UserError(
            f"{name}: its centre, x {x:.6g}, y {y:.6g}, is no place on Earth in its coordinate reference system "
            f"({dataset.crs.to_string()[:40]}...); correct its georeference or remove it."
        )
