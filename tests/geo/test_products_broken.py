"""Products that are cut short, incomplete, of another kind or made to harm: one sentence that names what is wrong."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import downloads
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Sound products, made once and copied before they are spoilt."""
    folder = tmp_path_factory.mktemp("shelf")
    return {"s2": downloads.sentinel2(folder), "s1": downloads.sentinel1(folder), "l2": downloads.landsat(folder)}


BROKEN = {}


def broken(of: str, says: str):
    def add(maker):
        BROKEN[maker.__name__] = of, maker, says
        return maker

    return add


@broken("s2", "no metadata (MTD_MSIL2A.xml or MTD_MSIL1C.xml)")
def no_metadata(safe: Path) -> None:
    (safe / "MTD_MSIL2A.xml").unlink()
    (safe / "manifest.safe").unlink()


@broken("s2", "is not XML that can be read")
def metadata_cut_short(safe: Path) -> None:
    file = safe / "MTD_MSIL2A.xml"
    file.write_text(file.read_text()[:900])


@broken("s2", "it has a document type")
def metadata_with_entities(safe: Path) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    (safe / "MTD_MSIL2A.xml").write_text(f"<?xml version='1.0'?>{laughs}<x>&b;</x>")


@broken("s2", "is <Level-3_User_Product>; of Sentinel-2, Level-1C and Level-2A")
def another_root(safe: Path) -> None:
    file = safe / "MTD_MSIL2A.xml"
    file.write_text(file.read_text().replace("Level-2A_User_Product", "Level-3_User_Product"))


@broken("s2", "is Level-1B; of Sentinel-2, Level-1C and Level-2A products are read")
def another_level(safe: Path) -> None:
    (safe / "MTD_MSIL2A.xml").rename(safe / "MTD_MSIL1B.xml")


@broken("s2", "has no band 'B04'")
def missing_band(safe: Path) -> None:
    for file in safe.rglob("*_B04_*"):
        file.unlink()


@broken("s2", "no band images below GRANULE/*/IMG_DATA")
def no_images(safe: Path) -> None:
    shutil.rmtree(safe / "GRANULE")


@broken("s2", "B04_10m.jp2 is damaged or cut short, its pixels cannot be read")
def image_cut_short(safe: Path) -> None:
    (file,) = safe.rglob("*_B04_10m.jp2")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@broken("s2", "B04_10m.jp2 cannot be opened as a GeoTIFF or JPEG 2000 file")
def image_of_nothing(safe: Path) -> None:
    (file,) = safe.rglob("*_B04_10m.jp2")
    file.write_bytes(b"")


@broken("s2", "holds 2 granules")
def two_granules(safe: Path) -> None:
    (one,) = (safe / "GRANULE").iterdir()
    shutil.copytree(one, one.with_name(one.name.replace("T32TQM", "T32TPM")))


@broken("s1", "single-look complex or other raw data (SLC)")
def complex_sar(safe: Path) -> None:
    for file in safe.rglob("*-grd-*"):
        file.rename(file.with_name(file.name.replace("-grd-", "-slc-")))


@broken("s1", "has no calibration of measurement/s1a-iw-grd-vv")
def no_calibration(safe: Path) -> None:
    next(safe.rglob("calibration-*-vv-*")).unlink()


@broken("s1", "has no calibration vectors")
def empty_calibration(safe: Path) -> None:
    next(safe.rglob("calibration-*-vv-*")).write_text("<calibration><adsHeader/></calibration>")


@broken("s1", "whose pixels and values give no calibration")
def calibration_of_zeros(safe: Path) -> None:
    file = next(safe.rglob("calibration-*-vh-*"))
    file.write_text(file.read_text().replace("<sigmaNought count='4'>", "<sigmaNought count='4'>-1 "))


@broken("s1", "has no GRD images")
def no_measurement(safe: Path) -> None:
    shutil.rmtree(safe / "measurement")


@broken("l2", "holds several scenes (LC08_L2SP_193028_20230601_20230607_02_T1, LC08_L2SP_193029_")
def two_scenes(scene: Path) -> None:
    for file in sorted(scene.glob("*SR_B4*")):
        shutil.copy(file, file.with_name(file.name.replace("193028", "193029")))


@broken("l2", "of Landsat 4 to 7 Level-2 is read")
def landsat_7(scene: Path) -> None:
    for file in sorted(scene.iterdir()):
        file.rename(file.with_name(file.name.replace("LC08_L2SP", "LE07_L1TP")))


