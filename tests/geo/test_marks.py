"""Prompts on the pixels of an image: positions in many CRSs, what is cut off, and what a name stands for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.data.tiles import region_cells
from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import WGS84, Grid, project, to_map, to_pixel
from earthmind_jax.geo.marks import place
from earthmind_jax.geo.marks_file import parse_prompts, read_prompts
from earthmind_jax.geo.prompts import Prompt

UTM = Grid(Affine(10, 0, 500000, 0, -10, 5600000), CRS.from_epsg(32633), 200, 300, "s2.tif")
GRIDS = {
    "utm north": UTM,
    "utm south": Grid(Affine(10, 0, 300000, 0, -10, 6200000), CRS.from_epsg(32719), 200, 300),
    "antimeridian east": Grid(Affine(100, 0, 780000, 0, -100, 7000000), CRS.from_epsg(32660), 400, 600),
    "antimeridian west": Grid(Affine(100, 0, 200000, 0, -100, 7000000), CRS.from_epsg(32601), 400, 600),
    "degrees": Grid(Affine(1e-4, 0, -58.5, 0, -1e-4, -34.2), CRS.from_epsg(4326), 200, 300),
    "degrees beyond 180": Grid(Affine(1e-3, 0, 179.9, 0, -1e-3, 10), CRS.from_epsg(4326), 200, 300),
    "0 to 360": Grid(Affine(1e-3, 0, 280.0, 0, -1e-3, 10), CRS.from_epsg(4326), 200, 300),
    "web mercator": Grid(Affine(10, 0, 1.4e6, 0, -10, 6.1e6), CRS.from_epsg(3857), 200, 300),
    "polar": Grid(Affine(1000, 0, -150000, 0, -1000, 100000), CRS.from_epsg(3413), 200, 300),
    "polar south": Grid(Affine(40, 0, 1.2e6, 0, -40, 4e5), CRS.from_epsg(3031), 200, 300),
    "rotated": Grid(Affine(8, 3, 500000, 3, -8, 5600000), CRS.from_epsg(32633), 200, 300),
    "south up": Grid(Affine(10, 0, 500000, 0, 10, 5600000), CRS.from_epsg(32633), 200, 300),
    "laea": Grid(Affine(10, 0, 4.3e6, 0, -10, 3.1e6), CRS.from_epsg(3035), 200, 300),
    "feet": Grid(Affine(30, 0, 980000, 0, -30, 200000), CRS.from_epsg(2263), 200, 300),
}


def outline(grid, box, crs, per_side=200):
    """The pixel box as a dense ring in another CRS."""
    line = shapely.segmentize(shapely.box(*box).exterior, max(box[2] - box[0], box[3] - box[1]) / per_side)
    columns, rows = shapely.get_coordinates(line).T
    return np.stack(project(grid.crs, crs, *to_map(grid.transform, columns, rows)), -1)


@pytest.mark.parametrize("name", GRIDS)
def test_map_positions_land_on_their_pixels(name):
    grid = GRIDS[name]
    rng = np.random.default_rng(0)
    columns, rows = rng.uniform(1, grid.width - 1, 20), rng.uniform(1, grid.height - 1, 20)
    longitude, latitude = project(grid.crs, WGS84, *to_map(grid.transform, columns, rows))
    longitude = (longitude + 180) % 360 - 180  # as any map tool writes it
    (mark,), notes = place([Prompt.points(list(zip(longitude, latitude, strict=True)), crs="OGC:CRS84")], grid)
    order = np.lexsort(mark.points.T)
    wanted = np.stack([columns, rows], -1)
    np.testing.assert_allclose(mark.points[order], wanted[np.lexsort(wanted.T)], atol=1e-3)
    assert not notes


@pytest.mark.parametrize("name", GRIDS)
def test_polygons_land_on_their_pixels(name):
    grid = GRIDS[name]
    box = (40.5, 30.5, 180.5, 120.5)
    ring = outline(grid, box, WGS84)
    ring[:, 0] = (ring[:, 0] + 180) % 360 - 180
    if np.ptp(np.unwrap(ring[:, 0], period=360)[[0, -1]]) > 180:
        pytest.skip("a ring around the pole is no polygon in degrees")
    (mark,), _ = place([Prompt.polygon(ring, crs="OGC:CRS84")], grid)
    np.testing.assert_allclose(mark.bounds, box, atol=0.05)
    drawn = mark.drawn()
    wanted = np.zeros(grid.shape, bool)
    wanted[31:120, 41:180] = True  # the pixels whose centres lie inside; those on the outline may go either way
    assert not (wanted & ~drawn).any()
    wanted[30:121, 40:181] = True
    assert not (drawn & ~wanted).any()


def test_straight_edges_are_straight_in_their_own_crs():
    """A parallel is a curve in UTM: the polygon follows it between corners that are 50 km apart."""
    grid = Grid(Affine(10, 0, 460000, 0, -10, 7000000), CRS.from_epsg(32633), 3000, 8000)
    longitude, latitude = project(
        grid.crs, WGS84, *to_map(grid.transform, np.array([500, 7500]), np.array([1500, 1500]))
    )
    south = float(latitude.max()) - 0.01
    ring = [(longitude[0], south), (longitude[1], south), (longitude[1], south + 0.005), (longitude[0], south + 0.005)]
    (mark,), _ = place([Prompt.polygon(ring, crs="EPSG:4326")], grid)
    corners = shapely.get_coordinates(mark.area)
    middle = np.linspace(longitude[0], longitude[1], 501)
    true = to_pixel_of(grid, middle, np.full(501, south))
    distance = shapely.distance(mark.area.boundary, shapely.points(true))
    assert distance.max() < 0.06
    straight = shapely.LineString(true[[0, -1]])
    assert straight.distance(shapely.Point(true[250])) > 5  # pixels that the chord would be wrong by
    assert 8 < len(corners) < 2000


def to_pixel_of(grid, longitude, latitude):
    return np.stack(to_pixel(grid.transform, *project(WGS84, grid.crs, longitude, latitude)), -1)


def test_a_polygon_across_the_antimeridian_in_either_form():
    grid = Grid(Affine(1000, 0, 300000, 0, -1000, 100000), CRS.from_epsg(32660), 200, 800)
    jumping = [(179.5, 0.2), (-179.5, 0.2), (-179.5, 0.6), (179.5, 0.6)]
    continued = [(x % 360, y) for x, y in jumping]
    one, two = (place([Prompt.polygon(ring, crs="EPSG:4326")], grid)[0][0] for ring in (jumping, continued))
    assert one.area.symmetric_difference(two.area).area < 1e-6 * one.area.area
    cut = {"type": "MultiPolygon", "coordinates": [
        [[[179.5, 0.2], [180, 0.2], [180, 0.6], [179.5, 0.6], [179.5, 0.2]]],
        [[[-180, 0.2], [-179.5, 0.2], [-179.5, 0.6], [-180, 0.6], [-180, 0.2]]],
    ]}  # fmt: skip
    three = place(parse_prompts(cut), grid)[0][0]
    assert one.area.symmetric_difference(three.area).area < 1e-3 * one.area.area
    assert 100 < one.bounds[2] - one.bounds[0] < 125  # a degree of longitude, in kilometres


def test_what_is_outside_is_cut_off_and_said():
    marks, notes = place([Prompt.from_box(-10, -10, 50, 40), Prompt.line([(290, 10), (400, 10)])], UTM)
    assert marks[0].box == (0, 0, 50, 40)
    assert 290 < marks[1].clicks[0][:, 0].max() < 300
    assert marks[1].clicks[1].tolist() == [1]
    assert len(notes) == 2
    assert all("partly outside s2.tif" in note for note in notes)
    world = Prompt.polygon([(-179, -80), (179, -80), (179, 84), (-179, 84)], crs="EPSG:4326")
    with pytest.raises(UserError):  # more than half of a turn goes the short way: this ring is two degrees wide
        place([world], UTM)
    country = Prompt.polygon([(5, 40), (25, 40), (25, 60), (5, 60)], crs="EPSG:4326")
    (mark,), notes = place([country], UTM)
    assert mark.drawn().all()
    assert len(notes) == 1


def test_parts_of_one_name_are_one_object():
    prompts = [
        Prompt.point(10, 10, name="lake"),
        Prompt.point(20, 20),
        Prompt.point(30, 30, 0),
        Prompt.from_box(5, 5, 50, 50, name="lake"),
        Prompt.polygon([(60, 60), (90, 60), (90, 90)], name="wood"),
        Prompt.polygon([(80, 60), (90, 60), (90, 90), (80, 90)], label=0, name="wood"),
    ]
    lake, second, wood = place(prompts, UTM)[0]
    assert [m.name for m in (lake, second, wood)] == ["lake", "region2", "wood"]
    assert lake.box == (5, 5, 50, 50)
    assert lake.labels.tolist() == [1]
    assert second.labels.tolist() == [1, 0]
    assert wood.bounds[2] == 80
    assert wood.drawn()[60, 70:80].all()
    assert not wood.drawn()[:, 80:].any()


def test_what_a_name_stands_for():
    point, line, polygon, box = place(
        [
            Prompt.point(160, 40),
            Prompt.line([(10, 110), (290, 110)]),
            Prompt.polygon([(100.2, 50.2), (100.4, 50.2), (100.4, 50.4)]),
            Prompt.from_box(0, 0, 150, 100),
        ],
        UTM,
    )[0]
    cells = (4, 4)  # of 50 x 75 pixels
    wanted = np.zeros(UTM.shape, bool)
    wanted[:50, 150:225] = True
    np.testing.assert_array_equal(point.region(cells), wanted)
    wanted[:] = False
    wanted[100:150] = True
    np.testing.assert_array_equal(line.region(cells), wanted)
    assert np.argwhere(polygon.region(cells)).tolist() == [[50, 100]]
    assert box.region(cells).sum() == 150 * 100


@pytest.mark.parametrize("shape", [(200, 300), (101, 37), (10, 13), (64, 64)])
def test_tokens_touched_are_those_found_again(shape):
    """Whatever the image's size: the token that a point lies in, and every token along a line, and no other."""
    cells, rng = (16, 16), np.random.default_rng(0)
    grid = Grid(Affine.identity(), None, *shape)
    for _ in range(20):
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        (mark,), _ = place([Prompt.point(x, y)], grid)
        found = [divmod(token, 16) for _, token in region_cells(mark.region(cells), 16, (1, 1))]
        own = (int(y * 16 / shape[0]), int(x * 16 / shape[1]))
        # An image with fewer pixels than tokens has pixels that several tokens share.
        assert own in found
        assert len(found) == 1 or min(shape) < 16
    (mark,), _ = place([Prompt.line([(0.1, shape[0] / 2 + 0.1), (shape[1] - 0.1, shape[0] / 2 + 0.1)])], grid)
    found = [divmod(token, 16) for _, token in region_cells(mark.region(cells), 16, (1, 1))]
    assert {column for _, column in found} == set(range(16))
    assert len({row for row, _ in found}) == 1 or min(shape) < 16


