"""Folders and containers of other makers, made small to their published layout: each reads as what it is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import downloads
import h5py
import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin
from support import run

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import read_raster

SIDE = 24
POWER = np.random.default_rng(3).gamma(4, 0.02, (2, SIDE, SIDE)).astype("float32") * [[[1.0]], [[0.2]]]


def fact(capsys, *arguments) -> dict:
    return json.loads(run(capsys, "info", *arguments, "--json")[1])[0]


@pytest.mark.parametrize(
    ("product", "numbers", "names"),
    [
        ("L30", "B04 B05 B06 B09", ["red", "nir08", "swir16", "cirrus"]),
        ("S30", "B04 B05 B8A B10", ["red", "rededge1", "nir08", "cirrus"]),
    ],
)
def test_harmonized_landsat_sentinel(tmp_path, capsys, product, numbers, names):
    """Band 5 is near infrared of one and a red edge of the other; the Sentinel-2 product in the tags is what it was
    made from, and its offset is none of these numbers'."""
    tags = {"PRODUCT_URI": "S2A_MSIL1C_20230530T101601_N0509_R065_T32TQM_20230530T122001.SAFE"}
    stem = f"HLS.{product}.T32TQM.2023150T101601.v2.0"
    for i, number in enumerate([*numbers.split(), "Fmask", "SZA"]):
        values = downloads.numbers(i, SIDE, 1100).astype("int16")
        values[:, :2] = -9999
        if number == "Fmask":
            values = np.full((SIDE, SIDE), 64, "uint8")
            values[:6], values[:, :2] = 64 | 2, 255
        path = downloads.image(tmp_path / "x" / f"{stem}.{number}.tif", values, 30)
        with rasterio.open(path, "r+") as file:
            file.scales, file.nodata = (0.0001,), 255 if number == "Fmask" else -9999
            file.descriptions = (
                {"B8A": "NIR_Narrow", "B05": "NIR" if product == "L30" else "Red_Edge1"}.get(number, ""),
            )
            file.update_tags(**tags)
    made = calibrate(read_raster(tmp_path / "x"))
    assert made.sensor == "reflectance"
    assert list(made.bands) == names
    for i in range(4):
        expected = downloads.numbers(i, SIDE, 1100) * 1e-4
        np.testing.assert_allclose(made.data[i][made.valid], expected[made.valid], atol=1e-6)
    assert not made.valid[:6].any()
    assert not made.valid[:, :2].any()
    assert made.valid[6:, 2:].all()
    (one,) = read_raster(tmp_path / "x" / f"{stem}.{numbers.split()[1]}.tif").bands
    assert one == names[1]
    told = fact(capsys, tmp_path / "x" / f"{stem}.B04.tif")
    assert (told["taken for"], told["acquired"]) == ("reflectance", "2023-05-30T10:16:01")
    assert product in " ".join(told["why"])


