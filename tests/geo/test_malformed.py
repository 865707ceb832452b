"""Broken rasters through the commands: one clear sentence, exit code 2, within seconds; odd ones are right."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
import tracemalloc
from pathlib import Path

import malformed_files
import malformed_images
import numpy as np
import pytest
import rasterio
from affine import Affine
from malformed_images import control_points_only, rational_polynomials_only
from odd_rasters import ODD
from small_rasters import PLACE, reflectance, tif
from support import model, params, run, tokenizer

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.raster import read_raster
from earthmind_jax.infer.predictor import EarthMind

BROKEN = malformed_files.BROKEN | malformed_images.BROKEN
SECONDS = 30.0  # of a busy machine; alone it is two at most
UNPLACED = {"no_crs", "identity_transform"}  # good for words only
NO_PLACE = {"png_with_alpha", "animated"}  # pictures
# What info describes although nothing can be made of it: labels, a picture, another sensor, no place on the map.
DESCRIBED = {
    "palette", "png_of_16_bits", "unknown_names", "no_names", "missing_band", "no_crs", "identity_transform",
}  # fmt: skip


@functools.cache
def predictor() -> EarthMind:
    config = model()
    sensors = dataclasses.replace(config.sensors, optical_bands=("B11", "B08", "B04"), max_tiles=1)
    config = dataclasses.replace(config, sensors=sensors)
    return EarthMind.from_params(config, params(config), tokenizer())


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """The same model for every request: it is the files that are tested."""
    monkeypatch.setattr(EarthMind, "load", lambda path: predictor())


def refused(code: int, err: str, path: Path | None, says: str) -> None:
    assert code == 2, err
    assert err.startswith("error: "), err
    assert len(err.strip().splitlines()) == 1, err
    assert err.strip().endswith((".", "?")), err
    assert "Traceback" not in err
    assert path is None or path.name in err, err
    assert says in err, err


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name, tmp_path, capfd):
    maker, says = BROKEN[name]
    path = maker(tmp_path)
    out = tmp_path / "out"
    begun = time.monotonic()
    code, _, err = run(capfd, "segment", "water", "--optical", path, "--out", out)
    refused(code, err, None if name in UNPLACED else path, says)
    assert not out.exists()
    code, text, err = run(capfd, "info", path, "--json")
    assert time.monotonic() - begun < SECONDS
    if name in DESCRIBED:
        assert code == 0, err
        assert json.loads(text)[0]["file"] == str(path)
    else:
        refused(code, err, path, "")


@pytest.mark.parametrize("name", ["huge_size_little_data", "one_huge_block", "sparse_and_huge"])
def test_nothing_huge_is_allocated(name, tmp_path, capfd):
    path = BROKEN[name][0](tmp_path)
    tracemalloc.start()
    try:
        assert run(capfd, "segment", "water", "--optical", path, "--out", tmp_path / "out")[0] == 2
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ODD)
def test_odd(name, tmp_path, capfd):
    path = ODD[name](tmp_path)
    code, text, err = run(capfd, "info", path, "--json")
    assert code == 0, err
    assert json.loads(text)[0]["taken for"] in ("s2_l2a", "rgb8")
    picture = ["--picture"] if name in NO_PLACE else []
    out = tmp_path / "out"
    code, _, err = run(capfd, "segment", "water", "--optical", path, "--out", out, *picture)
    assert code == 0, err
    if not picture:
        with rasterio.open(out / "mask_1.tif") as mask, rasterio.open(path) as image:
            assert mask.transform.almost_equals(image.transform)
            assert (mask.crs, mask.shape) == (image.crs, image.shape)


def test_values_that_are_no_numbers_are_invalid(tmp_path):
    raster = read_raster(ODD["some_infinite"](tmp_path))
    assert [tuple(place) for place in np.argwhere(~raster.valid)] == [(5, 5), (6, 6), (7, 7)]


@pytest.mark.parametrize(
    ("says", "profile"),
    [
        ("overlap", {"transform": Affine(10, 0, 700000, 0, -10, 5000000)}),
        ("overlap", {"crs": "EPSG:32732"}),  # the other hemisphere
        ("covers", {"transform": Affine(10, 0, 500470, 0, -10, 5000000)}),
        ("same size", {"crs": None, "transform": Affine.identity(), "size": 30}),
        ("looks optical", {"names": ("B04", "B03")}),
        ("scale", {"value": 5.5}),
        ("no valid pixel", {"value": np.nan}),
        ("complex", {"dtype": "complex64"}),
        ("have no names", {"count": 5, "names": None}),
    ],
)
def test_a_partner_that_does_not_fit(says, profile, tmp_path, capfd):
    size, value = profile.pop("size", 48), profile.pop("value", 0.05)
    names, dtype = profile.pop("names", ("VV", "VH")), profile.pop("dtype", "float32")
    array = np.full((profile.pop("count", 2), size, size), value, dtype)
    sar = tif(tmp_path, array, "sar.tif", names, **profile)
    code, _, err = run(
        capfd, "segment", "water", "--optical", tif(tmp_path), "--sar", sar, "--out", tmp_path / "out"
    )  # fmt: skip
    refused(code, err, sar, says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--sensor", "s2l2a"], "did you mean s2_l2a?"),
        (["--sensor", "vhr"], "numbers its bands (B02 B03 B04 B08 B11), which does not say"),
        (["--bands", "B02", "B03"], "has 5 bands"),
        (["--bands", "B02", "B03", "B04", "B04", "B11"], "more than one band"),
        (["--sar-scale", "dB"], "there is none"),
        (["--scl", "gone.tif"], "gone.tif does not exist"),
    ],
)
def test_what_is_told_is_checked(given, says, tmp_path, capfd):
    path = tif(tmp_path)
    code, _, err = run(capfd, "segment", "water", "--optical", path, "--out", tmp_path / "out", *given)
    assert code == 2, err
    assert says in err, err
    assert len(err.strip().splitlines()) == 1


def test_a_finished_picture_has_no_scale_to_tell(tmp_path, capfd):
    path = ODD["png_with_alpha"](tmp_path)
    code, _, err = run(capfd, "segment", "water", "--optical", path, "--out", tmp_path / "out", "--offset", "0")
    refused(code, err, path, "'offset' means nothing")


@pytest.mark.parametrize("name", ["south_up", "mirrored", "rotated"])
def test_turned_images_lie_where_they_are(name, tmp_path):
    """A SAR image whose backscatter is a plane over the map comes out as that plane on the turned optical grid."""
    from earthmind_jax.geo.align import load_pair

    optical = ODD[name](tmp_path)
    transform = Affine(12, 0, 499500, 0, -12, 5001000)
    rows, columns = np.mgrid[0:150, 0:150] + 0.5
    x, y = transform @ (columns, rows)
    power = 0.1 + ((x - 500000) + 2 * (y - 5000000)) * 2e-5
    sar = tif(tmp_path, np.stack([power, power]).astype(np.float32), "sar.tif", ("VV", "VH"))
    with rasterio.open(sar, "r+") as file:
        file.transform = transform
    pair = load_pair(optical, sar)
    rows, columns = np.mgrid[0:48, 0:48] + 0.5
    x, y = pair.transform @ (columns, rows)
    expected = 0.1 + ((x - 500000) + 2 * (y - 5000000)) * 2e-5
    seen = pair.sar.valid
    assert seen.all()
    # half a pixel along x is 1e-4
    np.testing.assert_allclose(10 ** (pair.sar.band("VV") / 10), expected, atol=1e-4)
    assert pair.transform != PLACE or name == "rotated"


@pytest.mark.parametrize(
    ("maker", "place", "near"),
    [(control_points_only, (10.0024, 49.9976), 1e-4), (rational_polynomials_only, (10, 50), 0.03)],
)
def test_placed_by_points_or_polynomials_alone(maker, place, near, tmp_path, capfd):
    """The map lies where the points or polynomials say, a pixel or so around their middle; info says the same."""
    path, out = maker(tmp_path), tmp_path / "out"
    code, _, err = run(capfd, "segment", "water", "--optical", path, "--out", out)
    assert code == 0, err
    with rasterio.open(out / "mask_1.tif") as mask:
        assert mask.lnglat() == pytest.approx(place, abs=near)
        crs = mask.crs.to_string()
    code, text, err = run(capfd, "info", path, "--json")
    assert code == 0, err
    (fact,) = json.loads(text)
    assert fact["crs"] == crs
    assert "brought onto a map grid" in fact["placed"]
    assert not any("no map" in warning for warning in fact["warnings"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path, capfd):
    path = tif(tmp_path)
    path.chmod(0)
    code, _, err = run(capfd, "info", path)
    refused(code, err, path, "check its permissions")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may go everywhere")
def test_in_a_folder_that_is_closed(tmp_path, capfd):
    (tmp_path / "closed").mkdir()
    path = tif(tmp_path / "closed")
    path.parent.chmod(0)
    try:
        code, _, err = run(capfd, "info", path)
    finally:
        path.parent.chmod(0o755)
    refused(code, err, path, "check the permissions of its folder")


def test_the_broken_are_many():
    assert len(BROKEN) + len(ODD) >= 60
    assert reflectance().shape == (5, 48, 48)


@pytest.mark.parametrize("option", ["--optical", "--sar"])
def test_what_is_no_file(tmp_path, capsys, option):
    """Addresses and folders: each says what it is, whatever its ending."""
    safe = tmp_path / "S2A_MSIL2A_20230601T101601_N0509_R022_T32TNS_20230601T180000.SAFE"
    safe.mkdir()
    cases = {
        "https://example.com/x.tif": "is an address on the network",
        "s3://bucket/x.png": "is an address on the network",
        str(safe): "is a directory that is empty",
        str(tmp_path): "is a directory",
    }
    for name, said in cases.items():
        code, _, error = run(capsys, "ask", "water?", option, name)
        assert code == 2, error
        assert said in error
    assert "is a directory that is empty" in run(capsys, "info", safe)[2]


@pytest.mark.parametrize("name", ["renamed.png", "renamed.jpg", "no_ending"])
def test_a_raster_under_another_ending(make_tif, name):
    path = make_tif(name, np.ones((12, 8, 8), np.uint16))
    with pytest.raises(UserError, match=rf"{name}' is a TIFF or JPEG 2000 file by its content"):
        load_images({"optical": path}, SensorConfig())


def test_results_never_take_the_place_of_an_input(make_tif, tmp_path, capsys):
    path = make_tif("mask_1.tif", np.full((12, 8, 8), 900, np.uint16))
    before = path.read_bytes()
    for command in (("segment", "water"), ("ask", "water?")):
        code, _, error = run(capsys, *command, "--optical", path, "--out", tmp_path / "x" / "..")
        assert code == 2
        assert "would overwrite the input" in error
        code, _, error = run(capsys, *command, "--optical", path, "--out", path)
        assert code == 2
        assert "cannot be a directory" in error
    assert path.read_bytes() == before
