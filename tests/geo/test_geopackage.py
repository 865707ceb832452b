"""GeoPackages: what a GIS reads back is what was drawn, in the scene's own CRS, or there is no file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.geopackage import BATCH, write_geopackage
from earthmind_jax.geo.vector import trace_polygons

HERE = from_origin(500000, 5000000, 10, 10)


def blobs(shape=(120, 150)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    mask = np.sin(rows / 9) * np.cos(columns / 7) > 0.4
    mask[60:90, 40:70] = True
    mask[70:80, 50:60] = False
    return mask


def read(path, layer="masks"):
    meta, _, geometry, fields = pyogrio.raw.read(path, layer=layer)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


def test_polygons_on_the_scene_grid(tmp_path, grid_case):
    crs, transform = grid_case
    mask = blobs()
    weight = np.linspace(0, 1, mask.size).reshape(mask.shape)
    traced = trace_polygons(
        mask, transform, crs, prompt="Wälder", score=0.5, model="m", layers={"sar_weight": weight}, properties={"n": 3}
    )
    write_geopackage(tmp_path / "a.gpkg", traced.features(), crs)
    meta, shapes, fields = read(tmp_path / "a.gpkg")
    assert CRS.from_user_input(meta["crs"]) == CRS.from_user_input(crs)
    assert meta["geometry_type"] == "MultiPolygon"
    assert shapely.is_valid(shapes).all()
    drawn = rasterio.features.rasterize(
        [(shape.__geo_interface__, 1) for shape in shapes], out_shape=mask.shape, transform=transform, dtype="uint8"
    )
    np.testing.assert_array_equal(drawn, mask)
    assert set(fields) == {"prompt", "score", "area_m2", "model", "sar_weight", "n"}
    assert (fields["prompt"] == "Wälder").all()
    assert (fields["n"] == 3).all()
    in_degrees = [feature["properties"] for feature in traced.geojson()["features"]]
    np.testing.assert_allclose(fields["area_m2"], [one["area_m2"] for one in in_degrees])
    largest = np.argmax(shapely.area(shapes))
    inside = rasterio.features.rasterize([shapes[largest].__geo_interface__], mask.shape, transform=transform) > 0
    assert fields["sar_weight"][largest] == pytest.approx(weight[inside].mean(), abs=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gpkg"]


def test_no_region_is_an_empty_layer(tmp_path):
    write_geopackage(tmp_path / "a.gpkg", [], "EPSG:32632", "water")
    meta, shapes, _ = read(tmp_path / "a.gpkg", "water")
    assert len(shapes) == 0
    assert CRS.from_user_input(meta["crs"]) == CRS.from_epsg(32632)


def test_more_features_than_are_written_at_once(tmp_path):
    features = (
        {
            "geometry": {"type": "Polygon", "coordinates": [[[i, 0], [i + 1, 0], [i + 1, 1], [i, 0]]]},
            "properties": {"number": i, "share": None if i % 2 else i / 4, "name": None if i % 3 else f"n{i}"},
        }
        for i in range(2 * BATCH + 7)
    )
    write_geopackage(tmp_path / "a.gpkg", features, "EPSG:3857")
    _, shapes, fields = read(tmp_path / "a.gpkg")
    assert len(shapes) == 2 * BATCH + 7
    np.testing.assert_array_equal(fields["number"], np.arange(2 * BATCH + 7))
    assert np.isnan(fields["share"][1])
    assert fields["share"][2] == 0.5
    assert fields["name"][1] is None
    assert fields["name"][3] == "n3"


def test_an_older_file_is_replaced(tmp_path):
    one = trace_polygons(np.ones((3, 3), bool), HERE, "EPSG:32632").features()
    write_geopackage(tmp_path / "a.gpkg", one * 5, "EPSG:32632", "old")
    write_geopackage(tmp_path / "a.gpkg", one, "EPSG:32632", "new")
    assert [name for name, _ in pyogrio.list_layers(tmp_path / "a.gpkg")] == ["new"]


@pytest.mark.parametrize(
    ("name", "crs", "layer", "message"),
    [
        ("no/a.gpkg", "EPSG:32632", "masks", "does not exist; create it first"),
        (".", "EPSG:32632", "masks", "is a folder"),
        ("a.gpkg", "EPSG:999999", "masks", "no known coordinate reference system"),
        ("a.gpkg", "EPSG:32632", "", "cannot be the name of a layer"),
        ("a.gpkg", "EPSG:32632", "gpkg_contents", "cannot be the name of a layer"),
    ],
)
def test_bad_requests(tmp_path, name, crs, layer, message):
    with pytest.raises(UserError, match=message):
        write_geopackage(tmp_path / name, [], crs, layer)
    assert not list(tmp_path.iterdir())


def test_attributes_must_agree(tmp_path):
    triangle = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    features = [{"geometry": triangle, "properties": {name: 1}} for name in ("a", "b")]
    with pytest.raises(UserError, match="not all have a, b"):
        write_geopackage(tmp_path / "a.gpkg", features, "EPSG:32632")
    assert not list(tmp_path.iterdir())


def test_a_failure_in_the_middle_keeps_the_old(tmp_path):
    def features():
        yield from trace_polygons(np.ones((3, 3), bool), HERE, "EPSG:32632").features() * (BATCH + 1)
        raise OSError(28, "No space left on device")

    write_geopackage(tmp_path / "a.gpkg", [], "EPSG:32632", "old")
    with pytest.raises(WorkError, match="No space left on device"):
        write_geopackage(tmp_path / "a.gpkg", features(), "EPSG:32632")
    assert [file.name for file in tmp_path.iterdir()] == ["a.gpkg"]
    assert [name for name, _ in pyogrio.list_layers(tmp_path / "a.gpkg")] == ["old"]


FULL_DISK = """
    import resource, signal, sys
    import numpy as np
    from rasterio.transform import from_origin
    from earthmind_jax.errors import WorkError
    from earthmind_jax.geo.geopackage import write_geopackage
    from earthmind_jax.geo.vector import trace_polygons

    mask = np.random.default_rng(0).random((60, 60)) > 0.6
    features = trace_polygons(mask, from_origin(500000, 5000000, 10, 10), "EPSG:32632").features()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    try:
        write_geopackage(sys.argv[1] + "/a.gpkg", features, "EPSG:32632")
    except WorkError as error:
        sys.exit(0 if "could not be written" in str(error) else str(error))
    sys.exit("no error")
"""


@pytest.mark.parametrize("limit", [0, 110_000])
def test_full_disk_leaves_nothing(tmp_path, limit):
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path), str(limit)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.iterdir())


def test_it_is_a_geopackage(tmp_path):
    """The application id and the tables that OGC 12-128 asks for."""
    write_geopackage(tmp_path / "a.gpkg", trace_polygons(blobs(), HERE, "EPSG:32632").features(), "EPSG:32632")
    with sqlite3.connect(tmp_path / "a.gpkg") as database:
        assert database.execute("PRAGMA application_id").fetchone()[0] == 0x47504B47
        row = database.execute("SELECT table_name, data_type, srs_id FROM gpkg_contents").fetchone()
        assert row == ("masks", "features", 32632)
    database.close()