@broken("l2", "is no Landsat MTL file: it does not tell SUN_ELEVATION")
def empty_mtl(scene: Path) -> None:
    next(scene.glob("*_MTL.txt")).write_text("GROUP = X\nEND\n")


@broken("l2", "but no band files")
def mtl_alone(scene: Path) -> None:
    for file in scene.glob("*.TIF"):
        file.unlink()


@broken("s2", "is a palette image")
def a_band_of_colours(safe: Path) -> None:
    (file,) = safe.rglob("*_B04_10m.jp2")
    file.unlink()
    tif = downloads.image(file.with_suffix(".tif"), np.ones((72, 72), "uint8"), 10)
    with rasterio.open(tif, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})


@broken("s2", "is in EPSG:32633 but")
def a_band_of_another_zone(safe: Path) -> None:
    (file,) = safe.rglob("*_B11_20m.jp2")
    downloads.image(file, np.ones((36, 36), "uint16"), 20, crs="EPSG:32633")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", "is a directory that is empty"),
        ("checkpoint", "is a checkpoint directory"),
        ("data_set", "is a directory without a product that is known here"),
        ("twice", "has two files of the band B02 (a_B02.tif, b_B02.tif)"),
        ("quality", "has a QA_PIXEL file, so B04.tif is Landsat's"),
        ("products", "holds 2 products (a.SAFE, b.SAFE)"),
        ("channels", "B02.tif has 3 channels"),
        ("apart", "are of different places"),
        ("sizes", "without a georeference in both give one size"),
        ("bomb.zip", "is packed to fill memory"),
        ("leads_out.zip", "a name that leads out of it"),
        ("cut.zip", "is no whole zip or tar file"),
        ("packed.tar", "is packed as a whole"),
        ("pictures.zip", "is an archive without a product that is known here"),
    ],
)
def test_folders_and_archives_of_other_things(tmp_path, name, says):
    path, a = tmp_path / name, downloads.numbers(1, 12)
    if not path.suffix:
        path.mkdir()
    band = partial(downloads.image, values=a, size=10)
    if name == "checkpoint":
        (path / "config.json").write_text("{}")
    elif name == "data_set":
        band(path / "train" / "forest_1.tif")
        band(path / "labels.tif")
    elif name == "twice":
        band(path / "a_B02.tif")
        band(path / "b_B02.tif")
    elif name == "quality":
        band(path / "B04.tif")
        band(path / "QA_PIXEL.tif")
    elif name == "products":
        band(path / "a.SAFE" / "x.tif")
        band(path / "b.SAFE" / "x.tif")
    elif name == "channels":
        with rasterio.open(path / "B02.tif", "w", driver="GTiff", count=3, height=9, width=9, dtype="uint8") as file:
            file.write(np.ones((3, 9, 9), "uint8"))
    elif name == "apart":
        band(path / "B02.tif")
        downloads.image(path / "B03.tif", a, 10)
        with rasterio.open(path / "B03.tif", "r+") as file:
            file.transform = from_origin(0, 0, 10, 10)
    elif name == "sizes":
        downloads.image(path / "B02.tif", a, 10, crs=None)
        downloads.image(path / "B03.tif", a[:9], 10, crs=None)
    elif name == "packed.tar":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(band(tmp_path / "x" / "B02.tif"), "B02.tif")
    elif name != "empty":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if name == "bomb.zip":
                with archive.open("B02.tif", "w") as file:
                    for _ in range(70):
                        file.write(bytes(1 << 20))
            archive.writestr("../B02.tif" if name == "leads_out.zip" else "a.png", "x" * 999)
        if name == "cut.zip":
            path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError) as error:
        load_images({"optical": path}, SensorConfig())
    assert says in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_products(shelf, tmp_path, name):
    of, spoil, says = BROKEN[name]
    path = downloads.moved(shelf[of][0], tmp_path / shelf[of][0].name)
    spoil(path)
    sensor = "sar" if of == "s1" else "optical"
    for given in (path, downloads.zipped(path, tmp_path / "p.zip")):
        with pytest.raises(UserError) as error:
            load_images({sensor: given}, SensorConfig())
        said = str(error.value)
        assert says in said
        assert str(given) in said
        assert "\n" not in said
