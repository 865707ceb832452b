"""An object of known longitude and latitude, in twelve kinds of grid, lands where it is: through every kind of map.

The object's outline is worked out here, on the ellipsoid, by formulas of this file alone (transverse Mercator by
Krueger's series, polar stereographic, Mercator, Lambert's conformal and equal-area projections after Snyder 1987), so
that a mistake in axes, units, hemispheres or half pixels cannot cancel itself.
"""

from __future__ import annotations

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.features import shapes as rasterio_shapes

from earthmind_jax.geo.align import align
from earthmind_jax.geo.geopackage import write_geopackage
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.stream import polygons_of_file
from earthmind_jax.geo.vector import polygons, rasterise, trace_polygons, write_geojson
from earthmind_jax.geo.write import write_mask_cog
from earthmind_jax.infer.result import Answer, Mask

A, F = 6378137.0, 1 / 298.257223563  # WGS 84; GRS 80 differs by 0.1 mm
E = np.sqrt(F * (2 - F))
FOOT = 1200 / 3937  # US survey foot


def transverse_mercator(longitude, latitude, centre, north):
    """Easting, northing (Krueger 1912, to the third order: below a millimetre within a zone)."""
    n = F / (2 - F)
    lam = np.radians((longitude - centre + 180) % 360 - 180)
    t = np.sinh(np.arctanh(np.sin(latitude)) - E * np.arctanh(E * np.sin(latitude)))
    xi, eta = np.arctan2(t, np.cos(lam)), np.arctanh(np.sin(lam) / np.sqrt(1 + t**2))
    alpha = n / 2 - 2 * n**2 / 3 + 5 * n**3 / 16, 13 * n**2 / 48 - 3 * n**3 / 5, 61 * n**3 / 240
    x = eta + sum(a * np.cos(2 * j * xi) * np.sinh(2 * j * eta) for j, a in enumerate(alpha, 1))
    y = xi + sum(a * np.sin(2 * j * xi) * np.cosh(2 * j * eta) for j, a in enumerate(alpha, 1))
    radius = A / (1 + n) * (1 + n**2 / 4)
    return 500000 + 0.9996 * radius * x, (0 if north else 1e7) + 0.9996 * radius * y


def _t(latitude):
    """Snyder (15-9)."""
    s = np.sin(latitude)
    return np.tan(np.pi / 4 - latitude / 2) / ((1 - E * s) / (1 + E * s)) ** (E / 2)


def _m(latitude):
    """Snyder (14-15)."""
    return np.cos(latitude) / np.sqrt(1 - (E * np.sin(latitude)) ** 2)


def polar_stereographic(longitude, latitude, centre, true_scale, sign):
    """Snyder (21-33), (21-34); ``sign`` -1 is the south."""
    rho = A * _m(np.radians(true_scale)) * _t(sign * latitude) / _t(np.radians(true_scale))
    theta = np.radians(longitude - centre)
    return rho * np.sin(theta), -sign * rho * np.cos(theta)


def web_mercator(longitude, latitude):
    return A * np.radians(longitude), A * np.arctanh(np.sin(latitude))


def lambert_conic(longitude, latitude, centre, origin, parallels, false_x, false_y, unit=1.0):
    """Lambert's conformal conic with two standard parallels, Snyder (15-1) to (15-8)."""
    one, two, zero = np.radians([*parallels, origin])
    n = np.log(_m(one) / _m(two)) / np.log(_t(one) / _t(two))
    big = _m(one) / (n * _t(one) ** n)
    theta = n * np.radians(longitude - centre)
    rho, rho0 = A * big * _t(latitude) ** n, A * big * _t(zero) ** n
    return (false_x + rho * np.sin(theta)) / unit, (false_y + rho0 - rho * np.cos(theta)) / unit


