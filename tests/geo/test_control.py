"""Images placed by ground control points or RPCs: their pixels land where the control says, and how well is told."""

from __future__ import annotations

import re

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_origin
from swaths import HEIGHT, LATITUDE, LONGITUDE, METRES, WIDTH, flat_at, ground, lattice, leaning, swath, written

from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import align, load_pair
from earthmind_jax.geo.control import place_of
from earthmind_jax.geo.describe import describe
from earthmind_jax.geo.grid import WGS84, Grid, project, to_map
from earthmind_jax.geo.pairing import pair_facts
from earthmind_jax.geo.raster import read_raster

UTM = CRS.from_epsg(32632)


def reference(side=80, size=10):
    x, y = (float(v[0]) for v in project(WGS84, UTM, np.array([LONGITUDE]), np.array([LATITUDE])))
    return Grid(from_origin(x - side * size / 2, y + side * size / 2, size, size), UTM, side, side, "the reference")


def inner(valid):
    """Without the pixels at the image's edge, where half of the kernel has nothing to hold."""
    near = [np.roll(np.roll(valid, row, 0), column, 1) for row in (-2, 0, 2) for column in (-2, 0, 2)]
    kept = np.logical_and.reduce(near)
    kept[:2], kept[-2:], kept[:, :2], kept[:, -2:] = False, False, False, False
    return kept


def truth(grid):
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    longitude, latitude = project(grid.crs, WGS84, *to_map(grid.transform, columns.ravel(), rows.ravel()))
    return ground(longitude, latitude).reshape(grid.shape)


def test_control_points_place_the_image(tmp_path):
    """81 points, thin-plate spline: 0.1 pixels; a wave of 60 pixels changes by 0.3 dB a pixel at its steepest."""
    path = written(tmp_path / "grd.tif", lattice())
    with rasterio.open(path) as dataset:
        place = place_of(dataset)
        columns, rows = np.meshgrid(np.linspace(5, WIDTH - 5, 23), np.linspace(5, HEIGHT - 5, 27))
        found = place.to_pixel(*swath(columns, rows))
    assert np.hypot(found[0] - columns, found[1] - rows).max() < 0.1
    aligned = align(path, reference(), "sar_linear", sensor="s1")
    assert aligned.overlap == 1
    assert np.abs(aligned.raster.data[0] - truth(reference())).max() < 0.05
    assert aligned.gsd_ratio == pytest.approx(1, rel=0.05)
    note = next(note for note in aligned.raster.notes if "81 ground control points" in note)
    assert "terrain is not corrected" in note
    assert float(re.search(r"left out and found again to (\S+) pixels", note)[1]) < 0.5


def test_a_window_of_it_is_part_of_the_whole(tmp_path):
    path = written(tmp_path / "grd.tif", lattice())
    whole = align(path, reference(), "sar_linear", sensor="s1").raster
    part = align(path, reference().part(31, 12, 20, 40), "sar_linear", sensor="s1", scene=reference()).raster
    np.testing.assert_allclose(part.data, whole.data[:, 31:51, 12:52], atol=2e-3)


def test_few_points_are_a_polynomial(tmp_path):
    corners = [p for p in lattice(3) if p.row in (0, HEIGHT) and p.col in (0, WIDTH)]
    aligned = align(written(tmp_path / "a.tif", corners), reference(), "sar_linear", sensor="s1")
    note = next(note for note in aligned.raster.notes if "4 ground control points" in note)
    assert "polynomial, residual to" in note
    assert float(re.search(r"residual to (\S+) pixels", note)[1]) < 3


def test_points_that_contradict_each_other(tmp_path):
    path = written(tmp_path / "bad.tif", lattice(wrong=0.02))
    with pytest.raises(UserError, match=r"bad\.tif: its 81 ground control points contradict each other"):
        align(path, reference(), "sar_linear", sensor="s1")


def test_points_on_one_line(tmp_path):
    path = written(tmp_path / "line.tif", [GroundControlPoint(row=r, col=r, x=9 + r / 1e4, y=45) for r in range(5)])
    with pytest.raises(UserError, match=r"line\.tif: its (5 )?ground control points"):
        align(path, reference(), "sar_linear", sensor="s1")


