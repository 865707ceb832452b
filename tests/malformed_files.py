"""Files that hold no image, or no longer: ``BROKEN`` has their makers by name, each with words of the sentence that
refuses what it makes. A maker gets a folder and returns the path of an optical image.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from small_rasters import NAMES, PLACE, Maker, band_of, reflectance, tif, told, vrt

BROKEN: dict[str, tuple[Maker, str]] = {}


def broken(says: str) -> Callable[[Maker], Maker]:
    return told(BROKEN, says)


def cut(folder: Path, share: float, **profile: object) -> Path:
    path = tif(folder, reflectance(5, 300, 300), **profile)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def header(width: int, height: int, *, rows_per_strip: int, strips: int = 1, bits: int = 16) -> bytes:
    """A little-endian TIFF header of any size, whose strips lie beyond the end of the file."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, strips, 4000), (277, 3, 1, 1), (278, 4, 1, rows_per_strip), (279, 4, strips, 4000),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 400


# Not there, not a file, not a raster.


@broken("does not exist")
def missing(folder: Path) -> Path:
    return folder / "nowhere.tif"


@broken("a directory")
def directory(folder: Path) -> Path:
    (folder / "scene.tif").mkdir()
    return folder / "scene.tif"


@broken("link to a file that is not there")
def broken_link(folder: Path) -> Path:
    (folder / "a.tif").symlink_to(folder / "gone.tif")
    return folder / "a.tif"


@broken("a link to a file")
def link_to_itself(folder: Path) -> Path:
    (folder / "a.tif").symlink_to(folder / "a.tif")
    return folder / "a.tif"


@broken("no regular file")
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.tif")
    return folder / "a.tif"


@broken("is empty")
def zero_bytes(folder: Path) -> Path:
    (folder / "a.tif").touch()
    return folder / "a.tif"


@broken("cannot be opened")
def text(folder: Path) -> Path:
    (folder / "a.tif").write_text("not a raster, whatever its name says\n" * 20)
    return folder / "a.tif"


@broken("cannot be opened")
def binary_noise(folder: Path) -> Path:
    (folder / "a.tif").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "a.tif"


@broken("cannot be opened")
def magic_only(folder: Path) -> Path:
    (folder / "a.tif").write_bytes(b"II*\0")
    return folder / "a.tif"


@broken("zip archive")
def zip_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.write(tif(folder), "a.tif")
    return Path(shutil.move(folder / "b.zip", folder / "zipped.tif"))


@broken("a.tif.gz")
def gzipped(folder: Path) -> Path:
    path = folder / "a.tif.gz"
    path.write_bytes(gzip.compress(tif(folder).read_bytes()))
    return path


@broken("cannot be")
def geojson(folder: Path) -> Path:
    (folder / "a.tif").write_text('{"type": "FeatureCollection", "features": []}')
    return folder / "a.tif"


# Cut short and corrupted.


@broken("cannot be opened")
def cut_in_the_header(folder: Path) -> Path:
    return cut(folder, 0.0001)


@broken("a.tif")
def cut_in_the_pixels(folder: Path) -> Path:
    return cut(folder, 0.6)


@broken("a.tif")
def cut_before_the_last_block(folder: Path) -> Path:
    return cut(folder, 0.98)


@broken("a.tif")
def cut_compressed(folder: Path) -> Path:
    return cut(folder, 0.6, compress="DEFLATE", tiled=True, blockxsize=64, blockysize=64)


@broken("damaged or cut short")
def scrambled_block(folder: Path) -> Path:
    path = tif(folder, reflectance(5, 300, 300), compress="DEFLATE")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    return path


@broken("a.png")
def cut_png(folder: Path) -> Path:
    Image.fromarray(reflectance(3, 64, 64, "uint8").transpose(1, 2, 0)).save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:3000])
    return folder / "a.png"


@broken("a.tif")
def huge_size_little_data(folder: Path) -> Path:
    (folder / "a.tif").write_bytes(header(400_000, 400_000, rows_per_strip=1, strips=1))
    return folder / "a.tif"


@broken("a.tif")
def one_huge_block(folder: Path) -> Path:
    (folder / "a.tif").write_bytes(header(60_000, 60_000, rows_per_strip=60_000))
    return folder / "a.tif"


@broken("a.tif")
def sparse_and_huge(folder: Path) -> Path:
    profile = {"driver": "GTiff", "dtype": "uint16", "crs": "EPSG:32632", "transform": PLACE, "tiled": True}
    with rasterio.open(
        folder / "a.tif",
        "w",
        count=3,
        width=40_000,
        height=40_000,
        sparse_ok=True,
        bigtiff="yes",
        blockxsize=1024,
        blockysize=1024,
        **profile,
    ) as file:
        file.descriptions = NAMES[:3]
    return folder / "a.tif"


# Containers without an image.


@broken("cannot be opened")
def no_bands(folder: Path) -> Path:
    return vrt(folder, '<VRTDataset rasterXSize="4" rasterYSize="4"></VRTDataset>')


@broken("data sets inside it")
def subdatasets_only(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["one"], file["two"] = np.ones((8, 8)), np.ones((8, 8))
    return Path(shutil.move(folder / "a.h5", folder / "a.tif"))


@broken("a file that it is made of is missing or damaged")
def vrt_without_its_source(folder: Path) -> Path:
    return vrt(folder, band_of("gone.tif"))


@broken("a.vrt")
def vrt_of_itself(folder: Path) -> Path:
    return vrt(folder, band_of("a.vrt"))


@broken("cannot be opened")
def vrt_cut_short(folder: Path) -> Path:
    return vrt(folder, band_of("a.tif")[:120])


@broken("alpha band only")
def alpha_only(folder: Path) -> Path:
    path = tif(folder, reflectance(1, dtype="uint8"), names=None)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp.alpha]
    return path
