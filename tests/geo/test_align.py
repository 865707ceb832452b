"""Bringing a SAR image onto the optical grid: in linear power, with its validity, and only where they overlap."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import align, load_pair
from earthmind_jax.geo.grid import Grid, project, to_map
from earthmind_jax.geo.raster import read_raster

RNG = np.random.default_rng(3)
UTM = CRS.from_epsg(32632)
FINE = from_origin(500000, 5000000, 10, 10)


def speckle(side, mean=0.1, looks=4):
    return (mean * RNG.gamma(looks, 1 / looks, (2, side, side))).astype(np.float32)


def optical(make_tif, side=64, name="s2.tif", **options):
    return make_tif(name, RNG.integers(50, 3000, (12, side, side)).astype("uint16"), **options)


def test_speckle_is_averaged_in_power(make_tif):
    """Four looks, mean power 0.1: the right mean is -10 dB, the average of dB lies about 0.56 dB below."""
    db = 10 * np.log10(speckle(512))
    path = make_tif("s1.tif", db, transform=FINE)
    coarse = Grid(from_origin(500000, 5000000, 160, 160), UTM, 32, 32)
    aligned = align(path, coarse, "sar_linear")
    assert aligned.overlap == 1
    assert aligned.gsd_ratio == pytest.approx(1 / 16, rel=1e-3)
    assert aligned.raster.data.mean() == pytest.approx(-10, abs=0.06)
    biased = db.reshape(2, 32, 16, 32, 16).mean((2, 4)).mean()
    assert biased == pytest.approx(-10.56, abs=0.06)
    exact = 10 * np.log10((10 ** (db / 10)).reshape(2, 32, 16, 32, 16).mean((2, 4)))
    np.testing.assert_allclose(aligned.raster.data, exact, atol=0.01)


def test_linear_and_db_files_align_alike(make_tif):
    power = speckle(96)
    grid = Grid(from_origin(500103, 4999807, 25, 25), UTM, 24, 24)
    linear = align(make_tif("linear.tif", power, transform=FINE), grid, "sar_linear").raster
    db = align(make_tif("db.tif", 10 * np.log10(power), transform=FINE), grid, "sar_linear").raster
    np.testing.assert_allclose(linear.data, db.data, atol=1e-3)
    np.testing.assert_array_equal(linear.valid, db.valid)


def smooth(crs, transform, shape):
    """A field that is a function of place alone (-20..-8 dB over some kilometres), seen on any grid."""
    columns, rows = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = project(crs, UTM, *to_map(transform, columns.ravel(), rows.ravel()))
    return (-14 + 6 * np.sin((x - 500000) / 300) * np.cos((y - 5000000) / 400)).reshape(shape).astype(np.float32)


SOURCES = {
    "same_crs": (UTM, from_origin(499700, 5000300, 7, 7)),
    "degrees": (CRS.from_epsg(4326), None),
    "web_mercator": (CRS.from_epsg(3857), None),
    "rotated": (UTM, Affine.from_gdal(498498, 8 * 0.8, 8 * 0.6, 4999386, 8 * 0.6, -8 * 0.8)),
    "south_up": (UTM, Affine(9, 0, 499700, 0, 9, 4997900)),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("turned", [False, True])
def test_values_land_where_they_belong(make_tif, name, turned):
    crs, transform = SOURCES[name]
    shape = (420, 420)
    if transform is None:
        west, south, east, north = transform_bounds(UTM, crs, 499700, 4997900, 502300, 5000500)
        transform = from_origin(west, north, (east - west) / shape[1], (north - south) / shape[0])
    field = smooth(crs, transform, shape)
    path = make_tif("s1.tif", np.stack([field, field - 6]), crs=crs, transform=transform)
    target = Affine.from_gdal(500700, 6, 8, 4999000, 8, -6) if turned else from_origin(500500, 4999500, 10, 10)
    grid = Grid(target, UTM, 90, 70)
    aligned = align(path, grid, "sar_linear")
    inner = aligned.raster.valid
    assert aligned.overlap > 0.5
    expected = smooth(UTM, target, grid.shape)
    assert np.abs(aligned.raster.data[0] - expected)[inner].max() < 0.1
    assert aligned.raster.transform == target


def test_only_the_covering_part_is_read(make_tif):
    path = make_tif("s1.tif", 10 * np.log10(speckle(400)), transform=FINE)
    grid = Grid(from_origin(501005, 4998995, 10, 10), UTM, 40, 40)
    part, whole = align(path, grid, "sar_linear"), align(read_raster(path), grid, "sar_linear")
    np.testing.assert_allclose(part.raster.data, whole.raster.data, atol=1e-4)
    np.testing.assert_array_equal(part.raster.valid, whole.raster.valid)


def test_invalid_pixels_take_no_part(make_tif):
    power = np.full((2, 40, 40), 0.1, np.float32)
    power[:, 10:20, 10:20] = 0
    grid = Grid(from_origin(500005, 4999995, 10, 10), UTM, 38, 38)
    raster = align(make_tif("s1.tif", power, transform=FINE), grid, "sar_linear").raster
    np.testing.assert_allclose(raster.data[:, raster.valid], -10, atol=1e-3)
    assert not raster.valid[11:18, 11:18].any()
    assert raster.valid[:8].all()


def test_labels_are_never_mixed(make_tif):
    label = RNG.choice(np.array([1, 4, 9], np.uint8), (1, 60, 60))
    path = make_tif("lulc.tif", label, transform=FINE, crs=UTM)
    grid = Grid(Affine.from_gdal(500200, 6, 8, 4999800, 8, -6), UTM, 30, 30)
    aligned = align(path, grid, "label")
    assert aligned.raster.data.dtype == np.uint8
    assert set(np.unique(aligned.raster.data[0][aligned.raster.valid])) <= {1, 4, 9}
    columns, rows = np.meshgrid(np.arange(30) + 0.5, np.arange(30) + 0.5)
    x, y = to_map(grid.transform, columns, rows)
    there = np.floor((x - 500000) / 10).astype(int), np.floor((5000000 - y) / 10).astype(int)
    inside = aligned.raster.valid
    assert (aligned.raster.data[0] == label[0, there[1].clip(0, 59), there[0].clip(0, 59)])[inside].mean() > 0.99


def test_reflectance_is_calibrated_first(make_tif):
    array = np.full((12, 40, 40), 1500, "uint16")
    array[:, :10] = 0
    array[:, 30:] = 1010
    raster = align(
        make_tif("s2.tif", array, transform=FINE),
        Grid(from_origin(500000, 5000000, 20, 20), UTM, 20, 20),
        "reflectance",
    ).raster
    assert raster.unit == "reflectance"
    np.testing.assert_allclose(raster.data[:, 6:14], 0.05, atol=1e-5)
    assert not raster.valid[:5].any()
    assert raster.valid[5:].all()


def test_pair(make_tif):
    s2 = optical(make_tif, transform=FINE, tags={"datetime": "2023-06-10T07:46:21Z"})
    s1 = make_tif(
        "s1.tif", speckle(60), transform=from_origin(500100, 4999900, 20, 20), tags={"datetime": "2023-06-13T07:46:21"}
    )
    pair = load_pair(s2, s1, optical_bands=["B04", "B03", "B02"], sar_bands=["VH"])
    assert pair.optical.data.shape == (3, 64, 64)
    assert pair.sar.data.shape == (1, 64, 64)
    assert pair.sar.bands == ("VH",)
    assert pair.transform == FINE
    assert pair.crs == UTM
    assert pair.gsd_ratio == pytest.approx(2, rel=1e-3)
    assert pair.overlap == pytest.approx((54 / 64) ** 2, abs=0.02)
    assert pair.days_apart == pytest.approx(3)
    assert not pair.sar.valid[:8].any()
    assert np.isfinite(pair.sar.data).all()
    assert any(note.startswith("optical: ") for note in pair.notes)
    assert any(note.startswith("SAR: ") for note in pair.notes)


def test_pair_of_one(make_tif):
    s2, s1 = optical(make_tif), make_tif("s1.tif", speckle(30))
    assert load_pair(s2).sar is None
    assert load_pair(s2).overlap == 1
    alone = load_pair(sar_path=s1)
    assert alone.optical is None
    assert alone.sar.unit == "dB"
    assert alone.shape == (30, 30)
    with pytest.raises(UserError, match="an optical image, a SAR image, or both"):
        load_pair()


def test_pictures_of_one_size_are_a_pair(make_tif):
    plain = {"crs": None, "transform": Affine.identity(), "driver": "PNG"}
    rgb = make_tif("rgb.png", RNG.integers(0, 255, (3, 40, 40)).astype("uint8"), **plain)
    sar = make_tif("sar.png", RNG.integers(0, 255, (1, 40, 40)).astype("uint8"), **plain)
    pair = load_pair(rgb, sar)
    assert pair.sar.unit == "display"
    assert pair.crs is None
    assert any("pixel by pixel" in note for note in pair.notes)
    small = make_tif("small.png", RNG.integers(0, 255, (1, 20, 40)).astype("uint8"), **plain)
    with pytest.raises(UserError, match="without a georeference in both they must have the same size"):
        load_pair(rgb, small)


def test_single_band_sar(make_tif):
    pair = load_pair(sar_path=make_tif("one.tif", speckle(30)[:1]))
    assert pair.sar.bands == ("VV",)
    assert any("as told" in note for note in pair.notes)


def test_no_overlap_names_both(make_tif):
    s2 = optical(make_tif)
    s1 = make_tif("s1.tif", speckle(30), crs="EPSG:32736", transform=from_origin(617301, 9625098, 10, 10))
    with pytest.raises(UserError) as error:
        load_pair(s2, s1)
    text = str(error.value)
    assert "s1.tif and " in text
    assert "s2.tif do not overlap" in text
    assert text.count("longitude") == 2
    with pytest.raises(UserError, match="do not overlap"):
        align(read_raster(s1), read_raster(s2), "sar_linear")


def test_too_little_overlap(make_tif):
    s2 = optical(make_tif, transform=FINE)
    s1 = make_tif("s1.tif", speckle(64), transform=from_origin(500600, 5000000, 10, 10))
    with pytest.raises(UserError, match=r"s1\.tif covers only 6\.2% of .*s2\.tif and 10% is needed"):
        load_pair(s2, s1)
    assert load_pair(s2, s1, min_overlap=0.05).overlap == pytest.approx(4 / 64)


@pytest.mark.parametrize("which", ["source", "reference"])
def test_no_georeference(make_tif, which):
    placed = make_tif("placed.tif", speckle(20))
    plain = make_tif("plain.tif", speckle(20), crs=None, transform=Affine.identity())
    pair = (plain, placed) if which == "source" else (placed, plain)
    with pytest.raises(UserError, match=r"plain\.tif has no georeference"):
        align(read_raster(pair[0]), read_raster(pair[1]), "sar_linear")


def test_optical_is_no_backscatter(make_tif):
    raster = read_raster(optical(make_tif))
    with pytest.raises(UserError, match="no SAR sensor; align it as reflectance"):
        align(raster, raster, "sar_linear")


def test_unknown_kind(make_tif):
    raster = read_raster(make_tif("a.tif", speckle(20)))
    with pytest.raises(UserError, match="'sar'; it is one of sar_linear, reflectance, label"):
        align(raster, raster, "sar")
