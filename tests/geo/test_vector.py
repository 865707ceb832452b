"""Polygons that land exactly where the pixels are, on every kind of grid, and come back as the same mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import WGS84, Grid, project, to_map, to_pixel
from earthmind_jax.geo.vector import polygons, rasterise, write_geojson
from earthmind_jax.geo.write import write_mask_cog

RNG = np.random.default_rng(5)
SHAPE = (120, 150)


def scene(shape=SHAPE):
    """Two blobs, one with a hole and an island in it, a diagonal pair, single pixels, and a region at the edge."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(rows - 55, columns - 60)
    mask = (distance < 40) & ~((distance > 12) & (distance < 22))
    mask |= np.hypot(rows - 20, columns - 125) < 14
    mask[100, 120], mask[101, 121] = True, True
    mask[110:, 130:] = True
    mask[5, 5] = True
    return mask


def rings_of(collection):
    for feature in collection["features"]:
        geometry = feature["geometry"]
        parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        for part in parts:
            yield from enumerate(part)


def signed_area(ring):
    x, y = (np.asarray(ring) - ring[0]).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


def test_round_trip(grid_case):
    crs, transform = grid_case
    mask = scene()
    grid = Grid(transform, CRS.from_user_input(crs), *SHAPE)
    collection = polygons(mask, transform, crs, prompt="the lake", score=0.8, model="test")
    assert len(collection["features"]) == 6
    np.testing.assert_array_equal(rasterise(collection, grid), mask)


def test_random_round_trip(grid_case):
    crs, transform = grid_case
    mask = RNG.random((40, 50)) > 0.5
    collection = polygons(mask, transform, crs)
    np.testing.assert_array_equal(rasterise(collection, Grid(transform, CRS.from_user_input(crs), 40, 50)), mask)


def test_vertices_lie_on_pixel_corners(grid_case):
    """Well within half a pixel: the corners of a rectangle, and every point between them, to 0.03 pixels."""
    crs, transform = grid_case
    crs = CRS.from_user_input(crs)
    mask = np.zeros((600, 900), bool)
    mask[100:500, 50:850] = True
    for _, ring in rings_of(polygons(mask, transform, crs)):
        ring = np.asarray(ring)
        middle = (ring[1:] + ring[:-1]) / 2  # where a map would draw the edge
        for points in (ring, middle):
            x, y = project(WGS84, crs, *points.T)
            if crs.is_geographic:
                x = x + 360 * np.round((to_map(transform, 450, 300)[0] - x) / 360)
            columns, rows = to_pixel(transform, x, y)
            seam = np.abs(np.abs(points[:, 0]) - 180) < 1e-9  # the cut itself runs across the rectangle
            off = np.minimum.reduce(
                [np.abs(columns - 50), np.abs(columns - 850), np.abs(rows - 100), np.abs(rows - 500)]
            )
            assert off[~seam].max() < 0.03


def test_rfc_7946(grid_case):
    crs, transform = grid_case
    collection = json.loads(json.dumps(polygons(scene(), transform, crs)))
    assert collection["type"] == "FeatureCollection"
    assert "crs" not in collection
    for i, ring in rings_of(collection):
        ring = np.asarray(ring)
        assert len(ring) >= 4
        assert (ring[0] == ring[-1]).all()
        assert np.abs(ring[:, 0]).max() <= 180
        assert np.ptp(ring[:, 0]) < 1  # nothing runs around the world
        assert (signed_area(ring) > 0) == (i == 0)


def test_area_is_on_the_ground(grid_case):
    crs, transform = grid_case
    mask = scene()
    collection = polygons(mask, transform, crs)
    gsd = Grid(transform, CRS.from_user_input(crs), *SHAPE).gsd
    total = sum(feature["properties"]["area_m2"] for feature in collection["features"])
    assert total == pytest.approx(mask.sum() * gsd**2, rel=0.01)


def test_area_of_a_known_square():
    """Exactly 0.01 x 0.01 degrees at the equator: WGS84 authalic arithmetic gives 1230908.5 m2 within 1 ppm."""
    mask = np.ones((100, 100), bool)
    collection = polygons(mask, from_origin(10, 0.005, 0.0001, 0.0001), "EPSG:4326")
    a, e2 = 6378137.0, 0.00669437999014
    latitude = np.radians(np.linspace(-0.005, 0.005, 2001))
    strip = a**2 * (1 - e2) * np.cos(latitude) / (1 - e2 * np.sin(latitude) ** 2) ** 2
    exact = np.radians(0.01) * ((strip[1:] + strip[:-1]) / 2 * np.diff(latitude)).sum()
    assert collection["features"][0]["properties"]["area_m2"] == pytest.approx(exact, rel=1e-6)


