"""STAC Items: the fields that the specification and its extensions ask for, on every kind of grid."""

from __future__ import annotations

import datetime
import hashlib
import json
import re

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError
from earthmind_jax.geo import stac
from earthmind_jax.geo.geopackage import write_geopackage
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.stac import write_stac_item
from earthmind_jax.geo.write import write_mask_cog, write_probability_cog

# What the JSON schemas of STAC 1.1.0 and the extensions require: name -> test of the value
ITEM = {
    "type": lambda v: v == "Feature",
    "stac_version": lambda v: v == "1.1.0",
    "stac_extensions": lambda v: len(set(v)) == len(v) and all(u.endswith("schema.json") for u in v),
    "id": lambda v: isinstance(v, str) and v,
    "geometry": lambda v: v["type"] in ("Polygon", "MultiPolygon"),
    "bbox": lambda v: len(v) == 4 and -180 <= v[0] <= 180 and -90 <= v[1] <= v[3] <= 90 and -180 <= v[2] <= 180,
    "properties": lambda v: isinstance(v, dict),
    "links": lambda v: all({"rel", "href"} <= set(link) for link in v),
    "assets": lambda v: all("href" in asset for asset in v.values()),
}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
PROPERTIES = {
    "datetime": lambda v: v is None or RFC3339.fullmatch(v),
    "created": RFC3339.fullmatch,
    "gsd": lambda v: v > 0,
    "proj:code": lambda v: v is None or re.fullmatch(r"[A-Z]+:\d+", v),
    "proj:shape": lambda v: len(v) == 2 and all(isinstance(n, int) for n in v),
    "proj:transform": lambda v: len(v) in (6, 9),
    "proj:bbox": lambda v: len(v) == 4 and v[0] < v[2] and v[1] < v[3],
    "processing:software": lambda v: v and all(isinstance(version, str) for version in v.values()),
}
ROLES = {"data", "metadata", "overview", "thumbnail", "visual", "date", "graphic"}


def stac_item(*arguments, **options):
    return stac.stac_item(*arguments, software={"earthmind_jax": "0"}, **options)


def check(item):
    """AssertionError where the Item lacks what the specification asks for; returns it through JSON."""
    item = json.loads(json.dumps(item, allow_nan=False))
    for name, good in ITEM.items():
        assert name in item, name
        assert good(item[name]), (name, item[name])
    properties = item["properties"]
    for name, good in PROPERTIES.items():
        assert name in properties, name
        assert good(properties[name]), (name, properties[name])
    if properties["datetime"] is None:
        assert RFC3339.fullmatch(properties["start_datetime"])
        assert properties["start_datetime"] <= properties["end_datetime"]
    if properties["proj:code"] is None:
        assert properties["proj:wkt2"]
    prefixes = {name.split(":")[0] for name in properties if ":" in name} - {"earthmind"}
    declared = {"proj" if "projection" in uri else uri.split("/")[3] for uri in item["stac_extensions"]}
    assert prefixes <= declared
    if "sar" in declared:
        required = {"sar:instrument_mode", "sar:frequency_band", "sar:polarizations", "sar:product_type"}
        assert required <= set(properties)
    for asset in item["assets"].values():
        assert set(asset["roles"]) <= ROLES
        assert re.fullmatch(r"1220[0-9a-f]{64}", asset["file:checksum"])
        assert asset["file:size"] > 0
        assert not asset["href"].startswith("/")
        for band in asset.get("bands", ()):
            assert {"name", "data_type"} <= set(band)
    shape = shapely.geometry.shape(item["geometry"])
    assert shape.is_valid
    west, south, east, north = item["bbox"]
    minx, miny, maxx, maxy = shape.bounds
    assert (south, north) == (miny, maxy)
    assert (west, east) == (minx, maxx) or (west > east and (minx, maxx) == (-180, 180))
    return item


