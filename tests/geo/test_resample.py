"""Alignment of any two grids: how far values and positions are from the truth, and that a window is part of the whole.

The truth is a smooth function of the place on the globe (of its unit vector, so that no meridian and no pole is
special), and the position of each pixel as PROJ alone gives it.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError
from earthmind_jax.geo import onto
from earthmind_jax.geo.align import align, load_pair
from earthmind_jax.geo.cover import covering, pieces
from earthmind_jax.geo.grid import WGS84, Grid, project, to_map
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.geo.resample import locate, pixel_ratio, positions


def grid(crs, transform, height, width, name="the reference"):
    return Grid(transform, CRS.from_user_input(crs), height, width, name)


def around(crs, longitude, latitude, size, height, width, turn=0.0, flip=(1, 1), shift=0.0):
    """A grid centred on a place: ``turn`` degrees, ``flip`` (columns, rows) -1 runs the other way, ``shift`` of x."""
    crs = CRS.from_user_input(crs)
    x, y = (float(value[0]) for value in project(WGS84, crs, np.array([longitude]), np.array([latitude])))
    transform = Affine.translation(x + shift, y) @ Affine.rotation(turn)
    transform = transform @ Affine.scale(size * flip[0], -size * flip[1]) @ Affine.translation(-width / 2, -height / 2)
    return Grid(transform, crs, height, width, "the reference")


DEGREES = "EPSG:4326"
PAIRS = {
    "same_zone": (around("EPSG:32632", 9, 45, 12, 150, 160), around("EPSG:32632", 9.0007, 45.0003, 10, 90, 110)),
    "other_zone": (around("EPSG:32633", 9, 45, 12, 150, 160), around("EPSG:32632", 9, 45, 10, 90, 110)),
    "degrees": (around(DEGREES, 9, 45, 1.2e-4, 150, 160), around("EPSG:32632", 9, 45, 10, 90, 90)),
    "onto_degrees": (around("EPSG:32736", 30, -3, 10, 150, 160), around(DEGREES, 30, -3, 1e-4, 110, 110)),
    "web_mercator": (around("EPSG:3857", -70, -55, 20, 150, 160), around("EPSG:32719", -70, -55, 10, 110, 110)),
    "feet": (around("EPSG:2263", -74, 40.7, 30, 160, 150), around("EPSG:32618", -74, 40.7, 10, 110, 110)),
    "laea": (around("EPSG:3035", 3, 60, 10, 150, 160), around("EPSG:32631", 3, 60, 10, 100, 110)),
    "lambert": (around("EPSG:2154", 2, 47, 10, 150, 160), around("EPSG:32631", 2, 47, 10, 100, 110)),
    "polar_north": (around("EPSG:3413", -30, 80, 10, 150, 160), around("EPSG:32625", -30, 80, 10, 90, 90)),
    "polar_south": (around("EPSG:3031", 120, -77, 10, 150, 160), around("EPSG:32751", 120, -77, 10, 90, 90)),
    "rotated": (around("EPSG:32632", 9, 45, 10, 160, 160, 30), around("EPSG:32632", 9, 45, 10, 90, 90, -20)),
    "south_up": (around("EPSG:32632", 9, 45, 10, 150, 160, 0, (1, -1)), around("EPSG:32632", 9, 45, 8, 100, 110)),
    "mirrored": (around("EPSG:32632", 9, 45, 10, 150, 160, 0, (-1, 1)), around("EPSG:32632", 9, 45, 8, 100, 110)),
    "datum_ed50": (around("EPSG:23032", 9, 45, 10, 150, 160), around("EPSG:32632", 9, 45, 10, 100, 110)),
    "from_0_to_360": (
        around(DEGREES, 0, 51, 1e-4, 150, 160, shift=360),
        around("EPSG:32631", 0, 51, 7, 100, 110),
    ),
    "antimeridian_east": (around(DEGREES, 180, 10, 1e-4, 150, 160), around("EPSG:32601", -180, 10, 10, 100, 110)),
    "antimeridian_west": (around(DEGREES, -180, 10, 1e-4, 150, 160), around("EPSG:32660", 180, 10, 10, 100, 110)),
    "antimeridian_both": (around(DEGREES, 180, 10, 1e-4, 150, 160), around(DEGREES, -180, 10, 9e-5, 100, 110)),
    "antimeridian_mercator": (around("EPSG:3857", 180, 10, 11, 150, 160), around("EPSG:32601", -180, 10, 10, 100, 110)),
    "pole_inside": (
        grid(DEGREES, from_origin(-180, 90, 0.5, 0.05), 160, 720),
        around("EPSG:3413", 0, 90, 8000, 150, 140),
    ),
    "pole_inside_360": (
        grid(DEGREES, from_origin(0, -82, 0.5, 0.05), 160, 720),
        around("EPSG:3031", 0, -90, 8000, 150, 140),
    ),
    "pole_seen_from_degrees": (
        around("EPSG:3413", 0, 90, 8000, 300, 300),
        grid(DEGREES, from_origin(-180, 89.9, 2, 0.05), 100, 180),
    ),
}  # fmt: skip


@pytest.fixture(params=PAIRS)
def pair(request):
    """(grid of the source, reference grid)."""
    return PAIRS[request.param]


def centres(place):
    columns, rows = np.meshgrid(np.arange(place.width) + 0.5, np.arange(place.height) + 0.5)
    return project(place.crs, WGS84, *to_map(place.transform, columns.ravel(), rows.ravel()))


def pattern(place, metres):
    """A wave of the place on the globe, 0..1, of ``metres`` from crest to crest, at the centres of a grid."""
    longitude, latitude = np.radians(centres(place))
    unit = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    k = 2 * np.pi * 6371008.8 / metres * np.array([0.6, 0.5, np.sqrt(1 - 0.61)])
    return (0.5 + 0.5 * np.sin(k @ unit)).reshape(place.shape).astype(np.float32)


def written(make_tif, place, array, name="source.tif", **options):
    return make_tif(name, np.asarray(array), crs=place.crs, transform=place.transform, **options)


def exact(place, reference):
    return locate(reference, place, np.arange(reference.width) + 0.5, np.arange(reference.height) + 0.5)


def test_positions(pair, make_tif):
    """An image of its own columns and rows says where each pixel was taken from: 0.002 pixels at most."""
    place, reference = pair
    rows, columns = np.mgrid[: place.height, : place.width].astype(np.float32) + 0.5
    path = written(make_tif, place, [columns, rows], names=("column", "row"))
    raster = align(path, reference, "reflectance").raster
    there = exact(place, reference)
    inner = np.isfinite(there).all(0)
    inner &= (there[0] > 1) & (there[0] < place.width - 1) & (there[1] > 1) & (there[1] < place.height - 1)
    if pixel_ratio(reference, place)[1] >= 1.5:
        pytest.skip("pixels shrink: what comes out is a mean over them")
    assert inner.mean() > 0.5
    assert raster.valid[inner].all()
    assert np.abs(raster.data - there)[:, inner].max() < 2e-3


def test_interpolated_positions_do_not_stray(pair):
    place, reference = pair
    there, found = exact(place, reference), np.stack(positions(reference, place))
    near = np.isfinite(there).all(0) & (there[1] > -50) & (there[1] < place.height + 50)
    assert near.mean() > 0.5
    off = np.abs(found - there)[:, near]
    if place.turn:  # one turn around is the same place
        off = np.minimum(off, np.abs(off - place.turn))
    assert off.max() < 1e-4


def test_values(pair, make_tif):
    """A wave of 24 pixels: bilinear interpolation itself costs up to (2 pi / 24)^2 / 8 = 0.9 % of the range."""
    place, reference = pair
    metres = 24 * max(place.gsd, reference.gsd)
    path = written(make_tif, place, [pattern(place, metres)])
    aligned = align(path, reference, "reflectance")
    assert aligned.overlap > 0.9
    error = np.abs(aligned.raster.data[0] - pattern(reference, metres))[aligned.raster.valid]
    assert error.max() < 0.012
    at_once = align(read_raster(path), reference, "reflectance").raster
    np.testing.assert_allclose(at_once.data, aligned.raster.data, atol=1e-6)


@pytest.mark.parametrize("shrink", [1, 3.3])
def test_a_window_is_part_of_the_whole(pair, make_tif, shrink):
    """Noise, the worst case, through both ways of resampling, whatever window: within 1e-4 of the range."""
    place, reference = pair
    rng = np.random.default_rng(7)
    noise = rng.random((1, *place.shape), np.float32)
    noise[0][rng.random(place.shape) < 0.02] = np.nan
    path = written(make_tif, place, noise)
    coarse = Grid(
        reference.transform @ Affine.scale(shrink), reference.crs, *(int(s / shrink) for s in reference.shape), "coarse"
    )
    whole = align(path, coarse, "reflectance").raster
    for _ in range(3):
        height, width = (int(rng.integers(5, side // 2 + 1)) for side in coarse.shape)
        row, column = (int(rng.integers(0, s - w)) for s, w in zip(coarse.shape, (height, width), strict=True))
        window = coarse.part(row, column, height, width)
        part = align(path, window, "reflectance", scene=coarse, min_overlap=0).raster
        there = np.s_[row : row + height, column : column + width]
        both = part.valid & whole.valid[there]
        assert (part.valid != whole.valid[there]).mean() < 1e-3  # weights of exactly one half
        assert np.abs(part.data - whole.data[(slice(None), *there)])[:, both].max(initial=0) < 1e-4


def test_pieces_are_the_whole(pair, make_tif, monkeypatch):
    """Read in many pieces, as a source far larger than memory is, and at once: the same."""
    place, reference = pair
    path = written(make_tif, place, np.random.default_rng(1).random((1, *place.shape), np.float32))
    whole = align(path, reference, "reflectance").raster
    limit = 20_000
    times = np.zeros(reference.shape, int)
    for rows, columns, _ in pieces(reference, place, limit):
        times[rows, columns] += 1
    assert times.max() == 1
    assert (times[whole.valid] == 1).all()
    monkeypatch.setattr(onto, "SOURCE_VALUES", limit)
    parts = align(path, reference, "reflectance").raster
    assert np.abs(parts.data - whole.data).max() < 1e-4
    assert (parts.valid != whole.valid).mean() < 1e-3


def test_speckle_window_of_a_pair(make_tif):
    """The road that inference takes: a window of the optical image, SAR in linear power from another CRS."""
    rng = np.random.default_rng(2)
    place, reference = PAIRS["degrees"]
    sar = written(make_tif, place, rng.gamma(4, 0.025, (2, *place.shape)).astype(np.float32), "s1.tif")
    optical = written(make_tif, reference, rng.integers(50, 3000, (12, *reference.shape)).astype("uint16"), "s2.tif")
    whole = load_pair(optical, sar)
    part = load_pair(optical, sar, window=rasterio.windows.Window(20, 31, 40, 50))
    np.testing.assert_allclose(part.sar.data, whole.sar.data[:, 31:81, 20:60], atol=2e-3)  # dB; 1e-4 of 20..30 dB
    assert any("linear power" in note for note in part.notes)


def test_half_metre_on_a_hundred(make_tif):
    """200 x 200 pixels of the source in one of the reference: their mean, not one of them."""
    place = around("EPSG:32632", 9, 45, 0.5, 1200, 1000)
    reference = around("EPSG:32633", 9, 45, 100, 4, 3)
    rng = np.random.default_rng(3)
    ramp = np.linspace(0, 1, place.width, dtype=np.float32) + rng.normal(0, 0.5, place.shape).astype(np.float32)
    aligned = align(written(make_tif, place, [ramp]), reference, "reflectance")
    assert aligned.gsd_ratio == pytest.approx(0.005, rel=0.01)
    there = exact(place, reference)[0] / place.width
    # the noise averages out to 0.5 / 200
    assert np.abs(aligned.raster.data[0] - there)[aligned.raster.valid].max() < 0.01


def test_a_hundred_metres_on_half(make_tif):
    place = around("EPSG:32632", 9, 45, 100, 9, 9)
    reference = around("EPSG:32632", 9, 45, 0.5, 300, 280)
    path = written(make_tif, place, [np.arange(81, dtype=np.float32).reshape(9, 9)])
    aligned = align(path, reference, "reflectance").raster
    columns, rows = exact(place, reference) - 0.5
    np.testing.assert_allclose(aligned.data[0], 9 * rows + columns, atol=1e-3)


def test_the_mean_of_a_pixel_is_exact(make_tif):
    """Four source pixels in each of the reference's, and a hole in one: the mean of what is valid there."""
    place = around("EPSG:32632", 9, 45, 10, 40, 40)
    values = np.random.default_rng(4).random((40, 40)).astype(np.float32)
    values[0, 0] = values[2:4, 2:4] = np.nan
    reference = Grid(place.transform @ Affine.scale(2), place.crs, 20, 20)
    raster = align(written(make_tif, place, [values]), reference, "reflectance").raster
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no value, in the hole
        expected = np.nanmean(values.reshape(20, 2, 20, 2), (1, 3))
    assert not raster.valid[1, 1]
    assert raster.valid.sum() == 399
    np.testing.assert_allclose(raster.data[0][raster.valid], expected[raster.valid], atol=1e-6)