def test_attributes():
    mask = scene()
    probability = np.where(mask, 0.75, 0.1)
    probability[5, 5] = 0.5
    here = from_origin(500000, 5000000, 10, 10)
    collection = polygons(
        mask, here, "EPSG:32632", prompt="ships", model="m", probability=probability, properties={"sensor": "s1"}
    )
    for feature in collection["features"]:
        properties = feature["properties"]
        assert set(properties) == {"prompt", "score", "area_m2", "model", "sensor"}
        assert properties["prompt"] == "ships"
        assert properties["score"] == (0.5 if properties["area_m2"] < 150 else 0.75)
    assert len(polygons(mask, here, "EPSG:32632", min_pixels=2)["features"]) == 5


def test_a_diagonal_pair_is_one_feature_of_two_parts():
    mask = np.eye(2, dtype=bool)
    (feature,) = polygons(mask, from_origin(500000, 5000000, 10, 10), "EPSG:32632")["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert len(feature["geometry"]["coordinates"]) == 2


def test_nothing_and_nodata():
    here = from_origin(500000, 5000000, 10, 10)
    empty = polygons(np.zeros((5, 5), bool), here, "EPSG:32632")
    assert empty == {"type": "FeatureCollection", "features": []}
    assert not rasterise(empty, Grid(here, CRS.from_epsg(32632), 5, 5)).any()
    assert polygons(np.full((5, 5), 255, np.uint8), here, "EPSG:32632") == empty


def test_over_the_pole():
    transform = from_origin(-50000, 50000, 1000, 1000)
    mask = np.hypot(*(np.mgrid[:100, :100] - 49.5)) < 30
    collection = polygons(mask, transform, "EPSG:3413")
    longitudes = np.concatenate([np.asarray(ring)[:, 0] for _, ring in rings_of(collection)])
    assert longitudes.min() == -180
    assert longitudes.max() == 180
    on_ground = mask.sum() * 1e6 / ((1 + np.sin(np.radians(70))) / 2) ** 2  # true scale at 70 degrees north
    assert max(np.asarray(ring)[:, 1].max() for _, ring in rings_of(collection)) == 90
    assert collection["features"][0]["properties"]["area_m2"] == pytest.approx(on_ground, rel=1e-3)


def test_the_same_place_as_the_cog(tmp_path, grid_case):
    crs, transform = grid_case
    mask = scene()
    write_mask_cog(tmp_path / "mask.tif", mask, transform, crs)
    with rasterio.open(tmp_path / "mask.tif") as dataset:
        grid = Grid(dataset.transform, dataset.crs, *dataset.shape)
        np.testing.assert_array_equal(rasterise(polygons(mask, transform, crs), grid), dataset.read(1))


def test_write(tmp_path):
    collection = polygons(scene(), from_origin(500000, 5000000, 10, 10), "EPSG:32632", prompt="Wäldchen")
    write_geojson(tmp_path / "a.geojson", collection)
    assert json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8")) == collection
    assert [file.name for file in tmp_path.iterdir()] == ["a.geojson"]


@pytest.mark.parametrize(("transform", "crs"), [(Affine.identity(), "EPSG:32632"), (from_origin(5, 5, 1, 1), None)])
def test_no_georeference(transform, crs):
    with pytest.raises(UserError, match=r"scene\.png has no georeference .* a polygon map needs one"):
        polygons(scene(), transform, crs, name="scene.png")
    with pytest.raises(UserError, match="no georeference"):
        rasterise({"type": "FeatureCollection", "features": []}, Grid(transform, None, 5, 5))


def test_a_probability_is_no_mask():
    with pytest.raises(UserError, match="bool or classes"):
        polygons(RNG.random(SHAPE), from_origin(500000, 5000000, 10, 10), "EPSG:32632")


def test_only_areas_can_be_drawn():
    grid = Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 5, 5)
    with pytest.raises(UserError, match="not from 'Point'"):
        rasterise({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}, grid)