def files(tmp_path, grid):
    mask = np.zeros(grid.shape, bool)
    mask[5:9, 5:9] = True
    write_mask_cog(tmp_path / "mask.tif", mask, grid.transform, grid.crs)
    write_probability_cog(tmp_path / "p.tif", mask * 0.5, grid.transform, grid.crs, percent=True)
    write_geopackage(tmp_path / "m.gpkg", [], grid.crs)
    return {"mask": tmp_path / "mask.tif", "probability": tmp_path / "p.tif", "polygons": tmp_path / "m.gpkg"}


def test_every_grid(tmp_path, grid_case):
    crs, transform = grid_case
    grid = Grid(transform, CRS.from_user_input(crs), 120, 150)
    item = check(stac_item("one", grid, files(tmp_path, grid), tmp_path))
    shape = shapely.geometry.shape(item["geometry"])
    area = grid.gsd**2 * 120 * 150
    degrees = area / (111195**2 * np.cos(np.radians(shape.centroid.y)))
    assert shape.area == pytest.approx(degrees, rel=0.02)  # nothing runs around the world
    assert shapely.count_coordinates(shape) < 60
    assert item["assets"]["mask"]["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    assert item["assets"]["mask"]["bands"][0] == {
        "name": "mask", "data_type": "uint8", "nodata": 255, "raster:sampling": "area"
    }  # fmt: skip
    assert item["assets"]["probability"]["bands"][0]["raster:scale"] == 0.01
    assert item["properties"]["proj:transform"] == [*transform[:6], 0, 0, 1]
    assert item["properties"]["proj:code"] == crs


@pytest.mark.parametrize(
    ("crs", "transform", "shape", "bbox"),
    [
        ("EPSG:4326", from_origin(-180, 90, 1, 1), (180, 360), [-180, -90, 180, 90]),
        ("EPSG:4326", from_origin(0, 90, 1, 1), (180, 360), [-180, -90, 180, 90]),
        ("EPSG:4326", from_origin(-180, 90, 1, 1), (90, 360), [-180, 0, 180, 90]),
        ("EPSG:4326", from_origin(100, 50, 1, 1), (90, 200), [100, -40, -60, 50]),
        ("EPSG:4326", from_origin(-100, 50, 1, 1), (90, 195), [-100, -40, 95, 50]),
        ("EPSG:3857", from_origin(-20037508.3427, 1e7, 100187.541714, 1e5), (200, 400), None),
    ],
)
def test_more_than_half_way_round_the_world(tmp_path, crs, transform, shape, bbox):
    grid = Grid(transform, CRS.from_user_input(crs), *shape, name="world")
    write_mask_cog(tmp_path / "mask.tif", np.ones(shape, bool), transform, crs)
    item = stac.stac_item("world", grid, {"mask": tmp_path / "mask.tif"}, tmp_path, software={})
    footprint = shapely.from_geojson(json.dumps(item["geometry"]))
    assert footprint.is_valid
    west, south, east, north = item["bbox"]
    if bbox is not None:
        assert item["bbox"] == pytest.approx(bbox, abs=1e-6)
    turn = east - west if east > west else 360 + east - west
    assert turn == pytest.approx(min(360, shape[1]), abs=1e-3)
    assert footprint.area == pytest.approx(turn * (north - south), rel=1e-6)


def test_the_antimeridian_is_cut(tmp_path):
    grid = Grid(from_origin(179.995, 10.0, 0.0001, 0.0001), CRS.from_epsg(4326), 100, 150)
    item = check(stac_item("one", grid, {}, tmp_path))
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["bbox"] == pytest.approx([179.995, 9.99, -179.99, 10.0])


def test_a_pole_inside(tmp_path):
    grid = Grid(from_origin(-1e6, 1e6, 10000, 10000), CRS.from_epsg(3031), 200, 200)
    item = check(stac_item("one", grid, {}, tmp_path))
    assert item["bbox"][:2] == [-180, -90]
    assert item["bbox"][2] == 180
    shape = shapely.geometry.shape(item["geometry"])
    assert shape.contains(shapely.Point(45, -89.99))
    assert shape.contains(shapely.Point(-135, -85))
    assert not shape.contains(shapely.Point(0, -70))