def test_labels_are_the_most_frequent_where_they_shrink(make_tif):
    place = around("EPSG:32632", 9, 45, 10, 30, 30)
    label = np.random.default_rng(5).choice(np.array([2, 5, 9], np.uint8), (30, 30))
    reference = Grid(place.transform @ Affine.scale(3), place.crs, 10, 10)
    raster = align(written(make_tif, place, [label]), reference, "label").raster
    blocks = label.reshape(10, 3, 10, 3).swapaxes(1, 2).reshape(10, 10, 9)
    expected = np.array([[np.bincount(block).argmax() for block in row] for row in blocks])
    np.testing.assert_array_equal(raster.data[0], expected)
    assert any("most frequent" in note for note in raster.notes)


def test_labels_on_every_grid(pair, make_tif):
    """Values of a label are never made up, and each is that of the pixel it lies in."""
    place, reference = pair
    if pixel_ratio(reference, place)[0] >= 1.5 or pixel_ratio(reference, place)[1] >= 1.5:
        pytest.skip("pixels shrink: the most frequent is taken")
    label = np.random.default_rng(6).choice(np.array([1, 4, 200], np.uint8), place.shape)
    raster = align(written(make_tif, place, [label]), reference, "label").raster
    columns, rows = exact(place, reference)
    valid = raster.valid
    inner = valid & (np.abs(columns % 1 - 0.5) < 0.49) & (np.abs(rows % 1 - 0.5) < 0.49)
    columns = columns % place.turn if place.turn else columns
    expected = label[np.floor(rows[inner]).astype(int), np.floor(columns[inner]).astype(int)]
    np.testing.assert_array_equal(raster.data[0][inner], expected)