def equal_area(longitude, latitude, centre, origin, false_x, false_y):
    """Lambert's azimuthal equal-area on the ellipsoid, oblique, Snyder (24-17) to (24-26)."""

    def q(angle):
        s = np.sin(angle)
        return (1 - E**2) * (s / (1 - (E * s) ** 2) - np.log((1 - E * s) / (1 + E * s)) / (2 * E))

    pole, zero, lam = q(np.pi / 2), np.radians(origin), np.radians(longitude - centre)
    beta, beta1 = np.arcsin(q(latitude) / pole), np.arcsin(q(zero) / pole)
    radius = A * np.sqrt(pole / 2)
    d = A * _m(zero) / (radius * np.cos(beta1))
    b = radius * np.sqrt(2 / (1 + np.sin(beta1) * np.sin(beta) + np.cos(beta1) * np.cos(beta) * np.cos(lam)))
    x = b * d * np.cos(beta) * np.sin(lam)
    y = b / d * (np.cos(beta1) * np.sin(beta) - np.sin(beta1) * np.cos(beta) * np.cos(lam))
    return false_x + x, false_y + y


def utm(zone, north=True):
    return lambda longitude, latitude: transverse_mercator(longitude, latitude, 6 * zone - 183, north)


def degrees(longitude, latitude):
    return longitude, np.degrees(latitude)


# name: (EPSG, longitude, latitude of the object, pixel, degrees turned, (flip columns, flip rows), forward)
CASES = {
    "utm_north": (32632, 10.4, 57.2, 10, 0, (1, 1), utm(32)),
    "utm_south": (32736, 34.1, -3.3, 10, 0, (1, 1), utm(36, False)),
    "utm_1_beyond_180": (32601, -179.999, 16.1, 20, 0, (1, 1), utm(1)),
    "utm_60_beyond_180": (32760, 179.998, -16.1, 20, 0, (1, 1), utm(60, False)),
    "polar_north": (3413, 120.0, 84.0, 25, 0, (1, 1), lambda o, a: polar_stereographic(o, a, -45, 70, 1)),
    "polar_south": (3031, -60.0, -78.0, 25, 0, (1, 1), lambda o, a: polar_stereographic(o, a, 0, 71, -1)),
    "web_mercator": (3857, -70.7, -53.2, 15, 0, (1, 1), web_mercator),
    "degrees": (4326, 8.5, 47.3, 1e-4, 0, (1, 1), degrees),
    "degrees_beyond_180": (4326, 180.003, 10.0, 1e-4, 0, (1, 1), degrees),
    "feet": (2263, -73.9, 40.75, 33, 0, (1, 1), lambda o, a: lambert_conic(
        o, a, -74, 40 + 1 / 6, (41 + 1 / 30, 40 + 2 / 3), 300000, 0, FOOT)),
    "lambert": (2154, 2.4, 48.7, 10, 0, (1, 1), lambda o, a: lambert_conic(o, a, 3, 46.5, (49, 44), 7e5, 6.6e6)),
    "laea": (3035, 24.9, 60.2, 10, 0, (1, 1), lambda o, a: equal_area(o, a, 10, 52, 4321000, 3210000)),
    "rotated": (32633, 15.3, 45.2, 10, 33, (1, 1), utm(33)),
    "south_up": (32633, 15.3, 45.2, 10, 0, (1, -1), utm(33)),
    "mirrored": (32633, 15.3, 45.2, 10, 0, (-1, 1), utm(33)),
}  # fmt: skip
SHAPE = (300, 340)
RADIUS = 60  # pixels, along longitude; the object is an ellipse of degrees, 0.7 times as high


