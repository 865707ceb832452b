"""A small right raster, from which broken and odd ones are made on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

Maker = Callable[[Path], Path]
NAMES = ("B02", "B03", "B04", "B08", "B11")
PLACE = Affine(10, 0, 500000, 0, -10, 5000000)


def told(table: dict[str, tuple[Maker, str]], says: str) -> Callable[[Maker], Maker]:
    """Puts a maker, and words of the sentence that refuses what it makes, into ``table``, by the maker's name."""

    def add(maker: Maker) -> Maker:
        table[maker.__name__] = maker, says
        return maker

    return add


def reflectance(count: int = 5, height: int = 48, width: int = 48, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(3).integers(200, 4000, (count, height, width)).astype(dtype)


def tif(
    folder: Path,
    array: np.ndarray | None = None,
    name: str = "a.tif",
    names: tuple[str, ...] | None = NAMES,
    **profile: object,
) -> Path:
    array = reflectance() if array is None else array
    given = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE} | profile
    given = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype} | given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(folder / name, "w", **given) as file:
            file.write(array)
            for i, text in enumerate(names or (), 1):
                file.set_band_description(i, text)
    return folder / name


def vrt(folder: Path, text: str, name: str = "a.vrt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def band_of(source: str, size: int = 48) -> str:
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><VRTRasterBand dataType="UInt16" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def placed_vrt(source: str, transform: str) -> str:
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><Description>{name}</Description><SimpleSource><SourceFilename '
        f'relativeToVRT="1">{source}</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>'
        for i, name in enumerate(NAMES, 1)
    )
    return (
        f'<VRTDataset rasterXSize="48" rasterYSize="48"><SRS>EPSG:32632</SRS><GeoTransform>{transform}'
        f"</GeoTransform>{bands}</VRTDataset>"
    )