def test_pair_with_a_raw_product(tmp_path, make_tif):
    """An optical image on a map, SAR with control points only: a pair. The other way round there is no map grid."""
    grid = reference()
    numbers = np.random.default_rng(0).integers(50, 3000, (12, *grid.shape)).astype("uint16")
    s2 = make_tif("s2.tif", numbers, crs=UTM, transform=grid.transform)
    s1 = written(tmp_path / "grd.tif", lattice())
    pair = load_pair(s2, s1)
    assert pair.overlap == 1
    assert np.abs(pair.sar.data[0] - truth(grid)).max() < 0.05
    assert any("81 ground control points" in note for note in pair.notes)
    assert not any("only ground control points" in note for note in pair.notes)
    with pytest.raises(UserError, match=r"grd\.tif has ground control points but no map grid"):
        align(read_raster(s1), grid, "sar_linear", sensor="s1")  # pixels in memory; as a file it is placed
    with pytest.raises(UserError, match="ground control points but no map grid"):
        align(s2, read_raster(s1), "reflectance")


def test_far_away(tmp_path):
    grid = reference()
    far = Grid(grid.transform @ Affine.translation(5000, 5000), UTM, 40, 40, "far")
    with pytest.raises(UserError, match=r"grd\.tif and far do not overlap: the first covers x 9\.\d+ to"):
        align(written(tmp_path / "grd.tif", lattice()), far, "sar_linear", sensor="s1")


def error_of(aligned):
    return np.abs(aligned.raster.data[0] - truth(reference()))[aligned.raster.valid].max()


def test_rpc_at_a_constant_height(tmp_path):
    """Ground at 200 m, the middle of the RPCs' range: right as it is. At 260 m: 12 pixels off, unless it is told."""
    middle = align(written(tmp_path / "a.tif", rpcs=leaning(), centres=flat_at(200)), reference(), "sar_linear")
    assert error_of(middle) < 0.05
    assert any("constant height of 200 m (the middle of their range)" in note for note in middle.raster.notes)
    high = written(tmp_path / "b.tif", rpcs=leaning(), centres=flat_at(260))
    assert error_of(align(high, reference(), "sar_linear")) > 2
    told = align(high, reference(), "sar_linear", height=260)
    assert error_of(told) < 0.05
    assert any("260 m (as told)" in note for note in told.raster.notes)


def test_rpc_with_an_elevation_model(tmp_path, make_tif):
    """A step of 60 m in the ground: wrong on one side with one height, right everywhere with the model."""
    edge = LONGITUDE
    elevation = np.full((1, 200, 200), 200, np.float32)
    elevation[..., 100:] = 260
    dem = make_tif("dem.tif", elevation, crs="EPSG:4326", transform=from_origin(edge - 0.1, LATITUDE + 0.1, 1e-3, 1e-3))

    def centres(columns, rows):
        low, high = flat_at(200)(columns, rows), flat_at(260)(columns, rows)
        return low[0], np.where(low[0] < edge, low[1], high[1])

    path = written(tmp_path / "a.tif", rpcs=leaning(), centres=centres)
    aligned = align(path, reference(), "sar_linear", dem=dem)
    off = np.abs(aligned.raster.data[0] - truth(reference()))
    away = np.abs(np.arange(80) - 40) > 12  # GDAL interpolates the model between its cells of 100 m
    assert off[:, away].max() < 0.1
    flat = align(path, reference(), "sar_linear")
    assert np.abs(flat.raster.data[0] - truth(reference()))[:, 60:].max() > 2
    assert any("dem.tif" in note for note in aligned.raster.notes)
    with pytest.raises(UserError, match=r"no\.tif does not exist; give the elevation model"):
        align(path, reference(), "sar_linear", dem=tmp_path / "no.tif")
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    with pytest.raises(UserError, match=r"text\.tif cannot be opened as an elevation model"):
        align(path, reference(), "sar_linear", dem=text)


@pytest.mark.parametrize("kind", ["gcps", "rpcs"])
def test_alone_it_is_brought_onto_a_map_grid(tmp_path, kind):
    """UTM of its centre, pixels of its own size; a window is a window of that grid."""
    if kind == "gcps":
        path = written(tmp_path / "a.tif", lattice())
    else:
        path = written(tmp_path / "a.tif", rpcs=leaning(), centres=flat_at(200))
    pair = load_pair(sar_path=path, sar_sensor="s1")
    assert pair.crs == UTM
    assert pair.grid.gsd == pytest.approx(10, rel=0.05)
    assert any("brought onto a map grid" in note for note in pair.notes)
    off = np.abs(pair.sar.data[0] - truth(pair.grid))[inner(pair.sar.valid)]
    assert off.max() < 0.05
    assert pair.sar.valid.sum() * pair.grid.gsd**2 == pytest.approx(HEIGHT * WIDTH * 100, rel=0.03)
    part = load_pair(sar_path=path, sar_sensor="s1", window=rasterio.windows.Window(40, 60, 50, 70))
    np.testing.assert_allclose(part.sar.data, pair.sar.data[:, 60:130, 40:90], atol=2e-3)
    assert part.transform.almost_equals(pair.transform @ Affine.translation(40, 60))
    stored = load_pair(sar_path=path, sar_sensor="s1", as_stored=True)
    assert stored.shape == (HEIGHT, WIDTH)
    assert stored.crs is None


