"""Products as they are downloaded: each reads as the raster that its bands make; what is broken is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import downloads
import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from support import run

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_images, read_header
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.geo.control import map_grid, place_of
from earthmind_jax.geo.opening import file_stamp
from earthmind_jax.geo.product_bands import band_of
from earthmind_jax.geo.radiometry import calibrate
from earthmind_jax.geo.raster import open_raster, read_raster
from earthmind_jax.geo.stac import stac_item
from earthmind_jax.infer.scene_read import SceneReader


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Sound products, made once; nothing of them may be changed."""
    folder = tmp_path_factory.mktemp("shelf")
    made = {"s2": downloads.sentinel2(folder), "s1": downloads.sentinel1(folder)}
    return made | {"l2": downloads.landsat(folder, 2), "l1": downloads.landsat(folder, 1)}


def reflectance(stored: np.ndarray, offset: float = -1000) -> np.ndarray:
    return (stored.astype("float32") + np.float32(offset)) * np.float32(1e-4)


def forms(safe: Path, tmp_path: Path) -> list[Path]:
    """The ways in which one product may be named."""
    metadata = next(iter(sorted(safe.glob("MTD_*.xml")) + sorted(safe.glob("manifest.safe"))))
    inside = downloads.moved(safe, tmp_path / "unzipped" / safe.name).parent
    return [safe, downloads.zipped(safe, tmp_path / "p.zip"), metadata, inside]


