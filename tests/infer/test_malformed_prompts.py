"""Prompts that cannot be: one sentence that names what is wrong, exit code 2, and no answer."""

from __future__ import annotations

import functools
import json
import re

import numpy as np
import pytest
import rasterio
import support
from PIL import Image

from earthmind_jax import checkpoint
from earthmind_jax.infer.predictor import EarthMind


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EarthMind, "load", functools.cache(EarthMind.load))
        yield


POINT = {"type": "Point", "coordinates": [15.007, 50.547]}
SQUARE = [[15.0, 50.54], [15.01, 50.54], [15.01, 50.55], [15.0, 50.55], [15.0, 50.54]]


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


def polygon(ring):
    return feature({"type": "Polygon", "coordinates": [ring]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a georeferenced picture of 120 x 160 pixels, and one without a georeference."""
    folder = tmp_path_factory.mktemp("prompts")
    config = support.model()
    checkpoint.save(folder / "model", config, support.params(config), support.tokenizer(), {})
    values = np.random.default_rng(0).integers(1, 255, (3, 120, 160), np.uint8)
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 5600000)
    profile = {"driver": "GTiff", "width": 160, "height": 120, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "map.tif", "w", crs="EPSG:32633", transform=transform, **profile) as file:
        file.write(values)
    Image.fromarray(np.moveaxis(values, 0, -1)).save(folder / "picture.png")
    Image.fromarray(np.full((120, 160), 255, np.uint8)).save(folder / "mask.png")
    Image.fromarray(np.full((60, 160), 255, np.uint8)).save(folder / "small.png")
    Image.fromarray(np.zeros((120, 160), np.uint8)).save(folder / "empty.png")
    shifted = rasterio.Affine(10, 0, 900000, 0, -10, 5600000)
    with rasterio.open(folder / "elsewhere.tif", "w", crs="EPSG:32633", transform=shifted, **profile) as file:
        file.write(values)
    return folder


FILES = {
    "not JSON": (b"a lake, somewhere in the north", "is no GeoJSON"),
    "cut off": (json.dumps(feature(POINT))[:-4].encode(), "is no GeoJSON: .* line 1"),
    "binary": (bytes(range(128, 256)), "is no JSON text"),
    "nested without end": (b"[" * 100000, "is no JSON text"),
    "empty file": (b"", "is no GeoJSON"),
    "a list": ([1, 2], "must be an object"),
    "no type": ({"features": []}, "its 'type' is None"),
    "no features": (collection(), "has no features"),
    "features no list": ({"type": "FeatureCollection", "features": 3}, "'features' is no list"),
    "feature no feature": (collection(POINT), "feature 1 of .* is no GeoJSON Feature"),
    "no geometry": (collection(feature(POINT), feature(None)), "feature 2 of .* has no geometry"),
    "empty geometry": (feature({"type": "Polygon", "coordinates": []}), "has no coordinates"),
    "unknown geometry": (feature({"type": "Circle", "coordinates": [1, 2]}), "type 'Circle'"),
    "words for numbers": (feature({"type": "Point", "coordinates": ["15", "50"]}), "position \\['15', '50'\\]"),
    "one number": (feature({"type": "Point", "coordinates": [15.0]}), "a position is two numbers"),
    "five numbers": (feature({"type": "Point", "coordinates": [15.0, 50, 1, 2, 3]}), "a position is two numbers"),
    "not a number": (b'{"type": "Point", "coordinates": [NaN, 50]}', "not a finite number"),
    "infinite": (b'{"type": "Point", "coordinates": [1e999, 50]}', "not a finite number"),
    "true for a number": (feature({"type": "Point", "coordinates": [True, 50]}), "a position is two numbers"),
    "not closed": (polygon(SQUARE[:-1]), "ring 1 is not closed"),
    "two corners": (polygon([SQUARE[0], SQUARE[1], SQUARE[0]]), "3 positions but needs at least 4"),
    "crosses itself": (polygon([SQUARE[i] for i in (0, 2, 1, 3, 0)]), "no valid polygon .* redraw"),
    "line without length": (feature({"type": "LineString", "coordinates": [SQUARE[0]] * 2}), "without length"),
    "label": (feature(POINT, label=2), "label 2; give 1"),
    "label true": (feature(POINT, label=True), "label True"),
    "label in words": (feature(POINT, label="lake"), "label 'lake'"),
    "name": (feature(POINT, name=["a"]), "name is text"),
    "box of a point": (feature(POINT, box=True), "of polygons"),
    "properties": ({"type": "Feature", "properties": [1], "geometry": POINT}, "properties that are no object"),
    "background only": (feature(POINT, label=0), "background only"),
    "unknown CRS": (feature(POINT) | {"crs": {"type": "name", "properties": {"name": "EPSG:999999"}}}, "EPSG:999999"),
    "CRS without a name": (feature(POINT) | {"crs": {"type": "link"}}, "'crs' without a name"),
    "outside": (feature({"type": "Point", "coordinates": [16.5, 50.547]}), "lies outside .* longitude 15.0"),
    "exchanged": (feature({"type": "Point", "coordinates": [50.547, 15.007]}), "exchanged it would lie there"),
    "metres as degrees": (feature({"type": "Point", "coordinates": [500500, 5599500]}), "which are no degrees"),
    "too many": (collection(*[feature(POINT)] * 65), "65 objects .* 64 is the most"),
    "too many points": (
        feature({"type": "MultiPoint", "coordinates": [[15.0001 + i * 1e-4, 50.545] for i in range(40)]}),
        "40 points but 32",
    ),
    "far more": (collection(*[feature(POINT)] * 3000), "too many parts"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(folder, capsys, name):
    content, words = FILES[name]
    path = folder / "prompts.geojson"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refused(capsys, words, folder, "map.tif", "--prompts", path)


OPTIONS = {
    "point of one number": (["--point", "12"], "--point is x,y"),
    "point in words": (["--point", "a,b"], "--point is x,y"),
    "not a number": (["--point", "nan,3"], "not a finite number"),
    "label of a point": (["--point", "3,4,2"], "label is 1"),
    "point outside": (["--point", "300,10"], "lies outside"),
    "row and column exchanged": (["--point", "110,150"], "exchanged it would lie there: write column, then row"),
    "box turned": (["--box", "50,10,20,40"], "x0 < x1"),
    "box without area": (["--box", "50,10,50,40"], "x0 < x1"),
    "box outside": (["--box", "500,10,600,40"], "lies outside"),
    "box of three": (["--box", "50,10,50"], "--box is"),
    "line of one": (["--line", "50,10"], "at least 2 positions"),
    "unknown CRS": (["--point", "15,50", "--prompt-crs", "EPSG:1"], "EPSG:1"),
    "no file": (["--prompts", "nowhere.geojson"], "no prompt file"),
    "mask of another size": (["--mask", "small.png"], "has \\(60, 160\\) pixels"),
    "mask without pixels": (["--mask", "empty.png"], "at least one pixel"),
    "mask elsewhere": (["--mask", "elsewhere.tif"], "lies on another grid"),
    "no mask": (["--mask", "nothing.png"], "there is no file"),
    "window outside": (["--crop", "100,100,64,64"], "does not lie on the image"),
    "window of nothing": (["--crop", "0,0,0,5"], "does not lie on the image"),
    "window in fractions": (["--crop", "0,0,1.5,5"], "whole pixels"),
    "window and area": (["--crop", "0,0,5,5", "--area", "15,50,16,51"], "leave one"),
    "area outside": (["--area", "20,50,21,51"], "lies outside"),
    "outside the window": (["--crop", "0,0,20,20", "--point", "100,100"], "outside the window"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(folder, capsys, monkeypatch, name):
    options, words = OPTIONS[name]
    monkeypatch.chdir(folder)
    refused(capsys, words, folder, "map.tif", *options)


def test_map_coordinates_need_a_georeference(folder, capsys):
    path = folder / "point.geojson"
    path.write_text(json.dumps(POINT))
    refused(capsys, "no georeference", folder, "picture.png", "--prompts", path)
    refused(capsys, "as it says itself", folder, "map.tif", "--prompts", named(folder), "--prompt-crs", "EPSG:4326")


def named(folder):
    path = folder / "named.geojson"
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    path.write_text(json.dumps({"type": "Point", "coordinates": [500100, 5599900], "crs": crs}))
    return path


def test_pointing_needs_an_image(folder, capsys):
    code, out, err = support.run(capsys, "ask", "What is region1?", "--checkpoint", folder / "model", "--point", "1,1")
    assert (code, out) == (2, "")
    assert "no image to point at" in err


def refused(capsys, words, folder, image, *options):
    target = ["water"] if {"--crop", "--area"} & set(options) else []
    for command in (["ask", "What is region1?"], ["segment", *target]):
        code, out, err = support.run(
            capsys, *command, "--checkpoint", folder / "model", "--optical", folder / image, *options
        )
        assert code == 2, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert re.search(words, err), err


def test_what_is_right_gets_through(folder, capsys, monkeypatch):
    """The same file with good prompts answers, so that what is refused above is refused for what it says."""
    monkeypatch.chdir(folder)
    corner = [[15.0, 50.54], [15.01, 50.54], [15.0, 50.549], [15.0, 50.54]]
    (folder / "good.geojson").write_text(json.dumps(collection(feature(POINT, name="a"), polygon(corner))))
    code, out, err = support.run(
        capsys, "segment", "--checkpoint", "model", "--optical", "map.tif", "--prompts", "good.geojson",
        "--point", "60,60", "--mask", "mask.png", "--out", "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert [m["name"] for m in json.loads(out)["masks"]] == ["region1", "region2", "a", "region4"]