class Scene:
    """A grid somewhere on Earth with an ellipse of longitude and latitude in it."""

    def __init__(self, name):
        epsg, self.longitude, self.latitude, size, turn, (east, down), self.forward = CASES[name]
        self.crs = CRS.from_epsg(epsg)
        x, y = self.forward(self.longitude, np.radians(self.latitude))
        here = Affine.translation(x, y) @ Affine.rotation(turn) @ Affine.scale(size * east, -size * down)
        self.transform = here @ Affine.translation(-SHAPE[1] / 2 - 7.3, -SHAPE[0] / 2 + 4.6)
        self.grid = Grid(self.transform, self.crs, *SHAPE, name)
        metres = RADIUS * self.grid.gsd
        self.radii = np.array([metres / (111320 * np.cos(np.radians(self.latitude))), 0.7 * metres / 110574])
        angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
        self.outline = np.stack([
            self.longitude + self.radii[0] * np.cos(angle), self.latitude + self.radii[1] * np.sin(angle)
        ])  # fmt: skip
        self.mask = shapely.contains_xy(
            shapely.Polygon(self.to_pixel(*self.outline).T), *np.meshgrid(*(np.arange(n) + 0.5 for n in SHAPE[::-1]))
        )

    def to_pixel(self, longitude, latitude):
        """By the formulas above; longitudes as the grid counts them."""
        longitude = self.longitude + (np.asarray(longitude) - self.longitude + 180) % 360 - 180
        x, y = self.forward(longitude, np.radians(latitude))
        t = ~self.transform
        return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f])

    def off(self, shape, to_pixel):
        """Of a drawn geometry: pixels between its centroid and that of the pixels whose centres lie in the object, and
        the largest distance of its edge from the object's."""
        drawn = shapely.transform(shape, lambda points: to_pixel(*points.T).T)
        drawn = shapely.union_all(shapely.buffer(shapely.get_parts(drawn), 1e-6))  # across the antimeridian
        true = shapely.Polygon(self.to_pixel(*self.outline).T)
        edge = shapely.segmentize(shapely.get_parts(drawn)[0].exterior, 0.5)
        far = shapely.distance(shapely.points(shapely.get_coordinates(edge)), true.exterior).max()
        rows, columns = (np.mean(index) + 0.5 for index in np.nonzero(self.mask))
        return np.hypot(drawn.centroid.x - columns, drawn.centroid.y - rows), far


@pytest.fixture(params=CASES)
def scene(request):
    return Scene(request.param)


HALF_DIAGONAL = np.sqrt(0.5) + 0.03  # a true edge cuts pixels at most this far from their corners


def test_cog(scene, tmp_path):
    write_mask_cog(tmp_path / "m.tif", scene.mask, scene.transform, scene.crs)
    with rasterio.open(tmp_path / "m.tif") as dataset:
        values = dataset.read(1)
        drawn = [shapely.geometry.shape(s) for s, v in rasterio_shapes(values, transform=dataset.transform) if v == 1]
        inverse = ~dataset.transform
    assert len(drawn) == 1
    centre, edge = scene.off(drawn[0], lambda x, y: np.stack(
        [inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f]
    ))  # fmt: skip
    assert centre < 0.01
    assert edge < HALF_DIAGONAL


def test_geojson(scene, tmp_path):
    collection = polygons(scene.mask, scene.transform, scene.crs)
    write_geojson(tmp_path / "m.geojson", collection)
    collection = json.loads((tmp_path / "m.geojson").read_text())
    assert len(collection["features"]) == 1
    shape = shapely.geometry.shape(collection["features"][0]["geometry"])
    assert shape.is_valid
    assert np.abs(shapely.get_coordinates(shape)[:, 0]).max() <= 180
    centre, edge = scene.off(shape, scene.to_pixel)
    assert centre < 0.01
    assert edge < HALF_DIAGONAL
    assert shapely.geometry.shape(collection["features"][0]["geometry"]).area == pytest.approx(
        np.pi * np.prod(scene.radii), rel=0.01
    )
    back = rasterise(collection, scene.grid) > 0
    assert (back & scene.mask).sum() / (back | scene.mask).sum() > 0.999


def test_geopackage(scene, tmp_path):
    traced = trace_polygons(scene.mask, scene.transform, scene.crs)
    write_geopackage(tmp_path / "m.gpkg", traced.features(), scene.crs)
    meta, _, geometry, _ = pyogrio.raw.read(tmp_path / "m.gpkg")
    assert CRS.from_user_input(meta["crs"]) == scene.crs
    inverse = ~scene.transform
    centre, edge = scene.off(shapely.from_wkb(geometry)[0], lambda x, y: np.stack(
        [inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f]
    ))  # fmt: skip
    assert centre < 0.01
    assert edge < HALF_DIAGONAL
    flat = traced.geojson()["features"][0]["properties"]["area_m2"]
    assert flat == pytest.approx(scene.mask.sum() * scene.grid.gsd**2, rel=0.01)


