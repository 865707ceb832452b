"""Images that can be read and not be used, as of :mod:`malformed_files`: for their values, names or place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from small_rasters import NAMES, Maker, placed_vrt, reflectance, tif, told, vrt

BROKEN: dict[str, tuple[Maker, str]] = {}


def broken(says: str) -> Callable[[Maker], Maker]:
    return told(BROKEN, says)


# Values.


@broken("no valid pixel")
def all_nodata(folder: Path) -> Path:
    return tif(folder, np.zeros((5, 48, 48), np.uint16), nodata=0)


@broken("no valid pixel")
def all_nan(folder: Path) -> Path:
    return tif(folder, np.full((5, 48, 48), np.nan, np.float32))


@broken("no valid pixel")
def all_infinite(folder: Path) -> Path:
    return tif(folder, np.full((5, 48, 48), np.inf, np.float32))


@broken("no valid pixel")
def zeros_without_nodata(folder: Path) -> Path:
    return tif(folder, np.zeros((5, 48, 48), np.uint16))


@broken("no valid pixel")
def nodata_is_the_data(folder: Path) -> Path:
    return tif(folder, np.full((5, 48, 48), 1200, np.uint16), nodata=1200)


@broken("complex numbers")
def complex_float(folder: Path) -> Path:
    return tif(folder, np.ones((1, 48, 48), np.complex64), names=None)


@broken("complex numbers")
def complex_int(folder: Path) -> Path:
    return tif(folder, np.ones((1, 48, 48), np.complex64), names=None, dtype="complex_int16")


@broken("palette")
def palette(folder: Path) -> Path:
    path = tif(folder, reflectance(1, dtype="uint8"), names=None)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {i: (i, 0, 0, 255) for i in range(256)})
    return path


@broken("band scale")
def absurd_scale(folder: Path) -> Path:
    path = tif(folder)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [1e30] * 5, [-5e8] * 5
    return path


@broken("band scale")
def scale_is_not_a_number(folder: Path) -> Path:
    path = tif(folder)
    with rasterio.open(path, "r+") as file:
        file.scales = [float("nan")] * 5
    return path


@broken("from no known sensor")
def png_of_16_bits(folder: Path) -> Path:
    Image.fromarray(reflectance(1)[0]).save(folder / "a.png")
    return folder / "a.png"


# Names.


@broken("more than one band")
def duplicated_names(folder: Path) -> Path:
    return tif(folder, names=("B04", "B04", "B03", "B02", "B11"))


@broken("'B11'")
def unknown_names(folder: Path) -> Path:
    return tif(folder, names=("ndvi", "ndwi", "evi", "savi", "nbr"))


@broken("have no names")
def no_names(folder: Path) -> Path:
    return tif(folder, names=None)


@broken("'B11'")
def missing_band(folder: Path) -> Path:
    return tif(folder, reflectance(3), names=NAMES[:3])


# Places.


@broken("georeference")
def no_crs(folder: Path) -> Path:
    return tif(folder, crs=None)


@broken("georeference")
def identity_transform(folder: Path) -> Path:
    return tif(folder, transform=Affine.identity())


@broken("transform")
def zero_pixel_size(folder: Path) -> Path:
    path = tif(folder)
    return vrt(folder, placed_vrt(path.name, "500000, 0, 0, 5000000, 0, -10"))


@broken("transform")
def singular_transform(folder: Path) -> Path:
    path = tif(folder)
    return vrt(folder, placed_vrt(path.name, "500000, 10, 10, 5000000, 10, 10"))


@broken("transform")
def transform_not_a_number(folder: Path) -> Path:
    path = tif(folder)
    return vrt(folder, placed_vrt(path.name, "nan, 10, 0, nan, 0, -10"))


@broken("a.tif")
def engineering_crs(folder: Path) -> Path:
    crs = CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    return tif(folder, crs=crs)


@broken("a.tif")
def off_the_earth(folder: Path) -> Path:
    return tif(folder, transform=Affine(10, 0, 1e12, 0, -10, 1e12))


def control_points_only(folder: Path) -> Path:
    path = tif(folder, crs=None, transform=Affine.identity())
    points = [GroundControlPoint(r, c, 10 + c / 1e4, 50 - r / 1e4) for r, c in ((0, 0), (0, 48), (48, 0), (48, 48))]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, CRS.from_epsg(4326)
    return path


def rational_polynomials_only(folder: Path) -> Path:
    ones = [1.0] + [0.0] * 19
    rpc = RPC(
        height_off=0, height_scale=100, lat_off=50, lat_scale=1, line_den_coeff=ones,
        line_num_coeff=[0, 0, 1, *ones[3:]], line_off=24, line_scale=24, long_off=10, long_scale=1,
        samp_den_coeff=ones, samp_num_coeff=[0, 1, *ones[2:]],
        samp_off=24, samp_scale=24,
    )  # fmt: skip
    path = tif(folder, crs=None, transform=Affine.identity())
    with rasterio.open(path, "r+") as file:
        file.rpcs = rpc
    return path