@pytest.mark.parametrize("named", ["x.dim", "x.data", "."])
def test_beam_dimap(tmp_path, capsys, named):
    """Scale, unit and time stand in SNAP's header alone; the folder of files leads to it."""
    rows = []
    db = 10 * np.log10(POWER)
    for i, (name, values) in enumerate({"Sigma0_VH_db": db[1], "Sigma0_VV_db": db[0]}.items()):
        path = tmp_path / "x.data" / f"{name}.img"
        path.parent.mkdir(exist_ok=True)
        shape = {"count": 1, "height": SIDE, "width": SIDE, "dtype": "float32", "crs": "EPSG:32632"}
        with rasterio.open(path, "w", driver="ENVI", transform=from_origin(600000, 5100000, 10, 10), **shape) as file:
            file.write(values, 1)
        rows.append((i, name))
    described = "".join(
        f"<Spectral_Band_Info><BAND_INDEX>{i}</BAND_INDEX><BAND_NAME>{name}</BAND_NAME><PHYSICAL_UNIT>intensity_db"
        "</PHYSICAL_UNIT><SCALING_FACTOR>1.0</SCALING_FACTOR><SCALING_OFFSET>0.0</SCALING_OFFSET><NO_DATA_VALUE_USED>true"
        "</NO_DATA_VALUE_USED><NO_DATA_VALUE>0.0</NO_DATA_VALUE></Spectral_Band_Info>"
        for i, name in [*rows, (2, "Sigma0_ratio")]
    )
    files = "".join(
        f'<Data_File><DATA_FILE_PATH href="x.data/{name}.hdr"/><BAND_INDEX>{i}</BAND_INDEX></Data_File>'
        for i, name in rows
    )
    (tmp_path / "x.dim").write_text(
        "<Dimap_Document><Dataset_Id><DATASET_NAME>S1A_Orb_TC</DATASET_NAME></Dataset_Id><Production>"
        "<PRODUCT_SCENE_RASTER_START_TIME>30-MAY-2023 05:23:45.123456</PRODUCT_SCENE_RASTER_START_TIME></Production>"
        f"<Data_Access>{files}</Data_Access><Image_Interpretation>{described}</Image_Interpretation></Dimap_Document>"
    )
    made = calibrate(read_raster(tmp_path / named, ("VV", "VH")))
    assert made.sensor == "s1"
    np.testing.assert_allclose(made.data, db, atol=1e-4)
    assert "SAR scale dB: band unit dB" in made.notes
    assert fact(capsys, tmp_path / named)["acquired"] == "2023-05-30T05:23:45"
    (tmp_path / "alone").mkdir()
    (tmp_path / "x.dim").rename(tmp_path / "alone" / "x.dim")
    with pytest.raises(UserError, match=r"x\.dim names no band whose file is there"):
        read_raster(tmp_path / "alone" / "x.dim")


def with_snap_tag(path: Path, names: list[str]) -> Path:
    """A TIFF file with SNAP's header in its private tag: the directory once more, at the end, one entry longer."""
    listed = "".join(f"<BAND_NAME>{name}</BAND_NAME>" for name in names)
    text = f"<?xml version='1.0' encoding='ISO-8859-1'?><Dimap_Document>{listed}</Dimap_Document>".encode() + b"\0"
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    end = at + 2 + 12 * count
    entry = struct.pack("<HHII", 65000, 2, len(text), len(data))
    directory = struct.pack("<H", count + 1) + data[at + 2 : end] + entry + data[end : end + 4]
    data += text + b"\0" * ((len(data) + len(text)) % 2)
    data[4:8] = struct.pack("<I", len(data))
    path.write_bytes(data + directory)
    return path


def test_geotiff_by_snap(make_tif):
    """It writes VH first, and names the bands where GDAL does not look; without names the stronger one is noticed."""
    turned = POWER[::-1].astype("float32")
    with pytest.raises(UserError, match=r"second one is \d\.\d dB stronger than its first.*--sar-bands VH VV"):
        calibrate(read_raster(make_tif("a.tif", turned)))
    path = with_snap_tag(make_tif("b.tif", turned), ["Sigma0_VH", "Sigma0_VV"])
    made = calibrate(read_raster(path))
    assert made.bands == ("VH", "VV")
    np.testing.assert_allclose(made.band("VV"), 10 * np.log10(POWER[0]), atol=1e-4)