def test_sentinel2_level_2a(shelf, tmp_path):
    safe, stored = shelf["s2"]
    wanted = {band: np.kron(values, np.ones((n, n))) for band, values in stored.items()
              for n in (downloads.SIDE // len(values),)}  # fmt: skip
    granule = next((safe / "GRANULE").iterdir())
    (granule / "MTD_TL.xml").write_text("<n1:Level-2A_Tile_ID/>")
    for path in (*forms(safe, tmp_path), granule, granule / "IMG_DATA" / "R20m", granule / "MTD_TL.xml"):
        raw = read_raster(path, ("B04", "B8A", "B11", "B01"))
        assert raw.sensor == "s2_l2a"
        assert raw.transform == from_origin(downloads.WEST, downloads.NORTH, 10, 10)
        assert raw.crs == CRS.from_epsg(32632)
        assert raw.path == str(path)
        for band, values in zip(raw.bands, raw.data, strict=True):
            np.testing.assert_array_equal(values, wanted[band])
        np.testing.assert_array_equal(raw.valid, np.kron(stored["SCL"], np.ones((2, 2))) != 9)
        made = calibrate(raw)
        np.testing.assert_allclose(made.data[1][made.valid], reflectance(wanted["B8A"])[made.valid], atol=1e-6)
        notes = " ".join(made.notes)
        assert "offset -1000: tag BOA_ADD_OFFSET" in notes
        assert "B8A_20m.jp2" in notes
        assert "B11_20m.jp2" in notes
        assert "B05" not in notes.partition("read from")[2]
    window = Window(13, 31, 40, 29)
    part = read_raster(safe, ("B11", "B02"), window)
    np.testing.assert_array_equal(part.data[0], wanted["B11"][31:60, 13:53])
    np.testing.assert_array_equal(part.data[1], stored["B02"][31:60, 13:53])


@pytest.mark.parametrize(
    ("baseline", "offsets", "dark", "each"),
    [
        ("02.14", None, 40, dict.fromkeys(("B02", "B08"), 0)),
        ("04.00", -1000, 1050, dict.fromkeys(("B02", "B08"), -1000)),
        ("05.10", {b: -1000 if b != "B08" else -700 for b in downloads.L1C}, 1050, {"B02": -1000, "B08": -700}),
        ("99.99", None, 1050, dict.fromkeys(("B02", "B08"), 0)),
    ],
)
def test_sentinel2_level_1c_and_its_offsets(tmp_path, capsys, baseline, offsets, dark, each):
    safe, stored = downloads.sentinel2(tmp_path, "1C", baseline=baseline, offsets=offsets, side=24, dark=dark)
    made = calibrate(read_raster(safe, ("B02", "B08", "B10")))
    assert made.sensor == "s2_l1c"
    for band, offset in each.items():
        np.testing.assert_allclose(made.band(band), reflectance(stored[band], offset), atol=1e-6)
    fact = json.loads(run(capsys, "info", safe, "--json")[1])[0]
    assert fact["taken for"] == "s2_l1c"
    assert fact.get("processing_baseline") == (None if baseline == "99.99" else baseline)
    assert fact["acquired"] == "2023-06-01T10:16:01"
    assert len(fact["bands"]) == 13


def test_the_long_names_of_before_december_2016(tmp_path):
    """Metadata and granules are named in full, and a product has several granules."""
    safe, stored = downloads.sentinel2(tmp_path, "1C", baseline="02.02", offsets=None, side=24, dark=40)
    old = tmp_path / "S2A_OPER_PRD_MSIL1C_PDMC_20160601T102030_R022_V20160601T101601_20160601T101601.SAFE"
    safe.rename(old)
    stem = "S2A_OPER_MSI_L1C_TL_EPA__20160601T101601_A004930_{}"
    (old / "MTD_MSIL1C.xml").rename(old / "S2A_OPER_MTD_SAFL1C_PDMC_20160601T102030_R022_V20160601.xml")
    first = old / "GRANULE" / f"{stem.format('T32TQM')}_N02.02"
    next((old / "GRANULE").iterdir()).rename(first)
    for file in (first / "IMG_DATA").iterdir():
        file.rename(file.with_name(f"{stem.format('T32TQM')}_{file.stem[-3:]}.jp2"))
    np.testing.assert_allclose(calibrate(read_raster(old, ("B03",))).data[0], reflectance(stored["B03"], 0), atol=1e-6)
    second = old / "GRANULE" / f"{stem.format('T32TPM')}_N02.02"
    shutil.copytree(first, second)
    with pytest.raises(UserError, match=r"holds 2 granules \(.*T32TPM_N02.02, .*name one, such as .*GRANULE/.*T32TPM"):
        read_raster(old)
    assert read_raster(second, ("B03",)).path == str(second)


def test_sentinel1_is_calibrated_by_its_table(shelf, tmp_path):
    safe, stored = shelf["s1"]
    lines, pixels = np.mgrid[: downloads.SIDE + 12, : downloads.SIDE + 12]
    for path in forms(safe, tmp_path):
        for window in (None, Window(11, 40, 30, 21)):
            made = calibrate(read_raster(path, ("VV", "VH"), window))
            cut = np.s_[:, :] if window is None else np.s_[40:61, 11:41]
            for band in ("VV", "VH"):
                known = made.valid & (stored[band][cut] > 0)
                wanted = 20 * np.log10(np.maximum(stored[band], 1) / downloads.amplitude(lines, pixels))[cut]
                np.testing.assert_allclose(made.band(band)[known], wanted[known], atol=2e-4)
            assert "calibration table (3 x 4 values)" in " ".join(made.notes)
    with open_raster(safe) as dataset:
        grid = map_grid(place_of(dataset))
    assert grid.crs == CRS.from_epsg(32632)
    assert abs(grid.transform.c - (downloads.WEST - 60)) < 10
    told = calibrate(read_raster(safe, ("VV",)), calibration=250)
    np.testing.assert_allclose(told.data[0], 20 * np.log10(np.maximum(stored["VV"], 1) / 250), atol=1e-3)


def test_landsat(shelf, tmp_path):
    for level, tar in (("l2", True), ("l1", False)):
        scene, stored = shelf[level]
        mtl = next(scene.glob("*_MTL.txt"))
        packed = downloads.tarred(scene, "./") if tar else downloads.zipped(scene, tmp_path / "s.zip")
        for path in (scene, packed, mtl):
            red, hot = ("SR_B4", "ST_B10") if level == "l2" else ("TOA_B4", "BT_B10")
            made = calibrate(read_raster(path, (red, hot)))
            factor, term = (2.75e-5, -0.2) if level == "l2" else (2e-5 / np.sin(np.radians(60)),) * 2
            term = term if level == "l2" else -0.1 / np.sin(np.radians(60))
            clear = stored["QA_PIXEL"] == 21824
            np.testing.assert_array_equal(made.valid, clear)
            np.testing.assert_allclose(made.band(red)[clear], (stored[red] * factor + term)[clear], atol=1e-6)
            kelvin = stored[hot] * 0.00341802 + 149
            if level == "l1":
                kelvin = 1321.0789 / np.log(774.8853 / (3.342e-4 * stored[hot] + 0.1) + 1)
            np.testing.assert_allclose(made.band(hot)[clear], kelvin[clear], rtol=1e-5)
    images = load_images({"optical": shelf["l2"][0]}, SensorConfig())
    assert list(images.pictures["optical"][0]) == ["B04", "B03", "B02"]  # thermal is not asked for
    assert "SR_B10" not in " ".join(images.notes)


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("B02.tif", "B02"), ("T32TQM_20230601T101601_B8A_20m.jp2", "B8A"), ("S2A_x_N9999_T32_1_2_B01.tif", "B01"),
        ("LC08_L2SP_193028_20230601_20230607_02_T1_SR_B4.TIF", "SR_B4"), ("swir16.tif", "swir16"), ("VV.tif", "VV"),
        ("scene_VH_db.tif", "VH"), ("HLS.S30.T32TQM.2023152T101601.v2.0.B12.tif", "B12"), ("SCL.tif", "SCL"),
        ("x_nir08.tif", "nir08"), ("README.tif", None), ("agricultural00.tif", None), ("near_a_red.tif", None),
    ],
)  # fmt: skip
def test_band_of_a_file_name(name, band):
    assert band_of(name) == band


