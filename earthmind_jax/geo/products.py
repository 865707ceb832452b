"""Products as they are downloaded: folders, zip and tar files of band files and metadata, each read as one raster.

What a product is follows from its metadata or, without any, from the names of its band files; a module for each family
(``product_sentinel2`` and so on) tells its bands, and :func:`earthmind_jax.geo.product_vrt.assemble` makes one raster
of them. Everything else reads it as it reads a GeoTIFF.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from rasterio.env import ensure_env
from rasterio.io import DatasetReader

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_files import ARCHIVES, Files, files_of
from earthmind_jax.geo.product_vrt import BandFile

MOST_LOOKED_AT = 256
PARTS = ("GRANULE", "measurement", "annotation")  # folders of a product, which are none themselves
PACKED = "read inside a packed zip file: unpacked it reads several times as fast"
CHECKPOINT = "config.json"
PICTURES = (".png", ".jpg", ".jpeg")
VARIABLES = (".nc", ".h5", ".hdf5", ".he5")
_METADATA = re.compile(
    r"(?i).*\.dim|MTD_(MSIL\w+|TL)\.xml|S2\w_\w+_MTD_(SAF)?L\w+\.xml|manifest\.safe|.*_MTL\.(txt|json|xml)"
)
_CONTAINER = re.compile(r"(?i)\.(SAFE|zip|tar)$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """One image as it was downloaded.

    Attributes:
      path: as it was given.
      title: what it is, in words.
      bands: of the raster, in its order.
      xml: the virtual raster, or what GDAL opens the product by with its own ``driver``.
      sensor: an entry of ``radiometry.SENSORS``, and the ``reason``; None where it is not known.
      notes: what there is to say of it.
      calibration: polarisation -> table of what makes its numbers backscatter (``sar_calibration``).
    """

    path: str
    title: str
    bands: tuple[BandFile, ...]
    xml: str
    sensor: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    driver: str | None = None

    @property
    def named_after(self) -> str:
        """What tells its sensor: its own name, or that of the one file it is read by."""
        return self.path if self.driver is None else self.bands[0].shown

    def files_note(self, names: Sequence[str]) -> list[str]:
        """Which files the bands of these names are read from; nothing of one that is a single file itself."""
        used = dict.fromkeys(os.path.basename(band.shown) for band in self.bands if band.name in names)
        return [f"read from {' '.join(used)}"] if used else []


class ProductReader(DatasetReader):
    """A product's bands as one open raster, which goes by the product's own name."""

    product: Product

    @property
    def name(self) -> str:
        return self.product.path


def product_in(dataset: DatasetReader) -> Product | None:
    """The product that an open raster was made of; None of a raster file."""
    return dataset.product if isinstance(dataset, ProductReader) else None


@ensure_env
def open_product(product: Product) -> ProductReader:
    """Opens it as one raster; rasterio's errors where GDAL cannot."""
    reader = ProductReader(product.xml, driver=product.driver)
    reader.product = product
    return reader


def is_product(path: str | os.PathLike[str]) -> bool:
    """Whether a path is read as a product, if at all, and not as a raster file: by its kind and name alone."""
    name = os.fspath(path)
    if name.startswith("/vsi"):
        return False
    lower = name.lower()
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISDIR(mode):
        return True
    if not stat.S_ISREG(mode):
        return False
    if lower.endswith(PICTURES):
        from earthmind_jax.geo.product_picture import has_place

        return has_place(name)
    return lower.endswith(ARCHIVES) or _METADATA.fullmatch(os.path.basename(name)) is not None


def product_of(path: str | os.PathLike[str]) -> Product | None:
    """The product that a path names: its folder, its archive, or its metadata file; None for a raster file.

    Raises:
      UserError: a folder or archive that holds no product that is known here, several, or a broken one.
    """
    name = os.fspath(path)
    if not is_product(name) and not (name.lower().endswith(VARIABLES) and os.path.isfile(name)):
        return None
    try:
        return _found(name, _stamp(name))
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}); check its permissions.") from error