def test_times_links_and_radar(tmp_path, make_tif):
    here = from_origin(500000, 5000000, 10, 10)
    grid = Grid(here, CRS.from_epsg(32632), 20, 20)
    s2 = make_tif("s2.tif", np.ones((1, 20, 20), np.uint16), tags={"datetime": "2023-06-10T07:46:21Z"})
    s1 = make_tif("S1A_IW_GRDH_1SDV_20230613T074622_20230613T074647_049.tif", np.ones((2, 20, 20), np.float32))
    out = tmp_path / "out"
    out.mkdir()
    notes = ["optical: offset -1000", "SAR: resampled"]
    item = check(
        stac_item("one", grid, {}, out, inputs={"optical": s2, "sar": s1}, notes=notes, properties={"earthmind:x": 1})
    )
    properties = item["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "2023-06-10T07:46:21Z"
    assert properties["end_datetime"] == "2023-06-13T07:46:22Z"
    assert properties["sar:polarizations"] == ["VV", "VH"]
    assert properties["sar:instrument_mode"] == "IW"
    assert properties["processing:lineage"] == "optical: offset -1000; SAR: resampled"
    assert [link["rel"] for link in item["links"]] == ["derived_from"] * 2
    assert item["links"][0]["href"] == "../s2.tif"
    alone = check(stac_item("one", grid, {}, out, inputs={"optical": s2}))
    assert alone["properties"]["datetime"] == "2023-06-10T07:46:21Z"
    assert "sar:polarizations" not in alone["properties"]


def test_a_day_alone_is_all_of_it(tmp_path, make_tif):
    grid = Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 20, 20)
    files = [make_tif(f"s2_{day}.tif", np.ones((1, 20, 20), np.uint16)) for day in ("20240611", "2024-05-01")]
    one = check(stac_item("one", grid, {}, tmp_path, inputs={"optical": files[0]}))["properties"]
    assert one["datetime"] is None
    assert (one["start_datetime"], one["end_datetime"]) == ("2024-06-11T00:00:00Z", "2024-06-11T23:59:59Z")
    both = check(stac_item("two", grid, {}, tmp_path, inputs=dict(zip("ab", files, strict=True))))["properties"]
    assert (both["start_datetime"], both["end_datetime"]) == ("2024-05-01T00:00:00Z", "2024-06-11T23:59:59Z")


def test_no_time_is_a_span(tmp_path):
    grid = Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 20, 20)
    properties = check(stac_item("one", grid, {}, tmp_path, inputs={"optical": tmp_path / "gone.tif"}))["properties"]
    assert properties["datetime"] is None
    end = datetime.datetime.fromisoformat(properties["end_datetime"])
    assert abs((datetime.datetime.now(datetime.UTC) - end).total_seconds()) < 60


def test_a_crs_without_a_code(tmp_path):
    crs = CRS.from_proj4("+proj=laea +lat_0=47 +lon_0=9 +datum=WGS84 +units=m")
    item = check(stac_item("one", Grid(from_origin(0, 0, 10, 10), crs, 20, 20), {}, tmp_path))
    assert CRS.from_wkt(item["properties"]["proj:wkt2"]) == crs


def test_written_and_bad_requests(tmp_path):
    grid = Grid(from_origin(500000, 5000000, 10, 10), CRS.from_epsg(32632), 20, 20)
    made = files(tmp_path, grid)
    write_stac_item(tmp_path / "item.json", stac_item("one", grid, made, tmp_path))
    item = check(json.loads((tmp_path / "item.json").read_text()))
    digest = hashlib.sha256(made["mask"].read_bytes()).hexdigest()
    assert item["assets"]["mask"]["file:checksum"] == f"1220{digest}"
    with pytest.raises(UserError, match=r"gone\.tif does not exist"):
        stac_item("one", grid, {"mask": tmp_path / "gone.tif"}, tmp_path)
    with pytest.raises(UserError, match="no georeference"):
        stac_item("one", Grid(Affine.identity(), None, 5, 5), {}, tmp_path)
    with pytest.raises(UserError, match="no place on Earth"):
        stac_item("one", Grid(from_origin(0, 95, 1e-3, 1e-3), CRS.from_epsg(4326), 5, 5, "a.tif"), {}, tmp_path)