def test_folders_of_band_files(tmp_path):
    """Catalogues' asset names, in folders and archives, coarser bands and a classification beside finer ones."""
    a = downloads.numbers(1, 24)
    for folder, names, sensor in (
        ("earthsearch", ("red", "green", "blue", "nir08", "scl"), "s2_l2a"),
        ("planetary", ("red", "green", "blue", "nir08", "qa_pixel"), "landsat_l2"),
        ("plain", ("B04", "B03", "B02", "B8A", "SCL"), "s2_l2a"),
    ):
        place = tmp_path / folder
        for i, name in enumerate(names):
            coarse = 2 if i > 2 else 1
            values = a[::coarse, ::coarse] * np.uint16(8 if sensor == "landsat_l2" else 1)
            if i == 4:
                values = np.full((12, 12), 22280 if name == "qa_pixel" else 9, "uint16")
                values[3:] = 21824 if name == "qa_pixel" else 4
            downloads.image(place / f"{name}.tif", values, 10 * coarse)
        downloads.image(place / "visual.tif", a.astype("uint8"), 10)
        for path in (place, downloads.zipped(place, tmp_path / f"{folder}.zip")):
            raw = read_raster(path)
            assert raw.sensor == sensor
            assert raw.shape == (24, 24)
            np.testing.assert_array_equal(raw.valid, np.arange(24)[:, None] * np.ones(24) >= 6)
            images = load_images({"optical": path}, SensorConfig())
            assert list(images.pictures["optical"][0]) == ["B04", "B03", "B02"]
            assert images.crs == CRS.from_epsg(32632)
    radar = tmp_path / "radar"
    power = np.random.default_rng(0).gamma(4, 0.02, (24, 24)).astype("float32")
    downloads.image(radar / "VV.tif", power, 10)
    downloads.image(radar / "VH.tif", power / 4, 10)
    pair = load_pair(tmp_path / "plain", radar, optical_bands=("B04",), sar_bands=("VV", "VH"))
    np.testing.assert_allclose(pair.sar.band("VH"), 10 * np.log10(power / 4), atol=1e-4)
    name = "S1A_IW_20230601T052345_DVP_RTC10_G_gpuned_8F1A"  # as the Alaska Satellite Facility packs it, renamed
    for band in ("VV", "inc_map", "dem"):
        downloads.image(tmp_path / "asf" / name / f"{name}_{band}.tif", power * 9, 10)
    raw = calibrate(read_raster(downloads.zipped(tmp_path / "asf", tmp_path / "mine.zip")))
    assert raw.bands == ("VV",)
    assert "SAR scale linear: the product name says so (RTC10_G_gpuned)" in raw.notes
    downloads.image(radar / "VV_30m.tif", power[:8, :8], 30)  # finer pixels win, whatever else there is
    assert read_raster(radar).shape == (24, 24)


def test_a_band_that_covers_a_part_is_invalid_elsewhere(tmp_path):
    a = downloads.numbers(1, 24)
    downloads.image(tmp_path / "x" / "B04.tif", a, 10)
    downloads.image(tmp_path / "x" / "B11.tif", a[:10, :12], 20)
    raw = read_raster(tmp_path / "x", ("B04", "B11"))
    np.testing.assert_array_equal(raw.valid[:, 0], np.arange(24) < 20)
    assert any("B11 covers 83.3% of B04" in note for note in raw.notes)