def test_datum_is_not_forgotten():
    """ED50 and WGS 84 give the same place coordinates about 130 m apart in northern Italy."""
    place = around("EPSG:23032", 9, 45, 10, 50, 50)
    x, y = project(CRS.from_epsg(23032), CRS.from_epsg(32632), *np.array([[500000.0], [4983000.0]]))
    assert 100 < np.hypot(x[0] - 500000, y[0] - 4983000) < 250
    assert covering(around("EPSG:32632", 9, 45, 10, 50, 50), place) is not None


def test_a_window_without_sar_is_allowed_where_told(make_tif):
    place, reference = PAIRS["same_zone"]
    path = written(make_tif, place, np.full((1, *place.shape), 0.1, np.float32))
    far = reference.part(5000, 5000, 30, 30)
    with pytest.raises(UserError, match="do not overlap"):
        align(path, far, "sar_linear", sensor="s1")
    aligned = align(path, far, "sar_linear", sensor="s1", min_overlap=0)
    assert aligned.overlap == 0
    assert not aligned.raster.valid.any()
    assert aligned.raster.shape == (30, 30)


def test_nodata_on_the_whole_overlap(make_tif):
    place, reference = PAIRS["same_zone"]
    values = np.full((1, *place.shape), np.nan, np.float32)
    values[0, 0, 0] = 0.5
    with pytest.raises(UserError, match="no valid pixel where the reference has one"):
        align(written(make_tif, place, values), reference, "reflectance")


