"""``earthmind info``: every fact about the real pairs, and about made files of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from support import run

PLACE = Affine(10, 0, 500000, 0, -10, 5000000)
SCENES = {"282D_485L_3_3": 32722, "637U_59R_1_3": 32632, "38D_378R_2_3": 32736}
LAND_COVER = {"282D_485L_3_3": "1 2 6 9", "637U_59R_1_3": "2 4 5 9", "38D_378R_2_3": "4 9"}
L1C = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]


def facts(capsys, *arguments) -> list[dict]:
    code, out, err = run(capsys, "info", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def make(path: Path, array: np.ndarray, names=(), tags=None, **profile) -> Path:
    given = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE} | profile
    size = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    with rasterio.open(path, "w", **size, **given) as file:
        file.write(array)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)
        file.update_tags(**(tags or {}))
    return path


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("folder", ["S2L1C", "S2L2A"])
def test_real_optical(sentinel, capsys, folder, scene):
    path = sentinel / folder / f"{scene}.tif"
    (fact,) = facts(capsys, path)
    with rasterio.open(path) as dataset:  # what the README says, against the file itself
        assert dataset.nodata is None
        assert not any(dataset.descriptions)
        values = dataset.read()
    assert fact["taken for"] == {"S2L1C": "s2_l1c", "S2L2A": "s2_l2a"}[folder]
    assert fact["bands"] == [b for b in L1C if folder == "S2L1C" or b != "B10"]
    assert "names no bands" in fact["why"][0]
    assert (fact["width"], fact["height"], fact["dtype"]) == (224, 224, "int16")
    assert fact["crs"] == f"EPSG:{SCENES[scene]}"
    assert fact["gsd_m"] == pytest.approx(10, rel=0.01)
    assert fact["nodata"] is None
    assert fact["no_data_share"] == pytest.approx((values == 0).any(0).mean(), abs=1e-4)
    assert fact["darkest"]["least"] == values.min()
    dark = np.percentile(values.reshape(len(values), -1), 0.1, axis=-1).min()
    assert fact["darkest"]["percentile_0_1"] == pytest.approx(dark, abs=1)
    with_offset = (folder, scene) == ("S2L1C", "282D_485L_3_3")
    assert (values.min() >= 1000) == with_offset
    assert fact["offset"] == (-1000 if with_offset else 0)
    assert "processing_baseline" not in fact
    assert "acquired" not in fact


@pytest.mark.parametrize("scene", SCENES)
def test_real_pair(sentinel, capsys, scene):
    paths = [sentinel / folder / f"{scene}.tif" for folder in ("S2L2A", "S1RTC")]
    for order in (paths, paths[::-1]):
        *files, pair = facts(capsys, *order)
        optical, sar = files if order is paths else files[::-1]
        assert optical["taken for"] == "s2_l2a"
        assert (sar["taken for"], sar["scale"], sar["unit"], sar["dtype"]) == ("s1", "dB", "dB", "float64")
        assert sar["polarisations"] == ["VV", "VH"]
        assert sar["no_data_share"] == 0
        assert sar["acquired"][:4] in ("2017", "2021", "2023")
        assert (pair["overlap"], pair["gsd_ratio"], pair["both_share"]) == (1.0, 1.0, 1.0 - optical["no_data_share"])
        assert "nothing resampled" in pair["alignment"]


@pytest.mark.parametrize("scene", SCENES)
def test_real_labels_heights_and_renderings(sentinel, capsys, scene):
    labels, heights, rendering = facts(
        capsys, *(sentinel / folder / f"{scene}.tif" for folder in ("LULC", "DEM", "S2RGB"))
    )
    assert labels["taken for"] == "labels"
    assert f"({LAND_COVER[scene]})" in labels["title"]
    assert heights["taken for"] == "heights"
    assert "not a sensor's image" in heights["title"]
    assert (rendering["taken for"], rendering["unit"]) == ("rgb8", "display")


def test_made_pair(tmp_path, capsys):
    rng = np.random.default_rng(2)
    array = rng.integers(1100, 4000, (12, 60, 60)).astype(np.uint16)
    array[:, :6] = 0
    name = "S2B_MSIL2A_20230610T074621_N0509_R135_T36MZE.tif"
    optical = make(tmp_path / name, array, nodata=0)
    power = rng.gamma(4, 0.02, (2, 40, 40)).astype(np.float32)
    sar = make(
        tmp_path / "sar.tif", power, ["VV", "VH"], {"datetime": "2023-07-30T16:00:00"},
        transform=Affine(20, 0, 500300, 0, -20, 5000000),
    )  # fmt: skip
    first, second, pair = facts(capsys, optical, sar)
    assert (first["offset"], first["processing_baseline"]) == (-1000, "05.09")
    assert first["acquired"] == "2023-06-10T07:46:21"
    assert first["no_data_share"] == pytest.approx(0.1)
    assert (second["scale"], second["gsd_m"]) == ("linear", pytest.approx(20, rel=0.01))
    assert pair["overlap"] == pytest.approx(0.5, abs=0.02)
    assert pair["gsd_ratio"] == pytest.approx(2, rel=0.01)
    assert pair["days_apart"] == pytest.approx(50.34, abs=0.01)
    assert pair["both_share"] + pair["optical_only_share"] == pytest.approx(0.9, abs=1e-3)
    assert any("50 days apart" in warning for warning in pair["warnings"])
    assert any("B04 B03 B02 as 1 frame" in line for line in first["what would be done"])
    code, text, _ = run(capsys, "info", optical, sar)
    assert code == 0
    assert re.search(r"overlap  \d\d\.\d%", text)


def test_alignment_is_told_of_the_files_and_not_of_their_overviews(tmp_path, capsys):
    """An overview has 512 rows and columns at most: the finer image would seem coarser than it is."""
    rng = np.random.default_rng(3)
    optical = make(tmp_path / "s2.tif", rng.integers(100, 4000, (12, 120, 120)).astype(np.uint16))
    power = rng.gamma(4, 0.02, (2, 1200, 1200)).astype(np.float32)
    sar = make(tmp_path / "sar.tif", power, ["VV", "VH"], transform=PLACE @ Affine.scale(0.1))
    *_, pair = facts(capsys, optical, sar)
    assert pair["gsd_ratio"] == pytest.approx(0.1, abs=1e-3)
    assert pair["alignment"] == (
        "resampled by average in linear power; covers 100.0% of the reference, pixel size ratio 0.10"
    )


def test_apart_and_without_a_place(tmp_path, capsys):
    array = np.random.default_rng(2).integers(1100, 4000, (12, 30, 30)).astype(np.uint16)
    power = np.full((2, 30, 30), 0.05, np.float32)
    optical = make(tmp_path / "o.tif", array)
    far = make(tmp_path / "far.tif", power, ["VV", "VH"], crs="EPSG:32732")
    pair = facts(capsys, optical, far)[-1]
    assert pair["overlap"] == 0
    assert "do not overlap" in pair["warnings"][0]
    nowhere = make(tmp_path / "nowhere.tif", power, ["VV", "VH"], crs=None, transform=Affine.identity())
    *_, second, pair = facts(capsys, optical, nowhere)
    assert second["crs"] is None
    assert "no maps" in " ".join(second["warnings"])
    assert "pixel by pixel" in pair["alignment"]
    small = make(tmp_path / "small.tif", power[:, :20], ["VV", "VH"], crs=None, transform=Affine.identity())
    assert "same size" in facts(capsys, optical, small)[-1]["warnings"][0]


def test_what_is_told_is_used(tmp_path, capsys):
    array = np.random.default_rng(2).integers(1100, 2000, (4, 30, 30)).astype(np.uint16)
    path = make(tmp_path / "a.tif", array)
    (fact,) = facts(capsys, path)
    assert fact["taken for"] == "unknown"
    assert "--sensor" in fact["title"]
    (fact,) = facts(capsys, path, "--sensor", "s2_l2a", "--bands", "B02", "B03", "B04", "B08", "--offset", "0")
    assert (fact["taken for"], fact["offset"], fact["bands"]) == ("s2_l2a", 0, ["B02", "B03", "B04", "B08"])
    (fact,) = facts(capsys, path, "--sar-sensor", "gf3", "--sar-scale", "dn", "--calibration", "1000")
    assert (fact["taken for"], fact["unit"], fact["scale"]) == ("gf3", "dB", "dn")
    assert any("0 dB at DN 1000, as told" in why for why in fact["why"])


def test_nodata_that_is_not_a_number(tmp_path, capsys):
    power = np.full((2, 30, 30), 0.05, np.float32)
    power[:, :3] = np.nan
    (fact,) = facts(capsys, make(tmp_path / "s.tif", power, ["VV", "VH"], nodata=np.nan))
    assert fact["nodata"] == "nan"
    assert fact["no_data_share"] == pytest.approx(0.1)


def test_a_model_that_lacks_a_band_says_so(tmp_path, capsys):
    array = np.random.default_rng(2).integers(1100, 2000, (2, 30, 30)).astype(np.uint16)
    (fact,) = facts(capsys, make(tmp_path / "a.tif", array, ["B03", "B04"]))
    assert fact["what would be done"][0].startswith("cannot be used: ")
    assert "'B02'" in fact["what would be done"][0]