@pytest.mark.parametrize(
    ("geojson", "message"),
    [
        ({}, "not from None"),
        ([], "not from 'list'"),
        ({"type": "FeatureCollection"}, "a FeatureCollection lacks what belongs to it"),
        ({"type": "FeatureCollection", "features": 3}, "a FeatureCollection lacks"),
        ({"type": "Polygon"}, "a Polygon lacks"),
        ({"type": "Polygon", "coordinates": [[]]}, "no list of"),
        ({"type": "Polygon", "coordinates": [[[9, 45], [9, "x"], [9, 45], [9, 45]]]}, "no list of"),
        ({"type": "Polygon", "coordinates": [[[9, 45], [9, 46], [9, 45]]]}, "at least four points"),
        (
            {"type": "Polygon", "coordinates": [[[5e5, 5e6], [6e5, 5e6], [6e5, 4e6], [5e5, 5e6]]]},
            "no longitude and lat",
        ),
        (
            {"type": "Polygon", "coordinates": [[[float("nan"), 5], [6, 5], [6, 4], [5, 5]]]},
            "no longitude and latitude",
        ),
    ],
)
def test_broken_geojson(geojson, message):
    with pytest.raises(UserError, match=message):
        rasterise(geojson, Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 5, 5))


@pytest.mark.parametrize("crs", ["EPSG:4978", 'LOCAL_CS["site",UNIT["metre",1]]'])
def test_a_crs_that_is_no_map(crs):
    with pytest.raises(UserError, match="is no map of the Earth"):
        polygons(scene(), from_origin(500000, 5000000, 10, 10), CRS.from_user_input(crs))


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:4326", from_origin(10, 95, 1e-3, 1e-3)), ("EPSG:32632", from_origin(5e7, 5e9, 10, 10))],
)
def test_no_place_on_earth(crs, transform):
    with pytest.raises(UserError, match=r"a\.tif: its centre, .*, is no place on Earth"):
        polygons(scene(), transform, crs, name="a.tif")


def test_a_mask_beyond_the_disc_of_the_earth():
    """A geostationary view: what lies on the disc is drawn, what lies beside it is refused."""
    crs = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    transform = from_origin(-5500000, 5500000, 110000, 110000)
    mask = np.zeros((100, 100), bool)
    mask[40:60, 30:70] = True
    collection = polygons(mask, transform, crs)
    assert np.isfinite(np.asarray(collection["features"][0]["geometry"]["coordinates"][0])).all()
    mask[:3, :3] = True
    with pytest.raises(UserError, match="not on Earth in its CRS"):
        polygons(mask, transform, crs)


POLAR = {
    "pole_inside": lambda d: d < 40,
    "ring_around_the_pole": lambda d: (d < 45) & (d > 20),
    "ring_and_cap": lambda d: ((d < 45) & (d > 20)) | (d < 8),
}


@pytest.mark.parametrize("name", POLAR)
@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:3031"])
def test_around_a_pole(name, crs):
    """Regions that hold a pole, or a hole with it: valid polygons within -180..180, of the right area, and back."""
    rows, columns = np.mgrid[:101, :101] - 50
    mask = POLAR[name](np.hypot(rows, columns))
    grid = Grid(from_origin(-50.5 * 10000, 50.5 * 10000, 10000, 10000), CRS.from_user_input(crs), 101, 101)
    collection = polygons(mask, grid.transform, grid.crs)
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in collection["features"]]
    assert shapely.is_valid(shapes).all()
    assert all(shape.bounds[0] >= -180 and shape.bounds[2] <= 180 for shape in shapes)
    sign = 1 if crs == "EPSG:3413" else -1
    pole = shapely.Point(33, sign * 89.99)
    assert any(shape.contains(pole) for shape in shapes) == (name != "ring_around_the_pole")
    total = sum(feature["properties"]["area_m2"] for feature in collection["features"])
    assert total == pytest.approx(mask.sum() * grid.gsd**2, rel=0.01)
    back = rasterise(collection, grid) > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.999


def test_areas_on_the_other_side_of_the_earth():
    """The projection round the middle of the image has no place for it."""
    mask = np.zeros((180, 360), np.uint8)
    mask[60:70, 5:30] = mask[150:] = 1
    features = polygons(mask, from_origin(-180, 90, 1, 1), "EPSG:4326")["features"]
    radius = 6371007.18  # of the sphere of the same area as WGS84's
    steps = np.radians([30, 20])
    box = radius**2 * np.radians(25) * -np.diff(np.sin(steps))[0]
    cap = 2 * np.pi * radius**2 * (1 - np.sin(np.radians(60)))
    assert [f["properties"]["area_m2"] for f in features] == pytest.approx([box, cap], rel=0.01)
