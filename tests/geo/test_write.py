"""Rasters out: whole and in place, or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.write import cog_writer, write_geotiff, write_mask_cog, write_probability_cog

RNG = np.random.default_rng(1)
HERE = from_origin(500000, 5000000, 10, 10)


def blobs(height=700, width=613):
    rows, columns = np.mgrid[:height, :width]
    return (np.sin(rows / 37) * np.cos(columns / 23)) > 0.3


def test_cog(tmp_path, grid_case):
    crs, transform = grid_case
    path = tmp_path / "mask.tif"
    mask, valid = blobs(), np.ones((700, 613), bool)
    valid[:50] = False
    write_mask_cog(
        path, mask, transform, crs, valid=valid, tags={"prompt": "the water", "score": 0.9}, band_name="water"
    )
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.crs == CRS.from_user_input(crs)
        np.testing.assert_allclose(dataset.transform[:6], transform[:6], rtol=1e-14, atol=1e-9)
        assert dataset.nodata == 255
        assert dataset.block_shapes[0] == (512, 512)
        assert dataset.overviews(1)
        assert dataset.tags()["prompt"] == "the water"
        assert dataset.descriptions == ("water",)
        read = dataset.read(1)
        np.testing.assert_array_equal(read[50:], mask[50:])
        assert (read[:50] == 255).all()
        assert set(np.unique(dataset.read(1, out_shape=(350, 306)))) <= {0, 1, 255}
    assert [file.name for file in tmp_path.iterdir()] == ["mask.tif"]


def test_probability_cog(tmp_path):
    probability = RNG.random((300, 200)).astype(np.float32)
    probability[3, 4] = np.nan
    write_mask_cog(tmp_path / "p.tif", probability, HERE, "EPSG:32632")
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert dataset.dtypes == ("float32",)
        read = dataset.read(1)
        assert read[3, 4] == dataset.nodata
        assert not dataset.read_masks(1)[3, 4]
        read[3, 4] = probability[3, 4]
        np.testing.assert_array_equal(read, probability)


def test_tiny_cog(tmp_path):
    write_mask_cog(tmp_path / "a.tif", np.ones((1, 1), np.uint8), HERE, "EPSG:32632")
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.read().tolist() == [[[1]]]


def test_cog_block_by_block(tmp_path):
    mask = blobs(1100, 900).astype(np.uint8)
    with cog_writer(tmp_path / "a.tif", (1100, 1000), HERE, "EPSG:32632") as write:
        for row in range(0, 1100, 300):
            for column in range(0, 900, 400):
                write(mask[row : row + 300, column : column + 400], row, column)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1)[:, :900], mask)
        assert (dataset.read(1)[:, 900:] == 255).all()
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_block_outside_leaves_nothing(tmp_path):
    with (
        pytest.raises(UserError, match="does not fit"),
        cog_writer(tmp_path / "a.tif", (10, 10), HERE, "EPSG:32632") as write,
    ):
        write(np.ones((5, 5), np.uint8), 8, 8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64", "bool"])
def test_geotiff(tmp_path, grid_case, dtype):
    crs, transform = grid_case
    array = (RNG.random((2, 90, 70)) * 200).astype(dtype)
    path = tmp_path / "a.tif"
    write_geotiff(path, array, transform, crs, ["VV", "VH"], {"scale": "dB"}, nodata=None)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), array.astype("uint8") if dtype == "bool" else array)
        assert dataset.descriptions == ("VV", "VH")
        assert dataset.tags()["scale"] == "dB"
        assert dataset.crs == CRS.from_user_input(crs)
        np.testing.assert_allclose(dataset.transform[:6], transform[:6], rtol=1e-14, atol=1e-9)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_geotiff_of_nan_and_one_band(tmp_path):
    array = np.array([[1.0, np.nan]], np.float32)
    write_geotiff(tmp_path / "a.tif", array, Affine.identity(), None, ["x"], nodata=np.nan)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), array)


def test_an_older_file_is_replaced(tmp_path):
    for value in (0, 1):
        write_mask_cog(tmp_path / "a.tif", np.full((9, 9), value, np.uint8), HERE, "EPSG:32632")
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.read(1).all()


@pytest.mark.parametrize(
    ("name", "mask", "crs", "message"),
    [
        ("a.tif", np.ones((4, 4), bool), None, "has no georeference"),
        ("a.tif", np.ones((4, 4), bool), "EPSG:999999", "no known coordinate reference system"),
        ("no/such/a.tif", np.ones((4, 4), bool), "EPSG:32632", "does not exist; create it first"),
        (".", np.ones((4, 4), bool), "EPSG:32632", "is a folder"),
        ("a.tif", np.ones((2, 4, 4), bool), "EPSG:32632", r"\(2, 4, 4\) of bool"),
        ("a.tif", np.ones((4, 4), np.int64), "EPSG:32632", "of int64"),
    ],
)
def test_bad_requests(tmp_path, name, mask, crs, message):
    with pytest.raises(UserError, match=message) as error:
        write_mask_cog(tmp_path / name, mask, HERE, crs)
    assert str(error.value).endswith(".")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif is no regular file"):
        write_mask_cog(tmp_path / "a.tif", np.ones((4, 4), bool), HERE, "EPSG:32632")
    assert stat.S_ISFIFO((tmp_path / "a.tif").stat().st_mode)


def test_band_names_must_fit(tmp_path):
    with pytest.raises(UserError, match="cannot have the bands VV VH"):
        write_geotiff(tmp_path / "a.tif", np.ones((3, 4, 4)), HERE, "EPSG:32632", ["VV", "VH"])
    assert not list(tmp_path.iterdir())


def test_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(WorkError, match=r"a\.tif could not be written \(Permission denied\)"):
        write_mask_cog(tmp_path / "a.tif", np.ones((4, 4), bool), HERE, "EPSG:32632")
    assert not list(tmp_path.iterdir())


FULL_DISK = """
    import resource, signal, sys
    import numpy as np
    from rasterio.transform import from_origin
    from earthmind_jax.errors import WorkError
    from earthmind_jax.geo.vector import write_geojson
    from earthmind_jax.geo.write import write_geotiff, write_mask_cog

    here = from_origin(500000, 5000000, 10, 10)
    noise = np.random.default_rng(0).integers(0, 2, (900, 900)).astype("uint8")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    writers = (
        lambda: write_mask_cog(sys.argv[1] + "/old.tif", noise, here, "EPSG:32632"),
        lambda: write_geotiff(sys.argv[1] + "/b.tif", noise[None], here, "EPSG:32632", ["x"]),
        lambda: write_geojson(sys.argv[1] + "/c.geojson", {"features": noise.tolist()}),
    )
    for write in writers:
        try:
            write()
        except WorkError as error:
            print(error)
        else:
            sys.exit("no error")