def test_beyond_the_disc_of_the_earth(make_tif):
    """A geostationary view as the source and as the reference: places without a value are invalid, nothing fails."""
    crs = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    disc = Grid(from_origin(-5.5e6, 5.5e6, 50000, 50000), crs, 220, 220, "the disc")
    world = grid(DEGREES, from_origin(-90, 80, 0.5, 0.5), 320, 360)
    for place, reference in ((disc, world), (world, disc)):
        longitude, latitude = centres(place)
        known = np.isfinite(longitude)
        values = np.cos(np.radians(2 * np.where(known, latitude, np.nan))).reshape(1, *place.shape).astype(np.float32)
        raster = align(written(make_tif, place, values), reference, "reflectance").raster
        expected = np.cos(np.radians(2 * centres(reference)[1])).reshape(reference.shape)
        assert 0.5 < raster.valid.mean() < 0.95
        error = np.abs(raster.data[0] - expected)[raster.valid]
        assert np.isfinite(error).all()
        assert np.median(error) < 1e-3


def test_pixels_far_too_small_are_no_hang(make_tif):
    """A pixel size of a ten-millionth of a metre: refused at once, since it covers nothing."""
    path = make_tif("odd.tif", np.ones((1, 60, 60), np.float32), transform=from_origin(500300, 4999700, 1e-7, 1e-7))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"odd\.tif has no valid pixel where .* they hardly meet"):
        align(path, Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 60, 60), "reflectance")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        ("EPSG:4326", from_origin(10, 95, 0.001, 0.001), "no place on Earth"),
        ("EPSG:4326", from_origin(500000, 5000000, 10, 10), "no place on Earth"),
        ("EPSG:32632", from_origin(9e9, 5e9, 10, 10), "no place on Earth"),
        ("EPSG:32632", Affine(10, 10, 5e5, 10, 10, 5e6), "gives pixels no size"),
    ],
)
def test_coordinates_that_are_no_place(make_tif, crs, transform, message):
    """Degrees out of range, metres called degrees, a transform that squashes the image onto a line: one sentence."""
    path = make_tif("odd.tif", np.ones((1, 20, 20), np.float32), crs=crs, transform=transform)
    with pytest.raises(UserError, match=message) as error:
        align(path, around("EPSG:32632", 9, 45, 10, 20, 20), "reflectance")
    assert "odd.tif" in str(error.value)
    with pytest.raises(UserError, match=message):
        align(around_raster(make_tif), Grid(transform, CRS.from_user_input(crs), 20, 20, "odd.tif"), "reflectance")


def around_raster(make_tif):
    place = around("EPSG:32632", 9, 45, 10, 20, 20)
    return read_raster(written(make_tif, place, np.ones((1, 20, 20), np.float32), "fine.tif"))