def _stamp(name: str) -> tuple[int, ...]:
    """By which a change is seen: times and sizes of a file or folder, and of what lies at its top."""
    changed = [os.stat(name)]
    if os.path.isdir(name):
        with os.scandir(name) as entries:
            changed += [entry.stat() for entry in itertools.islice(entries, MOST_LOOKED_AT) if entry.is_dir()]
    return tuple(number for status in changed for number in (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _found(name: str, stamp: tuple[int, ...]) -> Product | None:
    if name.lower().endswith(PICTURES):
        from earthmind_jax.geo.product_picture import find

        return find(name)
    if name.lower().endswith(VARIABLES):
        from earthmind_jax.geo import product_variables

        return product_variables.find(name)
    from earthmind_jax.geo import (
        product_airbus,
        product_bands,
        product_beam,
        product_landsat,
        product_sentinel1,
        product_sentinel2,
    )

    header = _header_of(name)
    files, granule = _files(header)
    finders: list[Callable[..., Product | None]] = [
        product_sentinel2.find,
        product_sentinel1.find,
        product_landsat.find,
        product_bands.find,
        product_beam.find,
        product_airbus.find,
    ]
    if header.lower().endswith(".dim"):
        finders = [product_beam.find]
    for find in finders:
        product = find(files, header, granule)
        if product is not None and files.packed:
            return replace(product, notes=(*product.notes, PACKED))
        if product is not None:
            return product
    raise UserError(_nothing(name, files))


def _header_of(name: str) -> str:
    """The header of a SNAP product whose folder of files was named; any other name as it is."""
    header = f"{os.path.splitext(name.rstrip('/'))[0]}.dim"
    return header if name.rstrip("/").endswith(".data") and os.path.isfile(header) else name


def _files(name: str) -> tuple[Files, str]:
    """(the files of the product that a path names or lies in, the name of the granule that it is or lies in)."""
    archive = name.lower().endswith(ARCHIVES) and os.path.isfile(name)
    folder = os.path.dirname(name) or "." if os.path.isfile(name) and not archive else name
    parts = os.path.abspath(folder).split(os.sep)
    if "GRANULE" in parts[:-1]:
        at = len(parts) - 1 - parts[::-1].index("GRANULE")
        whole = os.sep.join(parts[:at]) or os.sep
        if any(map(_METADATA.fullmatch, os.listdir(whole))):
            return files_of(whole), parts[at + 1]
    if folder != name:
        return files_of(folder), ""
    if os.path.isfile(os.path.join(name, CHECKPOINT)):
        raise UserError(f"{name} is a checkpoint directory, not an image; name it with --checkpoint.")
    files = files_of(name)
    if not files.names:
        what = "an empty archive" if files.archive else "a directory that is empty"
        raise UserError(f"{name} is {what}; give one raster file, such as a GeoTIFF, or the folder of a product.")
    while True:
        folders = sorted({first for first, _, rest in (name.partition("/") for name in files.names) if rest})
        inside = [folder for folder in folders if folder.upper().endswith(".SAFE")]
        if len(inside) > 1:
            raise UserError(f"{name} holds {len(inside)} products ({', '.join(inside[:3])}); name one of them.")
        wrapped = len(folders) == 1 and not files.top() and folders[0] not in PARTS
        if not inside and not wrapped:
            return files, ""
        files = files.below(f"{(inside or folders)[0]}/")


def _nothing(name: str, files: Files) -> str:
    kind = "an archive" if files.archive else "a directory"
    how = "unpack it and give" if files.archive else "give"
    shown = ", ".join(files.names[:3]) + (", ..." if len(files.names) > 3 else "")
    return (
        f"{name} is {kind} without a product that is known here (Sentinel-1 GRD or Sentinel-2 SAFE, Landsat Collection "
        f"2) or files named after their bands (B02.tif, VV.tif); it holds {shown}; {how} one raster file, such as a "
        "GeoTIFF."
    )


def plain_name(path: str) -> str:
    """The product's name without .SAFE, .zip or .tar."""
    return _CONTAINER.sub("", os.path.basename(path.rstrip("/")))