def test_nisar_gcov(tmp_path):
    path = tmp_path / "NISAR_L2_PR_GCOV_002_030_A_019_2005_DHDH_A_20230530T172217.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("science/LSAR/GCOV/grids/frequencyA")
        for name, centres in (("x", 600005 + 10 * np.arange(SIDE)), ("y", 5099995 - 10 * np.arange(SIDE))):
            axis = group.create_dataset(f"{name}Coordinates", data=centres.astype(float))
            axis.make_scale(f"{name}Coordinates")
            axis.attrs["standard_name"] = np.bytes_(f"projection_{name}_coordinate")
            axis.attrs["units"] = np.bytes_("meter")
        place = group.create_dataset("projection", data=np.uint32(32632))
        place.attrs["spatial_ref"] = np.bytes_(CRS.from_epsg(32632).to_wkt())
        place.attrs["grid_mapping_name"] = np.bytes_("transverse_mercator")
        for name, values in (("HHHH", POWER[0]), ("HVHV", POWER[1]), ("numberOfLooks", POWER[0] * 0 + 1)):
            data = group.create_dataset(name, data=values.astype("float32"))
            data.attrs["grid_mapping"] = np.bytes_("projection")
            for dimension, axis in zip(data.dims, "yx", strict=True):
                dimension.attach_scale(group[f"{axis}Coordinates"])
    made = calibrate(read_raster(path))
    assert (made.sensor, made.bands, made.crs) == ("sar_l", ("HH", "HV"), CRS.from_epsg(32632))
    assert made.transform == from_origin(600000, 5100000, 10, 10)
    np.testing.assert_allclose(made.data, 10 * np.log10(POWER), atol=1e-4)


def test_a_variable_that_is_no_band_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "CSKS1_DGM_B_HI_05_HH_RD_SF_20230530052345.h5"
    with h5py.File(path, "w") as file:
        file.attrs["Mission ID"] = np.bytes_("CSK")
        file.attrs["Calibration Constant"] = 6.5e18  # one factor of several: no calibration by itself
        for name in ("MBI", "QLK"):
            file.create_dataset(f"S01/{name}", data=np.rint(np.sqrt(POWER[0]) * 800).astype("uint16"))
    with pytest.raises(UserError, match="none named after a band") as caught:
        read_raster(path)
    name = str(caught.value).partition("(")[2].partition(",")[0]
    assert name.endswith("//S01/MBI")
    images = load_images({"sar": name}, SensorConfig())
    assert any("levels are relative" in note for note in images.notes)


@pytest.mark.parametrize(
    ("files", "sensor", "bands"),
    [
        (["iw-vv.rtc.tiff", "iw-vh.rtc.tiff"], "s1", {"VV", "VH"}),
        (["N46E010_20_sl_HH_F02DAR.tif", "N46E010_20_sl_HV_F02DAR.tif", "N46E010_20_linci_F02DAR.tif"], "sar_l", None),
        (["imagery_HH.tif", "imagery_HV.tif"], "sar_x", {"HH", "HV"}),
        ([f"SENTINEL2A_x_T32TQM_C_V3-1_{c}_{b}.tif" for b in ("B2", "B3") for c in ("FRE", "SRE")], "s2_l2a", None),
        ([f"2023_Sentinel-2_L1C_{b}_(Raw).tiff" for b in ("B02", "B03")], "s2_l1c", {"B02", "B03"}),
        ([f"LE07_L2SP_193028_20020601_20200901_02_T1_{b}.TIF" for b in ("SR_B1", "SR_B3", "SR_B4", "ST_B6")],
         "landsat_l2", {"SR_B2", "SR_B4", "SR_B5", "ST_B10"}),
    ],
)  # fmt: skip
def test_folders_by_the_names_of_their_files(tmp_path, files, sensor, bands):
    for i, file in enumerate(files):
        downloads.image(tmp_path / "x" / file, downloads.numbers(i, SIDE, 8000), 30)
    raw = read_raster(tmp_path / "x")
    assert raw.sensor == sensor
    assert bands is None or set(raw.bands) == bands
    if sensor == "sar_l":  # DN squared less 83 dB
        made = calibrate(raw)
        np.testing.assert_allclose(made.band("HV"), 20 * np.log10(downloads.numbers(1, SIDE, 8000)) - 83, atol=1e-3)
    elif "FRE" in files[0]:
        assert not any("SRE" in file for file in raw.product.xml.split("<"))
    elif "Raw" in files[0]:  # from 0 to 65535, and the offset is applied
        np.testing.assert_allclose(calibrate(raw).data[0], downloads.numbers(0, SIDE, 8000) / 65535, atol=1e-6)


