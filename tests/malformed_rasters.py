"""Rasters that are broken in every way we could think of, and odd ones that must work; made on the spot.

``BROKEN`` maps a name to (maker, words of the sentence that refuses it); ``ODD`` to a maker. A maker gets a folder and
returns the path of an optical image.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC

Maker = Callable[[Path], Path]
NAMES = ("B02", "B03", "B04", "B08", "B11")
PLACE = Affine(10, 0, 500000, 0, -10, 5000000)
BROKEN: dict[str, tuple[Maker, str]] = {}
ODD: dict[str, Maker] = {}


def broken(says: str) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        BROKEN[maker.__name__] = maker, says
        return maker

    return add


def odd(maker: Maker) -> Maker:
    ODD[maker.__name__] = maker
    return maker


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


def cut(folder: Path, share: float, **profile: object) -> Path:
    path = tif(folder, reflectance(5, 300, 300), **profile)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def vrt(folder: Path, text: str, name: str = "a.vrt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def band_of(source: str, size: int = 48) -> str:
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><VRTRasterBand dataType="UInt16" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


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


@broken("not an 8-bit picture")
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


# Odd, but right.


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
