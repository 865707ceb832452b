"""Polygons of a mask on disk, strip by strip: the same features as from the whole, in little memory."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError
from earthmind_jax.geo.regions import trace, trace_strips
from earthmind_jax.geo.stream import polygons_of_file, trace_file, write_polygons_of_file
from earthmind_jax.geo.vector import polygons, trace_polygons
from earthmind_jax.geo.write import cog_writer, write_mask_cog

RNG = np.random.default_rng(11)
HERE = from_origin(500000, 5000000, 10, 10)


def noise(shape=(70, 60), share=0.5):
    return RNG.random(shape) < share


def comb(shape=(90, 80)):
    """One region through every strip, open above: teeth that meet only at the bottom; and rings within rings."""
    mask = np.zeros(shape, bool)
    mask[:, ::4] = True
    mask[-1] = True
    mask[20:60, 20:60] = False
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    distance = np.maximum(np.abs(rows - 40), np.abs(columns - 40))
    return mask | ((distance % 4 == 1) & (distance < 16))


MASKS = {
    "noise": noise(),
    "dense_noise": noise(share=0.8),
    "comb": comb(),
    "empty": np.zeros((40, 30), bool),
    "full": np.ones((40, 30), bool),
    "diagonal": np.eye(50, dtype=bool),
    "one_row": noise((1, 50)),
    "one_column": noise((50, 1)),
}


def shapes_of(regions):
    polygons_ = [
        shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in region.parts]) for region in regions
    ]
    return sorted(shapely.normalize(polygons_), key=lambda shape: shapely.to_wkt(shape)), polygons_


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("strip", [1, 7, 64])
def test_strips_give_the_regions_of_the_whole(name, strip):
    mask = MASKS[name]
    layer = RNG.random(mask.shape)
    parts = ((mask[top : top + strip], {"w": layer[top : top + strip]}) for top in range(0, len(mask), strip))
    found, whole = list(trace_strips(parts)), trace(mask, {"w": layer})
    ours, _ = shapes_of(found)
    theirs, polygons_ = shapes_of(whole)
    assert len(ours) == len(theirs)
    assert all(a.equals(b) for a, b in zip(ours, theirs, strict=True))
    assert shapely.count_coordinates(ours) == shapely.count_coordinates(theirs)  # no points along the seams
    assert shapely.is_valid(ours).all()
    assert sum(shapely.area(polygons_)) == mask.sum()
    keyed = sorted((region.pixels, region.mean("w")) for region in found)
    np.testing.assert_allclose(keyed, sorted((region.pixels, region.mean("w")) for region in whole))


def test_file_and_array_agree(tmp_path, grid_case):
    crs, transform = grid_case
    mask, probability = comb(), RNG.random((90, 80)).astype(np.float32)
    valid = np.ones(mask.shape, bool)
    valid[30:34] = False
    tags = {"prompt": "roads", "model": "m", "score": 0.7}
    write_mask_cog(tmp_path / "m.tif", mask, transform, crs, valid=valid, tags=tags)
    write_mask_cog(tmp_path / "p.tif", probability, transform, crs)
    found = polygons_of_file(tmp_path / "m.tif", probability=tmp_path / "p.tif", strip=16, min_pixels=3)
    expected = polygons(
        mask & valid, transform, crs, prompt="roads", model="m", probability=probability, min_pixels=3
    )  # fmt: skip

    def key(feature):
        return feature["properties"]["area_m2"], feature["properties"]["score"]

    assert len(found["features"]) == len(expected["features"]) > 1
    for one, other in zip(sorted(found["features"], key=key), sorted(expected["features"], key=key), strict=True):
        values, wanted = one["properties"], other["properties"]
        assert [values[name] for name in ("prompt", "model")] == [wanted[name] for name in ("prompt", "model")]
        assert [values[name] for name in ("score", "area_m2")] == pytest.approx([wanted["score"], wanted["area_m2"]])
        mine, theirs = (shapely.geometry.shape(feature["geometry"]) for feature in (one, other))
        assert mine.symmetric_difference(theirs).area < 1e-9 * theirs.area
    assert polygons_of_file(tmp_path / "m.tif")["features"][0]["properties"]["score"] == 0.7


def test_both_files_in_one_pass(tmp_path):
    mask = comb()
    write_mask_cog(tmp_path / "m.tif", mask, HERE, "EPSG:32632")
    count = write_polygons_of_file(
        tmp_path / "m.tif", geojson=tmp_path / "m.geojson", geopackage=tmp_path / "m.gpkg", strip=20, prompt="x"
    )
    collection = json.loads((tmp_path / "m.geojson").read_text())
    assert len(collection["features"]) == count == pyogrio.read_info(tmp_path / "m.gpkg")["features"]
    shapes = shapely.from_wkb(pyogrio.raw.read(tmp_path / "m.gpkg")[2])
    assert shapely.area(shapes).sum() == pytest.approx(100 * mask.sum())
    write_mask_cog(tmp_path / "none.tif", np.zeros((9, 9), bool), HERE, "EPSG:32632")
    assert write_polygons_of_file(tmp_path / "none.tif", geojson=tmp_path / "none.geojson") == 0
    assert json.loads((tmp_path / "none.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_memory_is_that_of_a_strip(tmp_path):
    """A mask of 3072 x 1500 with many regions: the memory of a strip and its outlines, not of all."""
    tile = np.kron(noise((32, 94), 0.3), np.ones((16, 16), bool))[:, :1500].astype(np.uint8)
    with cog_writer(tmp_path / "m.tif", (3072, 1500), HERE, "EPSG:32632") as write:
        for top in range(0, 3072, 512):
            write(tile, top, 0)
    tracemalloc.start()
    count = sum(len(part.regions) for part in trace_file(tmp_path / "m.tif"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count > 500
    assert peak < 30e6


def test_bad_files(tmp_path):
    write_mask_cog(tmp_path / "m.tif", comb(), HERE, "EPSG:32632")
    write_mask_cog(tmp_path / "p.tif", RNG.random((5, 5)).astype(np.float32), HERE, "EPSG:32632")
    with pytest.raises(UserError, match=r"p\.tif lies on another grid than .*m\.tif"):
        polygons_of_file(tmp_path / "m.tif", probability=tmp_path / "p.tif")
    with pytest.raises(UserError, match=r"p\.tif holds float32; polygons are made from a mask"):
        polygons_of_file(tmp_path / "p.tif")
    with pytest.raises(UserError, match=r"nowhere\.tif does not exist"):
        polygons_of_file(tmp_path / "nowhere.tif")
    with pytest.raises(UserError, match=r"nowhere\.tif does not exist"):
        write_polygons_of_file(tmp_path / "nowhere.tif", geojson=tmp_path / "x.geojson")
    assert not (tmp_path / "x.geojson").exists()


def test_layers_are_on_the_grid_of_the_mask():
    with pytest.raises(UserError, match=r"layer 'weight' is \(2, 2\)"):
        trace_polygons(comb(), HERE, "EPSG:32632", layers={"weight": np.ones((2, 2))})
