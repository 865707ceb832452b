"""Optical and infrared sensors: how their files are recognised, and what their numbers become."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from sensor_files import FINE, RNG, numbers, said

from earthmind_jax.errors import UserError
from earthmind_jax.geo.contents import Wanted
from earthmind_jax.geo.radiometry import SENSORS, calibrate
from earthmind_jax.geo.raster import read_raster


@pytest.mark.parametrize(
    ("dtype", "first", "step", "unit"),
    [("float32", 280.0, 0.5, "kelvin"), ("float32", -20.0, 0.5, "celsius"), ("uint16", 2000, 10, "counts")],
)
def test_infrared(make_tif, dtype, first, step, unit):
    ramp = (first + step * np.arange(101))[None, None, :].repeat(30, 1).astype(dtype)
    raster = calibrate(read_raster(make_tif("a.tif", ramp), sensor="infrared"))
    assert raster.unit == "display"
    assert raster.decided["unit"] == unit
    np.testing.assert_allclose(raster.data[0, 0], np.clip((np.arange(101) - 2) / 96 * 255, 0, 255), atol=1e-2)
    assert raster.valid.all()
    assert "percentile" in said(raster)


def test_infrared_by_name_and_fill_values(make_tif):
    array = np.linspace(285, 310, 1600, dtype=np.float32).reshape(1, 40, 40)
    array[0, 0], array[0, 1] = 0, -9999
    raster = calibrate(read_raster(make_tif("a.tif", array, names=["thermal"], units=["K"])))
    assert raster.sensor == "infrared"
    assert "kelvin (unit K)" in said(raster)
    assert not raster.valid[:2].any()
    assert raster.valid[2:].all()
    assert raster.data[0, 2].max() < 10  # the fill values do not make the rest bright


def test_surface_temperature_alone_is_a_picture(make_tif):
    raster = calibrate(read_raster(make_tif("a.tif", numbers(1, 40000, 45000), names=["ST_B10"])))
    assert raster.unit == "display"
    assert " K" in said(raster)


def test_colour_of_11_bits_is_stretched_by_the_scene(make_tif):
    array = numbers(4, 100, 2047, side=80)
    array[:, :8] = 0
    path = make_tif("a.tif", array, names=["red", "green", "blue", "nir"], transform=FINE)
    raster = calibrate(read_raster(path))
    assert (raster.sensor, raster.bands, raster.unit) == ("vhr", ("R", "G", "B", "N"), "display")
    assert not raster.valid[:8].any()
    assert raster.valid[8:].all()
    low, high = np.percentile(array[2, 8:].astype(float), (2, 98))
    np.testing.assert_allclose(raster.data[2, 8:], np.clip((array[2, 8:] - low) / (high - low), 0, 1) * 255, atol=1e-2)


def test_colour_interpretation_names_bands(make_tif):
    path = make_tif("a.tif", numbers(4, 1, 2047), photometric="RGB", transform=FINE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [*file.colorinterp[:3], rasterio.enums.ColorInterp.undefined]
    raster = read_raster(path)
    assert (raster.sensor, raster.bands) == ("vhr", ("R", "G", "B", "N"))
    assert "colour interpretation" in said(raster)


def test_coarse_colour_needs_its_sensor(make_tif):
    path = make_tif("a.tif", numbers(3), names=["red", "green", "blue"])
    with pytest.raises(UserError, match=r"no known sensor.*--sensor"):
        calibrate(read_raster(path))
    assert calibrate(read_raster(path), "vhr").unit == "display"


def test_harmonised_collections_have_no_offset_left(make_tif):
    array = numbers(12, 1100, 4000)
    raster = calibrate(read_raster(make_tif("COPERNICUS_S2_SR_HARMONIZED_x.tif", array)))
    assert raster.decided["offset"] == 0
    assert "harmonised" in said(raster)


def test_bands_sorted_as_text_are_noticed(make_tif):
    base = numbers(1, 100, 3000).astype(float)
    array = np.repeat(base, 12, 0) * RNG.uniform(0.4, 1.6, (12, 40, 40))
    array[7], array[8] = base, base * RNG.uniform(0.98, 1.02, base.shape)
    calibrate(read_raster(make_tif("right.tif", array.astype(np.uint16))))
    wrong = array[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 8]]
    with pytest.raises(UserError, match=r"sorted as text.*--bands"):
        calibrate(read_raster(make_tif("wrong.tif", wrong.astype(np.uint16))))


def test_single_band_files_of_a_product(make_tif):
    for name in ("T32TQM_20230610T074621_B04_10m.jp2.tif", "T32TQM_20230610T074621_B8A_20m.tif"):
        raster = read_raster(make_tif(name.replace(".jp2", ""), numbers(1)))
        assert (raster.sensor, raster.bands[0] in name) == ("s2_l2a", True)


def stacked(folder, files, across=1):
    """A virtual raster as gdalbuildvrt -separate makes it: a nameless band of the first band of each file, or of the
    files of several tiles (``across``)."""
    text = f'<VRTDataset rasterXSize="{40 * across}" rasterYSize="40"><SRS>EPSG:32632</SRS>'
    text += "<GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform>"
    for number, start in enumerate(range(0, len(files), across), 1):
        text += f'<VRTRasterBand dataType="UInt16" band="{number}">'
        for column, file in enumerate(files[start : start + across]):
            text += (
                f'<ComplexSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>1</SourceBand>'
                f'<DstRect xOff="{40 * column}" yOff="0" xSize="40" ySize="40"/></ComplexSource>'
            )
        text += "</VRTRasterBand>"
    (folder / "a.vrt").write_text(f"{text}</VRTDataset>")
    return folder / "a.vrt"


@pytest.mark.parametrize(
    ("names", "sensor", "bands"),
    [
        (
            [f"T32TQM_20230610T074621_{b}.tif" for b in ("B02", "B03", "B04", "B11", "B8A")],
            "s2_l2a", ("B02", "B03", "B04", "B11", "B8A"),
        ),
        # twelve bands, as many as Level-2A has, and yet others
        (
            [f"T32TQM_20230610T074621_{b}_20m.tif" for b in
             ("AOT", "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B11", "B12", "B8A", "WVP")],
            "s2_l2a", ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B11", "B12", "B8A"),
        ),
        (
            [f"LC08_L2SP_191028_20230610_20230615_02_T1_SR_B{n}.TIF" for n in (5, 4, 3)],
            "landsat_l2", ("SR_B5", "SR_B4", "SR_B3"),
        ),
        ([f"HLS.L30.T32TQM.2023161T095801.v2.0.B0{n}.tif" for n in (4, 5)], "reflectance", ("red", "nir08")),
        (["one.tif", "two.tif", "three.tif"], None, ("band_1", "band_2", "band_3")),
    ],
)  # fmt: skip
def test_bands_of_a_virtual_raster_are_named_after_its_files(make_tif, tmp_path, names, sensor, bands):
    for number, name in enumerate(names):
        make_tif(name, numbers(1) + number)
    raster = read_raster(stacked(tmp_path, names))
    assert (raster.sensor, raster.bands) == (sensor, bands)
    told = read_raster(tmp_path / "a.vrt", Wanted(names=tuple(f"x{i}" for i in range(len(names)))))
    assert told.bands == tuple(f"x{i}" for i in range(len(names)))


def test_bands_of_a_virtual_mosaic(make_tif, tmp_path):
    files = [f"T32T{tile}_20230610T074621_{band}.tif" for band in ("B04", "B03", "B02") for tile in ("PM", "QM")]
    for name in files:
        make_tif(name, numbers(1))
    assert read_raster(stacked(tmp_path, files, across=2)).bands == ("B04", "B03", "B02")
    for nameless in ([files[i] for i in (0, 2, 1, 3, 4, 5)], [files[0]] * 6):
        assert read_raster(stacked(tmp_path, nameless, across=2)).bands[0] == "band_1"


def test_registry_is_whole(make_tif):
    for name, entry in SENSORS.items():
        assert entry.kind in ("optical", "sar")
        assert set(entry.aliases.values()) <= set(entry.bands), name
        assert set(entry.wavelengths) <= set(entry.bands), name
        assert all(set(layout) <= set(entry.bands) for layout in (*entry.layouts, *entry.told_layouts)), name


@pytest.mark.parametrize(
    ("sensor", "bands"), [("s2_l2a", ("B04", "B11", "B12")), ("landsat_l2", ("SR_B4", "SR_B6", "SR_B7"))]
)
def test_short_wave_infrared_by_number(make_tif, sensor, bands):
    path = make_tif("a.tif", numbers(3), names=["Red", "SWIR1", "SWIR2"])
    assert read_raster(path, sensor=sensor).bands == bands
