"""A NetCDF or HDF5 file with a variable for each band (openEO, NISAR's GCOV): those on one grid are one image.

GDAL calls the variables subdatasets; one of them alone is named in its syntax, ``NETCDF:"file.nc":B02``.
"""

from __future__ import annotations

import re
import warnings

import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_bands import band_of, known_sensor
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product

_POWER = re.compile(r"(VV|VH|HH|HV)\1")  # on the diagonal of the covariance matrix, as NISAR's GCOV names it
_PARTS = re.compile(r'(?i)(NETCDF|HDF5):"?([^"]+?)"?:(?:/*)([^"]+)$')


def split(name: str) -> tuple[str, str] | None:
    """(file, what GDAL opens the variable by) of a name in GDAL's syntax; None of any other."""
    found = _PARTS.fullmatch(name)
    if found is None:
        return None
    driver, file, variable = found.groups()
    inside = f"//{variable}" if driver.upper() == "HDF5" else variable
    return file, f'{driver.upper()}:"{file}":{inside}'


def _placed(file: str, name: str) -> str:
    """What opens a variable together with its place: GDAL's HDF5 driver knows no coordinates, that of NetCDF does."""
    other = name.replace("HDF5:", "NETCDF:").replace(":///", ":/").replace("://", ":/")
    if other == name:
        return name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(other) as dataset:
                return other if dataset.crs is not None and dataset.transform != Affine.identity() else name
    except (RasterioError, OSError, ValueError):
        return name


def find(path: str) -> Product | None:
    """The image that a file's variables are the bands of; None where it is a raster by itself, or cannot be opened.

    Raises:
      UserError: no variable is named after a band, or those that are lie apart.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                inside, count, tags = dataset.subdatasets, dataset.count, dataset.tags()
    except (RasterioError, OSError, ValueError):
        return None
    if count or not inside:
        return None
    found: dict[str, str] = {}
    for parts in filter(None, map(split, inside)):
        variable = parts[1].rpartition(":")[2].rpartition("/")[2]
        power = _POWER.fullmatch(variable)
        band = power.group(1) if power else band_of(f"{variable}.")
        if band:
            found.setdefault(band, _placed(*parts))
    if not found:
        shown = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
        raise UserError(
            f"{path} has no image bands but {len(inside)} data sets inside it, none named after a band ({shown}); give "
            "one of them as it is written here."
        )
    sensor, reason = known_sensor(found)
    bands = tuple(BandFile(name=band, file=name, shown=f"{path}:{band}") for band, name in sorted(found.items()))
    xml, notes = assemble(bands, {key: value for key, value in tags.items() if len(value) < 1000}, single=True)
    return Product(
        path=path, title="file with a variable for each band", bands=bands, xml=xml, sensor=sensor, reason=reason,
        notes=notes,
    )  # fmt: skip