def test_an_optical_image_with_rpcs_is_a_reference(tmp_path, make_tif):
    """Very high resolution as it is sold: RPCs only; with SAR on a map, both land on the made grid."""
    path = tmp_path / "vhr.tif"
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    seen = ground(*flat_at(200)(columns, rows))
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=HEIGHT, width=WIDTH, dtype="uint8", photometric="RGB"
    ) as dataset:
        dataset.write(np.stack([(seen + 20) * 20] * 3).astype(np.uint8))
        dataset.rpcs = leaning()
    grid = reference(200)
    db = truth(grid)
    s1 = make_tif("s1.tif", np.stack([db, db - 6]).astype(np.float32), crs=UTM, transform=grid.transform)
    pair = load_pair(path, s1)
    assert pair.crs == UTM
    both = inner(pair.optical.valid & pair.sar.valid)
    assert both.mean() > 0.3
    assert np.abs(pair.optical.data[0] / 20 - 20 - pair.sar.data[0])[both].max() < 0.15  # of 8-bit steps of 0.05


def test_a_window_outside_of_the_made_grid(tmp_path):
    path = written(tmp_path / "a.tif", lattice())
    with pytest.raises(UserError, match=r"a\.tif .* lies wholly outside"):
        load_pair(sar_path=path, sar_sensor="s1", window=rasterio.windows.Window(4000, 60, 50, 70))


@pytest.mark.parametrize("kind", ["gcps", "rpcs"])
def test_a_pair_is_described_on_the_map(tmp_path, make_tif, kind):
    """Two columns moved: overlap, sizes and the rest of the way are told as of images on a map."""
    given = {"gcps": lattice()} if kind == "gcps" else {"rpcs": leaning(), "centres": flat_at(200)}
    path, grid = written(tmp_path / "a.tif", **given), reference(200)
    seen = np.roll(truth(grid), 2, 1)
    numbers = np.stack([(seen + 22) * 120 + 10 * band for band in range(12)]).astype("uint16")
    s2 = make_tif("s2.tif", numbers, crs=UTM, transform=grid.transform)
    optical, sar = describe(s2), describe(path)
    facts = pair_facts(optical, sar)
    assert facts["overlap"] == facts["both_share"] == 1
    assert facts["gsd_ratio"] == pytest.approx(1, rel=0.01)
    assert facts["residual_shift"]["columns"] == pytest.approx(-2, abs=0.4)
    assert facts["residual_shift"]["rows"] == pytest.approx(0, abs=0.4)
    assert sar.shape == load_pair(sar_path=path).shape
    assert pair_facts(describe(make_tif("far.tif", numbers)), sar)["overlap"] == 0


def test_an_elevation_model_of_other_ground(tmp_path, make_tif):
    path = written(tmp_path / "a.tif", rpcs=leaning(), centres=flat_at(200))
    heights, size = np.full((1, 60, 60), 200, np.float32), 1e-3

    def model(name, west, **profile):
        return make_tif(
            name, heights, crs="EPSG:4326", transform=from_origin(west, LATITUDE + 0.03, size, size), **profile
        )

    with pytest.raises(UserError, match=r"far\.tif covers 0% of .*a\.tif \(50% is needed\)"):
        load_pair(sar_path=path, sar_sensor="s1", dem=model("far.tif", LONGITUDE + 1))
    with pytest.raises(UserError, match=r"no_crs\.tif has no georeference .*an elevation model needs one"):
        load_pair(sar_path=path, sar_sensor="s1", dem=make_tif("no_crs.tif", heights, crs=None))
    whole = load_pair(sar_path=path, sar_sensor="s1", dem=model("dem.tif", LONGITUDE - 0.03))
    assert any("dem.tif (200 m where it has none)" in note for note in whole.notes)
    part = load_pair(sar_path=path, sar_sensor="s1", dem=model("part.tif", LONGITUDE - 0.006))
    (share,) = (re.search(r"part\.tif, which covers (\d+)% of it", note) for note in part.notes if "part.tif" in note)
    assert int(share[1]) == pytest.approx(100 * (0.5 + 0.006 / (WIDTH * 10 / METRES / np.cos(np.radians(45.1)))), abs=3)