"""


@pytest.mark.parametrize("limit", [0, 3000, 60000, 130000])
def test_full_disk_leaves_nothing_and_keeps_the_old(tmp_path, limit):
    """A limit on the file size stands for a disk that fills up at different moments."""
    (tmp_path / "old.tif").write_bytes(b"")
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path), str(limit)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.strip().splitlines()
    assert len(lines) == 3
    assert all("could not be written" in line for line in lines)
    assert [file.name for file in tmp_path.iterdir()] == ["old.tif"]
    assert (tmp_path / "old.tif").read_bytes() == b""


def test_probability_in_percent(tmp_path):
    probability = np.linspace(0, 1, 700 * 600, dtype=np.float32).reshape(700, 600)
    probability[:50] = np.nan
    write_probability_cog(tmp_path / "p.tif", probability, HERE, "EPSG:32632", percent=True, tags={"prompt": "x"})
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.scales == (0.01,)
        assert dataset.descriptions == ("probability",)
        read = dataset.read(1)
        assert (read[:50] == 255).all()
        assert np.abs(read[50:] * 0.01 - probability[50:]).max() <= 0.00501
        halved = dataset.read(1, out_shape=(350, 300))  # overviews are averaged, not picked
        assert np.abs(halved[30:] * 0.01 - probability[60::2, ::2]).max() < 0.02


def test_probability_and_validity(tmp_path):
    valid = np.ones((20, 30), bool)
    valid[4] = False
    write_probability_cog(tmp_path / "p.tif", np.full((20, 30), 0.25), HERE, "EPSG:32632", valid=valid)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert dataset.dtypes == ("float32",)
        np.testing.assert_array_equal(dataset.read_masks(1) > 0, valid)
        assert (dataset.read(1)[valid] == 0.25).all()
    with pytest.raises(UserError, match="a probability is"):
        write_probability_cog(tmp_path / "q.tif", np.full((5, 5), 2.0), HERE, "EPSG:32632")
    for write in (write_mask_cog, write_probability_cog):
        with pytest.raises(UserError, match=r"q\.tif: the mask is \(5, 5\) but its validity \(4, 5\)"):
            write(tmp_path / "q.tif", np.zeros((5, 5), np.float32), HERE, "EPSG:32632", valid=np.ones((4, 5), bool))
    with (
        pytest.raises(UserError, match="a map of 0 x 5 pixels"),
        cog_writer(tmp_path / "q.tif", (0, 5), HERE, "EPSG:32632"),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["p.tif"]