def test_a_window_moves_and_cuts_marks():
    prompts = [Prompt.point(160, 40, name="a"), Prompt.from_box(100, 20, 250, 120, name="a")]
    (mark,), _ = place(prompts, UTM)
    part = mark.window(30, 150, (64, 64))
    assert part.points.tolist() == [[10, 10]]
    assert part.box == (0, 0, 64, 64)
    assert part.region((64, 64)).all()
    assert mark.window(150, 0, (50, 50)) is None
    (line,), _ = place([Prompt.line([(0, 100), (200, 100)])], UTM)
    end = line.window(90, 190, (20, 20))
    assert end.clicks[0].tolist() == [[5, 10]]
    shape, _ = place([Prompt.polygon([(10, 10), (200, 30), (60, 190)])], UTM)
    window = shape[0].window(20, 40, (100, 90))
    np.testing.assert_array_equal(window.drawn(), shape[0].drawn()[20:120, 40:130])


def test_geojson_by_crs(tmp_path):
    x, y = to_map(UTM.transform, np.array([50.5]), np.array([60.5]))
    longitude, latitude = project(UTM.crs, WGS84, x, y)
    feature = {"type": "Feature", "properties": {"name": "ship", "label": "object"}}
    degrees = feature | {"geometry": {"type": "Point", "coordinates": [float(longitude[0]), float(latitude[0]), 12.0]}}
    metres = feature | {"geometry": {"type": "Point", "coordinates": [float(x[0]), float(y[0])]}}
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    forms = [
        (degrees, None),
        ({"type": "FeatureCollection", "features": [degrees]}, "EPSG:4326"),
        (metres | {"crs": named}, None),
        (metres, "EPSG:32633"),
        (feature | {"geometry": {"type": "Point", "coordinates": [50.5, 60.5]}}, "pixels"),
        (degrees["geometry"], None),
        (feature | {"geometry": {"type": "GeometryCollection", "geometries": [degrees["geometry"]]}}, None),
    ]
    for number, (values, crs) in enumerate(forms):
        path = tmp_path / f"{number}.geojson"
        path.write_text(json.dumps(values), encoding="utf-8-sig")
        (mark,), _ = place(read_prompts(path, crs), UTM)
        np.testing.assert_allclose(mark.points, [[50.5, 60.5]], atol=1e-3)
        assert mark.name in ("ship", "region1")


