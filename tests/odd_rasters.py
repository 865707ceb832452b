"""Odd rasters that must work: ``ODD`` has their makers, by name (see :mod:`malformed_files`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from affine import Affine
from PIL import Image
from small_rasters import Maker, placed_vrt, reflectance, tif, vrt

ODD: dict[str, Maker] = {}


def odd(maker: Maker) -> Maker:
    ODD[maker.__name__] = maker
    return maker


@odd
def south_up(folder: Path) -> Path:
    return tif(folder, transform=Affine(10, 0, 500000, 0, 10, 4999520))


@odd
def mirrored(folder: Path) -> Path:
    return tif(folder, transform=Affine(-10, 0, 500480, 0, -10, 5000000))


@odd
def rotated(folder: Path) -> Path:
    return tif(folder, transform=Affine.translation(500000, 5000000) @ Affine.rotation(30) @ Affine.scale(10, -10))


@odd
def cmyk(folder: Path) -> Path:
    return tif(folder, reflectance(4, dtype="uint8"), names=None, photometric="CMYK")


@odd
def one_pixel(folder: Path) -> Path:
    return tif(folder, reflectance(5, 1, 1))


@odd
def one_row(folder: Path) -> Path:
    return tif(folder, reflectance(5, 1, 90))


@odd
def one_column(folder: Path) -> Path:
    return tif(folder, reflectance(5, 70, 1))


@odd
def whole_numbers_of_64_bits(folder: Path) -> Path:
    return tif(folder, reflectance(dtype="int64"))


@odd
def whole_numbers_of_32_bits(folder: Path) -> Path:
    return tif(folder, reflectance(dtype="uint32"))


@odd
def some_infinite(folder: Path) -> Path:
    array = reflectance(dtype="float64")
    array[:, 5, 5], array[:, 6, 6], array[:, 7, 7] = np.inf, np.nan, 1e300
    return tif(folder, array)


@odd
def mixed_types(folder: Path) -> Path:
    path = tif(folder)
    text = placed_vrt(path.name, "500000, 10, 0, 5000000, 0, -10")
    return vrt(folder, text.replace('"UInt16" band="2"', '"Float32" band="2"'))


@odd
def path_with_odd_characters(folder: Path) -> Path:
    return tif(folder, name="é 数据 [1] {x} 'quoted' %20 #?.tif")


@odd
def name_without_extension(folder: Path) -> Path:
    return Path(shutil.move(tif(folder), folder / "scene.TIFF"))


@odd
def a_link(folder: Path) -> Path:
    (folder / "link.tif").symlink_to(tif(folder))
    return folder / "link.tif"


@odd
def broken_overview(folder: Path) -> Path:
    path = tif(folder)
    (folder / "a.tif.ovr").write_bytes(b"not an overview")
    return path


@odd
def broken_mask(folder: Path) -> Path:
    path = tif(folder)
    (folder / "a.tif.msk").write_bytes(b"not a mask")
    return path


@odd
def a_vrt(folder: Path) -> Path:
    return vrt(folder, placed_vrt(tif(folder).name, "500000, 10, 0, 5000000, 0, -10"))


@odd
def png_with_alpha(folder: Path) -> Path:
    Image.fromarray(reflectance(4, 48, 48, "uint8").transpose(1, 2, 0)).save(folder / "a.png")
    return folder / "a.png"


@odd
def animated(folder: Path) -> Path:
    frames = [Image.fromarray(np.full((48, 48, 3), i * 60, np.uint8)) for i in range(3)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    return folder / "a.gif"
