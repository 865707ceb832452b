"""A PNG or JPEG that a world file places, with its CRS in a .prj beside it (GDAL reads the .aux.xml, not the .prj)."""

from __future__ import annotations

import os
import warnings
from functools import partial

import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product

LARGEST_PRJ = 1 << 16  # bytes
_WORLD = {".png": (".pgw", ".pngw"), ".jpg": (".jgw", ".jpgw"), ".jpeg": (".jgw", ".jpegw", ".jpgw")}


def has_place(name: str) -> bool:
    """Whether files beside a picture tell where it lies: a world file and a .prj, or GDAL's .aux.xml."""
    stem, ending = os.path.splitext(name)
    if os.path.isfile(f"{name}.aux.xml"):
        return _placed_by_gdal(name)
    worlds = (*_WORLD[ending.lower()], ".wld")
    return _beside(stem, ".prj") is not None and any(_beside(stem, world) for world in worlds)


def find(name: str) -> Product:
    """The picture as a raster with its place.

    Raises:
      UserError: a .prj that tells no CRS, or a world file that gives pixels no size.
    """
    with _opened(name) as dataset:
        crs, transform = dataset.crs, dataset.transform
        file = partial(BandFile, name="", file=os.path.abspath(name), shown=name)
        bands = [file(index=i) for i, kind in enumerate(dataset.colorinterp, 1) if kind != ColorInterp.alpha]
        if ColorInterp.palette in dataset.colorinterp:
            bands = [file(colour=colour) for colour in (1, 2, 3)]
    prj = _beside(os.path.splitext(name)[0], ".prj")
    note = "placed by the .aux.xml beside it"
    if crs is None:
        crs = _crs(prj or "")
        note = f"placed by its world file, in the CRS of {os.path.basename(prj or '')}"
    xml, notes = assemble(bands, {}, place=(transform, crs), single=False)
    return Product(path=name, title="picture", bands=tuple(bands), xml=xml, notes=(note, *notes))


def _placed_by_gdal(name: str) -> bool:
    try:
        with _opened(name) as dataset:
            placed = dataset.crs is not None or _beside(os.path.splitext(name)[0], ".prj") is not None
            return placed and dataset.transform != Affine.identity()
    except UserError:
        return False


def _opened(name: str) -> rasterio.DatasetReader:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(name)
    except (RasterioError, OSError) as error:
        raise UserError(f"{name} cannot be opened as a picture; is it complete?") from error


def _crs(path: str) -> CRS:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return CRS.from_wkt(file.read(LARGEST_PRJ))
    except (OSError, UnicodeError, CRSError) as error:
        raise UserError(f"{path} tells no coordinate reference system; write it anew, or remove it.") from error


def _beside(stem: str, ending: str) -> str | None:
    return next((stem + e for e in (ending, ending.upper()) if os.path.isfile(stem + e)), None)
