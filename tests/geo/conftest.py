"""Small GeoTIFFs made on the spot, and grids of every awkward kind."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin


def _turned(x: float, y: float, size: float, degrees: float) -> Affine:
    c, s = np.cos(np.radians(degrees)) * size, np.sin(np.radians(degrees)) * size
    return Affine(c, s, x, s, -c, y)


GRIDS = {
    "utm_north": ("EPSG:32632", from_origin(549892.697, 6344077.614, 10, 10)),
    "utm_south": ("EPSG:32736", from_origin(617301.82, 9625098.227, 10, 10)),
    "degrees": ("EPSG:4326", from_origin(11.3, 48.2, 0.0001, 0.0001)),
    "web_mercator": ("EPSG:3857", from_origin(1257000, 6140000, 15, 15)),
    "polar": ("EPSG:3413", from_origin(-260000, -1100000, 20, 20)),
    "rotated": ("EPSG:32633", _turned(400000, 5000000, 10, 30)),
    "south_up": ("EPSG:32633", Affine(10, 0, 400000, 0, 10, 5000000)),
    "rotated_degrees": ("EPSG:4326", _turned(-70.0, -33.0, 0.0002, -20)),
    "antimeridian_utm": ("EPSG:32601", from_origin(328900, 6656000, 30, 30)),
    "antimeridian_degrees": ("EPSG:4326", from_origin(179.995, 10.0, 0.0001, 0.0001)),
    "antimeridian_polar": ("EPSG:3413", from_origin(-767727 - 2000, 767995 + 2000, 30, 30)),
}


@pytest.fixture(params=GRIDS)
def grid_case(request):
    """(crs, transform) of one awkward grid."""
    return GRIDS[request.param]


@pytest.fixture
def make_tif(tmp_path):
    """Writes an array [C H W]: make_tif(name, array, crs=, transform=, names=, tags=, **profile) -> path."""

    def make(name, array, crs="EPSG:32632", transform=None, names=None, tags=None, units=None, scaling=None, **profile):
        path = Path(tmp_path) / name
        array = np.asarray(array)
        profile = {
            "driver": "GTiff",
            "crs": crs,
            "transform": transform or from_origin(500000, 5000000, 10, 10),
        } | profile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(
                path, "w", count=len(array), height=array.shape[1], width=array.shape[2], dtype=array.dtype, **profile
            ) as dataset:
                dataset.write(array)
                for i, text in enumerate(names or (), 1):
                    dataset.set_band_description(i, text)
                if tags:
                    dataset.update_tags(**tags)
                if units:
                    dataset.units = units
                if scaling:
                    dataset.scales, dataset.offsets = ([value] * len(array) for value in scaling)
        return path

    return make