@pytest.mark.parametrize("name", ["utm_south", "utm_1_beyond_180", "polar_south", "degrees_beyond_180", "rotated"])
def test_saved_answer(name, tmp_path):
    """The same through ``Answer.save``: what the command line writes."""
    scene = Scene(name)
    probability = np.where(scene.mask, 0.9, 0.2).astype(np.float32)
    mask = Mask(probability, np.ones(SHAPE, bool), scene.transform, scene.crs)
    fusion = np.stack([np.full((4, 4), 0.25), np.full((4, 4), 0.75)], -1).astype(np.float32)
    answer = Answer("Where is it?", "[SEG]", (mask, mask), fusion, notes=("as told",), model="m")
    written = {path.name for path in answer.save(tmp_path / "out")}
    assert written == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mask_1.tif", "mask_1_probability.tif", "mask_2.geojson", "masks.gpkg", "item.json"} <= written
    collection = json.loads((tmp_path / "out" / "mask_2.geojson").read_text())
    centre, edge = scene.off(shapely.geometry.shape(collection["features"][0]["geometry"]), scene.to_pixel)
    assert centre < 0.01
    assert edge < HALF_DIAGONAL
    properties = collection["features"][0]["properties"]
    assert properties["score"] == pytest.approx(0.9)
    assert properties["sar_weight"] == pytest.approx(0.75)
    meta, _, geometry, fields = pyogrio.raw.read(tmp_path / "out" / "masks.gpkg")
    assert len(geometry) == 2
    assert list(fields[list(meta["fields"]).index("mask")]) == [1, 2]
    item = json.loads((tmp_path / "out" / "item.json").read_text())
    footprint = shapely.geometry.shape(item["geometry"])
    longitude = (scene.longitude + 180) % 360 - 180
    assert footprint.buffer(1e-9).contains(shapely.Point(longitude, scene.latitude))
    assert item["properties"]["processing:lineage"] == "as told"
    with rasterio.open(tmp_path / "out" / "mask_1_probability.tif") as dataset:
        assert dataset.transform.almost_equals(scene.transform, 1e-9 * scene.grid.gsd)
        np.testing.assert_array_equal(dataset.read(1), probability)
    drawn = polygons_of_file(tmp_path / "out" / "mask_1.tif")
    assert drawn["features"][0]["geometry"] == collection["features"][0]["geometry"]


def test_resampled_image(scene, make_tif):
    """The object, seen by another sensor in degrees at two thirds of the pixel, aligned: the edge within a pixel."""
    step = scene.radii / RADIUS / 1.5
    start = scene.longitude - 200 * step[0], scene.latitude + 220 * step[1]
    transform = Affine(step[0], 0, start[0], 0, -step[1], start[1])
    columns, rows = np.meshgrid(np.arange(400) + 0.5, np.arange(440) + 0.5)
    longitude, latitude = start[0] + columns * step[0], start[1] - rows * step[1]
    seen = ((longitude - scene.longitude) / scene.radii[0]) ** 2 + ((latitude - scene.latitude) / scene.radii[1]) ** 2
    path = make_tif("seen.tif", (seen < 1).astype(np.float32)[None], crs="EPSG:4326", transform=transform)
    raster = align(path, scene.grid, "reflectance").raster
    found = (raster.data[0] > 0.5) & raster.valid
    assert (found & scene.mask).sum() / (found | scene.mask).sum() > 0.985
    centre = [np.mean(index) for index in np.nonzero(found)]
    true = [np.mean(index) for index in np.nonzero(scene.mask)]
    assert np.hypot(*np.subtract(centre, true)) < 0.1  # which pixels of the edge are in is chance