def test_band_files_by_erdas(tmp_path, make_tif):
    for name in ("B02", "B03", "B04"):
        make_tif(f"{name}.img", downloads.numbers(1, SIDE)[None], driver="HFA")
    assert read_raster(tmp_path).sensor == "s2_l2a"


def test_airbus_product(tmp_path):
    """The header joins the tiles; red comes first in Pléiades's files."""
    folder = tmp_path / "order" / "IMG_PHR1A_MS_001"
    values = np.stack([downloads.numbers(i, SIDE, 200) for i in range(4)])
    shape = {"count": 4, "height": SIDE, "width": SIDE, "dtype": "uint16", "crs": "EPSG:32632"}
    folder.mkdir(parents=True)
    image = folder / "IMG_PHR1A_MS_202305301016012_ORT_C_R1C1.TIF"
    with rasterio.open(image, "w", driver="GTiff", transform=from_origin(600000, 5100000, 2, 2), **shape) as file:
        file.write(values)
    (folder / "DIM_PHR1A_MS_202305301016012_ORT_C.XML").write_text(
        '<Dimap_Document><Metadata_Identification><METADATA_FORMAT version="2.15">DIMAP</METADATA_FORMAT>'
        "</Metadata_Identification><Raster_Data><Data_Access><DATA_FILE_FORMAT>image/tiff</DATA_FILE_FORMAT><Data_Files>"
        f'<Data_File tile_R="1" tile_C="1"><DATA_FILE_PATH href="{image.name}"/></Data_File></Data_Files></Data_Access>'
        f"<Raster_Dimensions><NROWS>{SIDE}</NROWS><NCOLS>{SIDE}</NCOLS><NBANDS>4</NBANDS><Tile_Set><NTILES>1</NTILES>"
        f'<Regular_Tiling><NTILES_SIZE nrows="{SIDE}" ncols="{SIDE}"/><NTILES_COUNT ntiles_R="1" ntiles_C="1"/>'
        "</Regular_Tiling></Tile_Set></Raster_Dimensions><Raster_Encoding><DATA_TYPE>INTEGER</DATA_TYPE><NBITS>16</NBITS>"
        "<SIGN>UNSIGNED</SIGN></Raster_Encoding></Raster_Data></Dimap_Document>"
    )
    for path in (tmp_path / "order", folder, next(folder.glob("*.XML")), image):
        raw = read_raster(path)
        assert (raw.sensor, raw.bands, raw.crs) == ("vhr", ("R", "G", "B", "N"), CRS.from_epsg(32632))
        np.testing.assert_array_equal(raw.data, values)


def test_pictures_of_16_bits_and_rasters_in_a_geopackage(tmp_path, make_tif):
    deep = make_tif("deep.png", np.stack([downloads.numbers(i, SIDE, 1100) for i in range(3)]), driver="PNG")
    with pytest.raises(UserError, match=r"deep\.png .* from no known sensor"):
        load_images({"optical": deep}, SensorConfig())
    assert calibrate(read_raster(deep), "reflectance").data.max() < 1
    colours = downloads.numbers(1, 256, 0).astype("uint8")[None].repeat(3, 0)
    images = load_images(
        {"optical": make_tif("p.gpkg", colours, driver="GPKG", crs="EPSG:3857", TILE_FORMAT="PNG")}, SensorConfig()
    )
    np.testing.assert_array_equal(images.pictures["optical"][0], np.moveaxis(colours, 0, -1))
    make_tif("e.img", colours, driver="ENVI")
    with pytest.raises(UserError, match=r"e\.hdr is the header of an ENVI image; give the image itself"):
        read_raster(tmp_path / "e.hdr")
