"""Reading: names before positions, and one sentence for each thing that can be wrong with a file."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.band_names import canonical
from earthmind_jax.geo.raster import read_raster, require_georeference


def numbers(count, height=6, width=8, dtype="int16"):
    return np.arange(1, 1 + count * height * width, dtype=dtype).reshape(count, height, width)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B4", "B04"),
        ("Sentinel-2 B8A (narrow NIR)", "B8A"),
        ("T32TQM_B12", "B12"),
        ("B08", "B08"),
        ("Sigma0_VV_db", "VV"),
        ("gamma0 vh", "VH"),
        ("red", "R"),
        ("ndvi", "ndvi"),
        ("VV/VH", "VV/VH"),
        ("SR_B4", "SR_B4"),
        ("bands", None),
        ("Band 3", None),
        ("", None),
        (None, None),
    ],
)
def test_canonical(text, name):
    assert canonical(text) == name


@pytest.mark.parametrize(
    ("count", "dtype", "sensor", "first", "last"),
    [
        (12, "uint16", "s2_l2a", "B01", "B12"),
        (13, "int16", "s2_l1c", "B01", "B12"),
        (2, "float32", "s1", "VV", "VH"),
        (3, "uint8", "rgb8", "R", "B"),
        (3, "uint16", None, "band_1", "band_3"),
        (5, "float32", None, "band_1", "band_5"),
    ],
)
def test_layout_is_guessed_and_said(make_tif, count, dtype, sensor, first, last):
    raster = read_raster(make_tif("a.tif", numbers(count, dtype=dtype)))
    assert raster.sensor == sensor
    assert (raster.bands[0], raster.bands[-1]) == (first, last)
    assert "names no bands" in raster.notes[0]
    assert raster.data.dtype == np.float32
    assert raster.dtype == dtype


def test_names_of_the_file_win_over_the_order(make_tif):
    names = ["B12", "B8A", "B4", "B3", "B2"]
    raster = read_raster(make_tif("a.tif", numbers(5), names=names), ["B02", "b8a"])
    assert raster.bands == ("B02", "B8A")
    assert raster.sensor == "s2_l2a"
    np.testing.assert_array_equal(raster.data, numbers(5)[[4, 1]])
    np.testing.assert_array_equal(raster.band("B8A"), numbers(5)[1])


def test_names_from_band_tags(make_tif):
    path = make_tif("a.tif", numbers(2, dtype="float32"))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, POLARISATION="VH")
        dataset.update_tags(2, POLARISATION="VV")
    raster = read_raster(path)
    assert raster.bands == ("VH", "VV")
    assert raster.sensor == "s1"


def test_name_from_the_file_name(make_tif):
    raster = read_raster(make_tif("S2A_patch_7_B8A.tif", numbers(1)))
    assert raster.bands == ("B8A",)
    assert raster.sensor == "s2_l2a"


def test_level_from_the_product_name(make_tif):
    path = make_tif("S2B_MSIL1C_20230610T074621_N0509_R135.tif", numbers(2), names=["B03", "B04"])
    assert read_raster(path).sensor == "s2_l1c"


def test_common_names_need_the_sensor(make_tif):
    path = make_tif("a.tif", numbers(3), names=["red", "green", "nir"])
    assert read_raster(path).sensor is None
    assert read_raster(path, sensor="s2_l2a").bands == ("B04", "B03", "B08")


def test_landsat_is_not_sentinel(make_tif):
    for name, names in (("LC08_L2SP_193026.tif", ["B4", "B5"]), ("a.tif", ["SR_B4", "SR_B5"])):
        raster = read_raster(make_tif(name, numbers(2), names=names))
        assert (raster.sensor, raster.bands) == ("landsat_l2", ("SR_B4", "SR_B5"))
    for names in (["B4", "B5"], ["SR_B4", "SR_B5"]):  # numbered otherwise, and called as Landsat 8 does
        raster = read_raster(make_tif("LT05_L2SP_193026.tif", numbers(2), names=names))
        assert (raster.sensor, raster.bands) == ("landsat_l2", ("SR_B5", "SR_B6"))


def test_8bit_triplet_is_a_rendering(make_tif):
    raster = read_raster(make_tif("a.tif", numbers(3, dtype="uint8"), names=["B4", "B3", "B2"]))
    assert raster.sensor == "rgb8"


def test_alpha_is_validity(make_tif):
    array = np.full((4, 5, 5), 200, np.uint8)
    array[3, :2] = 0
    raster = read_raster(make_tif("a.tif", array, photometric="RGB", alpha="YES"))
    assert raster.bands == ("R", "G", "B")
    assert not raster.valid[:2].any()
    assert raster.valid[2:].all()


def test_validity_of_nodata_and_nan(make_tif):
    array = np.ones((2, 4, 4), np.float32)
    array[0, 0] = -9999
    array[1, 1] = np.nan
    array[0, 2] = np.inf
    raster = read_raster(make_tif("a.tif", array, nodata=-9999))
    assert raster.valid.any(1).tolist() == [False, False, False, True]
    assert raster.nodata == -9999


def test_window(make_tif):
    path = make_tif("a.tif", numbers(2, dtype="float32"))
    part = read_raster(path, window=Window(3, 2, 4, 3))
    np.testing.assert_array_equal(part.data, numbers(2)[:, 2:5, 3:7])
    assert part.transform.c == 500030
    assert part.transform.f == 4999980


def test_window_over_the_edge_is_invalid_there(make_tif):
    path = make_tif("a.tif", numbers(2, dtype="float32"))
    part = read_raster(path, window=Window(-2, 4, 5, 4))
    assert part.data.shape == (2, 4, 5)
    np.testing.assert_array_equal(part.data[:, :2, 2:], numbers(2)[:, 4:6, :3])
    assert part.valid[:2, 2:].all()
    assert not part.valid[2:].any()
    assert not part.valid[:, :2].any()
    with pytest.raises(UserError, match="wholly outside"):
        read_raster(path, window=Window(100, 0, 5, 5))


def test_native_keeps_the_dtype(make_tif):
    path = make_tif("a.tif", numbers(2, dtype="uint16"))
    assert read_raster(path, native=True).data.dtype == np.uint16


def test_ground_sample_distance(make_tif, grid_case):
    crs, transform = grid_case
    raster = read_raster(make_tif("a.tif", numbers(1, 40, 40), crs=crs, transform=transform))
    rough = {"EPSG:4326": np.sqrt(abs(transform.determinant)) * 111195, "EPSG:3857": 15 * np.cos(np.radians(48.2))}
    size = rough.get(crs, np.sqrt(abs(transform.determinant)))
    if crs == "EPSG:4326":
        size *= np.sqrt(np.cos(np.radians(transform.f)))
    assert raster.gsd == pytest.approx(size, rel=0.02)


def one_sentence(error) -> str:
    text = str(error.value)
    assert text.endswith((".", "?"))
    assert "\n" not in text
    return text


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.tif does not exist") as error:
        read_raster(tmp_path / "nowhere.tif")
    one_sentence(error)


def test_directory(tmp_path):
    with pytest.raises(UserError, match="is a directory") as error:
        read_raster(tmp_path)
    one_sentence(error)


def test_not_a_raster(tmp_path):
    (tmp_path / "a.tif").write_text("hello")
    with pytest.raises(UserError, match="cannot be opened as a raster") as error:
        read_raster(tmp_path / "a.tif")
    one_sentence(error)


def test_empty_file(tmp_path):
    (tmp_path / "a.tif").touch()
    with pytest.raises(UserError, match="cannot be opened as a raster"):
        read_raster(tmp_path / "a.tif")


@pytest.mark.parametrize("compress", [None, "DEFLATE"])
def test_truncated(make_tif, compress):
    noise = np.random.default_rng(0).integers(1, 30000, (2, 300, 300)).astype("int16")
    path = make_tif("a.tif", noise, **({"compress": compress} if compress else {}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.tif (is damaged|cannot be opened)") as error:
        read_raster(path)
    one_sentence(error)


def test_complex(make_tif):
    with pytest.raises(UserError, match="complex") as error:
        read_raster(make_tif("a.tif", np.ones((1, 4, 4), np.complex64)))
    one_sentence(error)


def test_palette_is_for_labels_only(make_tif):
    path = make_tif("a.tif", numbers(1, dtype="uint8"))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(UserError, match="palette") as error:
        read_raster(path)
    one_sentence(error)
    assert read_raster(path, labels=True).data.dtype == np.uint8


def test_all_nodata(make_tif):
    with pytest.raises(UserError, match="no valid pixel") as error:
        read_raster(make_tif("a.tif", np.zeros((2, 4, 4), np.float32), nodata=0))
    one_sentence(error)


def test_band_that_is_not_there(make_tif):
    path = make_tif("a.tif", numbers(12))
    with pytest.raises(UserError, match=r"no band 'B10' \(did you mean B\d\d\?\); it has B01 B02") as error:
        read_raster(path, ["B10"])
    one_sentence(error)
    with pytest.raises(UserError, match="by name, not by position"):
        read_raster(path, [3])
    with pytest.raises(UserError, match=r"no sensor 's2l2a' \(did you mean s2_l2a\?\)"):
        read_raster(path, sensor="s2l2a")


def test_zero_bands(tmp_path):
    path = tmp_path / "container.nc.vrt"
    path.write_text('<VRTDataset rasterXSize="4" rasterYSize="4"></VRTDataset>')
    with pytest.raises(UserError, match=r"no image bands|cannot be opened") as error:
        read_raster(path)
    one_sentence(error)


def test_georeference_is_required_only_where_it_is_needed(make_tif):
    raster = read_raster(
        make_tif("a.png", numbers(3, dtype="uint8"), crs=None, transform=Affine.identity(), driver="PNG")
    )
    assert not raster.georeferenced
    assert raster.gsd is None
    with pytest.raises(UserError, match="has no georeference") as error:
        require_georeference(raster)
    one_sentence(error)


def test_ground_control_points_are_no_map(make_tif):
    path = make_tif("a.tif", numbers(2, dtype="float32"), crs=None, transform=Affine.identity())
    points = [GroundControlPoint(r, c, 10 + c / 10, 50 - r / 10) for r, c in ((0, 0), (0, 8), (6, 0), (6, 8))]
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    raster = read_raster(path)
    with pytest.raises(UserError, match=r"ground control points.*terrain-correct") as error:
        require_georeference(raster)
    one_sentence(error)