def test_every_road_reads_a_product_as_its_stack(shelf, tmp_path):
    """Images in memory, and a scene strip by strip, are those of a GeoTIFF with the same bands and the same facts."""
    safe, stored = shelf["s2"]
    radar, _ = shelf["s1"]
    names = ("B04", "B03", "B02", "SCL")
    path = tmp_path / "stack.tif"
    shape = {"count": 4, "height": downloads.SIDE, "width": downloads.SIDE, "dtype": "uint16", "crs": "EPSG:32632"}
    place = from_origin(downloads.WEST, downloads.NORTH, 10, 10)
    with rasterio.open(path, "w", driver="GTiff", transform=place, **shape) as file:
        for i, name in enumerate(names, 1):
            file.write(np.kron(stored[name], np.ones((downloads.SIDE // len(stored[name]),) * 2)).astype("uint16"), i)
            file.set_band_description(i, name)
        file.update_tags(BOA_ADD_OFFSET="-1000", PRODUCT_START_TIME="2023-06-01T10:16:01")
    archive = downloads.zipped(safe, tmp_path / "p.zip")
    sensors = SensorConfig()
    first, second = (load_images({"optical": p, "sar": radar}, sensors) for p in (path, archive))
    for sensor in ("optical", "sar"):
        (one, valid), (two, other) = first.pictures[sensor], second.pictures[sensor]
        np.testing.assert_array_equal(valid, other)
        for band in one:
            np.testing.assert_array_equal(one[band], two[band])
    assert (first.transform, first.crs) == (second.transform, second.crs)
    assert read_header(archive) == read_header(path)
    strips = []
    for source in (path, archive):
        (rows,) = SceneReader({"optical": source, "sar": radar}, sensors).rows(iter([(0, downloads.SIDE)]))
        strips.append(rows)
    for sensor in ("optical", "sar"):
        for one, two in zip(strips[0].frames[sensor][0], strips[1].frames[sensor][0], strict=True):
            np.testing.assert_array_equal(one, two)


def test_provenance_names_the_product_and_its_files(shelf, tmp_path):
    safe, radar = shelf["s2"][0], shelf["s1"][0]
    inputs = {"optical": downloads.zipped(safe, tmp_path / safe.with_suffix(".zip").name), "sar": radar}
    pair = load_pair(inputs["optical"], radar, optical_bands=("B04",), sar_bands=("VV",))
    item = stac_item("water", pair.grid, {}, tmp_path, software={}, inputs=inputs, notes=pair.notes)
    assert [Path(link["href"]).name for link in item["links"]] == [inputs["optical"].name, radar.name]
    assert [link.get("type") for link in item["links"]] == ["application/zip", None]
    assert item["properties"]["sar:product_type"] == "GRD"
    assert item["properties"]["start_datetime"] == "2023-06-01T05:23:45Z"
    assert item["properties"]["end_datetime"] == "2023-06-01T10:16:01Z"
    lineage = item["properties"]["processing:lineage"]
    for part in (str(inputs["optical"]), "_B04_10m.jp2", "_SCL_20m.jp2", str(radar), "-grd-vv-"):
        assert part in lineage
    assert "_B03_10m.jp2" not in lineage


def test_variables_of_netcdf_and_hdf5(tmp_path):
    path, values = tmp_path / "cube.nc", downloads.numbers(2, 20)
    with h5py.File(path, "w") as file:
        for name, centres in (("x", 600005 + 10 * np.arange(20.0)), ("y", 5099995 - 10 * np.arange(20.0))):
            axis = file.create_dataset(name, data=centres)
            axis.make_scale(name)
            axis.attrs["standard_name"] = np.bytes_(f"projection_{name}_coordinate")
            axis.attrs["units"] = np.bytes_("m")
        crs = file.create_dataset("crs", data=0)
        crs.attrs["spatial_ref"] = np.bytes_(CRS.from_epsg(32632).to_wkt())
        for i, name in enumerate(("B02", "B03", "B04")):
            band = file.create_dataset(name, data=values + np.uint16(i))
            band.attrs["grid_mapping"] = np.bytes_("crs")
            band.dims[0].attach_scale(file["y"])
            band.dims[1].attach_scale(file["x"])
    raw = read_raster(path)
    assert (raw.bands, raw.sensor) == (("B02", "B03", "B04"), "s2_l2a")
    np.testing.assert_array_equal(raw.data[2], values + 2)
    assert raw.transform == from_origin(600000, 5100000, 10, 10)
    one = read_raster(f'NETCDF:"{path}":B03')
    np.testing.assert_array_equal(one.data[0], values + 1)
    assert calibrate(one).decided["offset"] == -1000  # by the whole scene, of a window too
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/first"], file["group/second"] = values, values
    with pytest.raises(UserError, match=r"2 data sets inside it, none named after a band \(HDF5:.*//group/first"):
        read_raster(tmp_path / "a.h5")
    for name in (f'HDF5:"{tmp_path}/a.h5"://group/first', Path(f'HDF5:"{tmp_path}/a.h5"://group/first')):
        np.testing.assert_array_equal(read_raster(name).data[0], values)
    with pytest.raises(UserError, match=r"b\.nc does not exist"):
        read_raster(f'NETCDF:"{tmp_path}/b.nc":B03')


@pytest.mark.parametrize(("ending", "world"), [("png", "pgw"), ("jpg", "JGW"), ("jpeg", "wld")])
def test_pictures_keep_their_place(tmp_path, ending, world):
    path = tmp_path / f"ortho.{ending}"
    Image.fromarray(downloads.numbers(3, 24)[..., None].repeat(3, -1).astype("uint8")).save(path)
    assert load_images({"optical": path}, SensorConfig()).crs is None
    (tmp_path / f"ortho.{world}").write_text("0.5\n0\n0\n-0.5\n600000.25\n5099999.75\n")
    (tmp_path / "ortho.prj").write_text(CRS.from_epsg(25832).to_wkt(version="WKT1_ESRI"))
    images = load_images({"optical": path}, SensorConfig())
    assert images.transform == from_origin(600000, 5100000, 0.5, 0.5)
    assert "25832" in images.crs.to_string() or "ETRS" in images.crs.to_wkt()
    picture = images.pictures["optical"][0]
    np.testing.assert_array_equal(picture, np.asarray(Image.open(path)))
    if ending == "png":
        Image.open(path).quantize(16).save(path)
        images = load_images({"optical": path}, SensorConfig())
        np.testing.assert_array_equal(images.pictures["optical"][0], np.asarray(Image.open(path).convert("RGB")))
        with rasterio.open(tmp_path / "by_gdal.png", "w", driver="PNG", width=9, height=9, count=3, dtype="uint8",
                           crs="EPSG:32632", transform=from_origin(0, 0, 2, 2)) as dataset:  # fmt: skip
            dataset.write(np.ones((3, 9, 9), "uint8"))
        assert load_images({"optical": tmp_path / "by_gdal.png"}, SensorConfig()).crs == CRS.from_epsg(32632)
    for file in (path, tmp_path / f"ortho.{world}"):
        shutil.copy(file, file.with_stem("other"))
    (tmp_path / "other.prj").write_text("nonsense")
    with pytest.raises(UserError, match=r"other\.prj tells no coordinate reference system"):
        load_images({"optical": path.with_stem("other")}, SensorConfig())


@pytest.mark.parametrize("alpha", ["UNSPECIFIED", "NON-PREMULTIPLIED"])
def test_a_fourth_channel_is_near_infrared_or_alpha(make_tif, alpha):
    values = downloads.numbers(1, 24).astype("uint8")[None].repeat(4, 0)
    path = make_tif("m_4.tif", values, transform=from_origin(0, 0, 0.6, 0.6), photometric="RGB", alpha=alpha)
    raw = read_raster(path)
    if alpha == "UNSPECIFIED":
        assert (raw.bands, raw.sensor) == (("R", "G", "B", "N"), "vhr")
    else:
        assert (raw.bands, raw.sensor) == (("R", "G", "B"), "rgb8")


def test_a_change_inside_a_product_is_seen(tmp_path):
    """By the sample that decisions rest on, and by a scene that is to be continued."""
    for name, value in (("B02", 2000), ("B03", 3000)):
        downloads.image(tmp_path / "x" / f"{name}.tif", np.full((12, 12), value, "uint16"), 10)
    before, sample = file_stamp(tmp_path / "x"), read_raster(tmp_path / "x").scene_sample()
    assert sample.band("B03")[0] == 3000
    downloads.image(tmp_path / "x" / "B03.tif", np.full((12, 12), 500, "uint16"), 10)
    assert file_stamp(tmp_path / "x") != before
    assert read_raster(tmp_path / "x").scene_sample().band("B03")[0] == 500


def test_three_colours_in_a_folder_are_a_picture(tmp_path):
    for i, name in enumerate(("red", "green", "blue")):
        downloads.image(tmp_path / f"{name}.tif", np.full((12, 12), 40 * i + 20, "uint8"), 10)
    picture = load_images({"optical": tmp_path}, SensorConfig()).pictures["optical"][0]
    np.testing.assert_array_equal(picture[0, 0], (20, 60, 100))


def test_sentinel1_as_public_clouds_name_it(shelf, tmp_path):
    safe = downloads.moved(shelf["s1"][0], tmp_path / "S1A_IW_GRDH")
    for file in [*safe.rglob("*.tiff"), *safe.rglob("calibration-*.xml")]:
        head = "calibration-" if file.suffix == ".xml" else ""
        file.rename(file.with_name(f"{head}iw-{'vv' if '-vv-' in file.name else 'vh'}{file.suffix}"))
    raw = read_raster(safe)
    assert raw.bands == ("VV", "VH")
    assert sorted(raw.product.calibration) == ["VH", "VV"]