def test_layers_of_a_geopackage(tmp_path):
    """Of several it is not known which is meant; a table without geometry, as QGIS keeps its styles in, is none."""
    import pyogrio

    path, values = tmp_path / "a.gpkg", ([np.array(["x"], object)], np.array(["name"], object))

    def add(layer, geometry, kind, append=True):
        pyogrio.raw.write(path, geometry, *values, geometry_type=kind, crs="EPSG:32633", layer=layer, append=append)

    shape = np.array([shapely.to_wkb(shapely.box(500100, 5599000, 500500, 5599600))], object)
    add("fields", shape, "Polygon", append=False)
    add("layer_styles", None, None)
    (mark,), _ = place(read_prompts(path), UTM)
    np.testing.assert_allclose(mark.bounds, (10, 40, 50, 100), atol=1e-6)
    add("roads", shape, "Polygon")
    with pytest.raises(UserError, match=r"holds 2 layers \(fields, roads\)"):
        read_prompts(path)


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".shp"])
def test_other_vector_files(tmp_path, suffix):
    import pyogrio

    geometry = np.array([shapely.to_wkb(shapely.box(500100, 5599000, 500500, 5599600))], object)
    fields, values = np.array(["name"], object), [np.array(["field"], object)]
    path = tmp_path / f"a{suffix}"
    pyogrio.raw.write(path, geometry, values, fields, geometry_type="Polygon", crs="EPSG:32633")
    (mark,), _ = place(read_prompts(path), UTM)
    assert mark.name == "field"
    np.testing.assert_allclose(mark.bounds, (10, 40, 50, 100), atol=1e-6)
