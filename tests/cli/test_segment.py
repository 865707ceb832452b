"""``earthmind segment`` as a user calls it: maps that land on the input, labels beside them, heights of the ground."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.transform import from_origin
from support import refused, run
from swaths import LATITUDE, LEAN, LONGITUDE, METRES, flat_at, leaning, written

from earthmind_jax.cli_truth import Truth
from earthmind_jax.data import dates as dates_module
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import load_pair
from earthmind_jax.infer import view
from earthmind_jax.infer.result import Mask


def test_segment_writes_maps_that_land_on_the_input(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    code, text, err = run(
        capsys, "segment", "water", "--checkpoint", work / "model", "--optical", work / "a_s2.tif",
        "--sar", work / "a_s1.tif", "--out", out, "--truth", work / "a_label.tif", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert 0 <= json.loads(text)["iou"] <= 1
    with rasterio.open(out / "mask_1.tif") as mask, rasterio.open(work / "a_s2.tif") as optical:
        assert mask.transform == optical.transform
        assert mask.crs == optical.crs
        assert mask.shape == optical.shape
        assert mask.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert json.loads((out / "mask_1.geojson").read_text())["type"] == "FeatureCollection"
    assert (out / "panel.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in out.iterdir()) == [
        "answer.json", "item.json", "mask_1.geojson", "mask_1.tif", "mask_1_probability.tif", "masks.gpkg", "panel.png",
    ]  # fmt: skip


def test_several_dates_and_a_large_image_with_the_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask for each date; of a large image the maps are drawn at full resolution, whatever is explained."""
    later, out = tmp_path / "s2_20240611.tif", tmp_path / "maps"
    later.write_bytes((work / "a_s2.tif").read_bytes())
    dates = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", later)
    given = ("--out", out, "--truth", work / "a_label.tif", "--crop", "2,4,32,32")
    code, text, err = run(capsys, *dates, "water", *given)
    assert code == 0, err
    assert re.search(r"^iou: mask 1 date 1 [\d.]+, mask 1 2024-06-11 [\d.]+$", text, re.MULTILINE)
    assert len(list(out.glob("mask_1_*_probability.tif"))) == 2
    refused(capsys, *dates, later, "water", "--sar", later, later, says="2 sar images but 3")
    monkeypatch.setattr(dates_module, "MOST_PIXELS", 4000)
    refused(capsys, *dates, "water", "--picture", says="too many to hold 2 dates in memory")
    monkeypatch.setattr(view, "WHOLE", 2000)
    page, out = tmp_path / "reason.html", tmp_path / "scene"
    given = ("--out", out, "--truth", work / "a_label.tif", "--explain", page, "--weights")
    code, text, err = run(capsys, *dates, "water", *given)
    assert code == 0, err
    assert "a look at the whole" in err
    assert f"wrote {page}" in text
    assert re.search(r"^iou: water date_1 [\d.]+, water 2024-06-11 [\d.]+$", text, re.MULTILINE)
    assert re.search(r"^water 2024-06-11: [\d.]+% of the scene, score", text, re.MULTILINE)
    for name in ("mask_1_date_1", "mask_1_2024-06-11"):
        with rasterio.open(out / f"{name}.tif") as file:
            assert file.shape == (48, 48)
    assert {path.name for path in out.glob("*weight*")} == {"mask_1_sar_weight.tif"}
    assert (out / "item.json").exists()
    assert "What the model saw" in page.read_text()


def test_masks_beside_labels(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One value for each mask; labels on another grid are brought onto the image's."""
    given = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--out", tmp_path / "out")
    with rasterio.open(work / "a_label.tif") as file:
        labels, profile = file.read(), file.profile
    double = {"height": 96, "width": 96, "transform": profile["transform"] @ Affine.scale(0.5)}
    with rasterio.open(tmp_path / "fine.tif", "w", **{**profile, **double}) as file:
        file.write(labels.repeat(2, 1).repeat(2, 2))
    with rasterio.open(tmp_path / "rgb.tif", "w", **{**profile, "count": 3}) as file:
        file.write(labels.repeat(3, 0))
    away = {"transform": profile["transform"] @ Affine.translation(500, 0)}
    with rasterio.open(tmp_path / "away.tif", "w", **{**profile, **away}) as file:
        file.write(labels)
    marks = ("--box", "2,2,20,20", "--point", "40,40")
    with rasterio.open(work / "a_s2.tif") as file:
        assert file.shape == labels.shape[1:] == (48, 48)

    def iou(*more: object) -> Any:
        code, out, err = run(capsys, *given, *more, "--json")
        assert code == 0, err
        return json.loads(out)["iou"]

    found = iou(*marks, "--crop", "2,0,44,44", "--truth", tmp_path / "fine.tif", "--truth-value", 1, 2)
    assert list(found) == ["region1", "region2"]
    for number, name in enumerate(found, 1):
        with rasterio.open(tmp_path / "out" / f"mask_{number}.tif") as file:
            drawn, grid = file.read(1) == 1, (file.transform, file.crs)
        target = labels[0, 2:46, :44] == number
        expected = (drawn & target).sum() / (drawn | target).sum() if (drawn | target).any() else 1.0
        assert found[name] == pytest.approx(expected, abs=1e-4)
    masks = [Mask(drawn.astype(np.float32), np.ones(drawn.shape, bool), *grid)] * 2
    plain = [dataclasses.replace(mask, crs=None, offset=(2, 0)) for mask in masks]
    truth = Truth.of(work / "a_label.tif", (2, 3), ())
    assert truth.compare(masks, None) == truth.compare(plain, (48, 48))
    for bad, size, says in ((masks[:1], None, "for 1 masks"), (plain, (49, 48), "pixels .rows, columns. but")):
        with pytest.raises(UserError, match=says):
            truth.compare(bad, size)
    with pytest.raises(UserError, match="do not overlap"):
        Truth.of(tmp_path / "away.tif", (2, 3), ()).compare(masks, None)
    two = iou("water", "forest", "--truth", work / "a_label.tif", "--truth-value", 1, 2, "--out", tmp_path / "scene")
    assert set(two) == {"water", "forest"}
    truth = ("--truth", work / "a_label.tif")
    refused(capsys, *given, "water", "forest", *truth, says="1 value(s) for 2 masks (water, forest)")
    refused(capsys, *given, "water", "--truth-value", 1, says="--truth")
    refused(capsys, *given, "water", "--truth", tmp_path / "rgb.tif", says="has 3 bands")
    refused(capsys, *given, "water", "--truth", tmp_path / "none.tif", says="none.tif")


def test_segment_what_is_pointed_at_with_the_reason(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("segment", "--checkpoint", work / "model", "--optical", work / "a_s2.tif", "--sar", work / "a_s1.tif")
    page = tmp_path / "reason.html"
    code, out, err = run(capsys, *given, "--box", "2,2,20,20", "--explain", page, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"wrote {page}" in out
    assert "SAR alone" in page.read_text()
    assert "What is pointed at" in page.read_text()
    refused(capsys, *given, "water", "forest", "--explain", page, says="one target")


@pytest.mark.parametrize("sensor", ["optical", "sar"])
def test_segment_with_one_sensor(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sensor: str) -> None:
    name = "a_s2.tif" if sensor == "optical" else "a_s1.tif"
    code, _, err = run(
        capsys,
        "segment",
        "water",
        "--checkpoint",
        work / "model",
        f"--{sensor}",
        work / name,
        "--out",
        tmp_path / "out",
    )
    assert code == 0, err


def test_the_height_of_the_ground(work, tmp_path, capsys):
    """An image that RPCs place is asked about, segmented and described on the map that the told height gives."""
    path = written(tmp_path / "vhr.tif", rpcs=leaning(), centres=flat_at(260))
    elevation = tmp_path / "dem.tif"
    with rasterio.open(
        elevation, "w", driver="GTiff", count=1, height=300, width=300, dtype="float32", crs="EPSG:4326",
        transform=from_origin(LONGITUDE - 0.15, LATITUDE + 0.15, 1e-3, 1e-3),
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 300, 300), 260, np.float32))
    tops = {}
    for name, ground in {"middle": (), "told": ("--height", 260), "model": ("--dem", elevation)}.items():
        code, out, err = run(capsys, "info", path, "--sar-sensor", "s1", *ground, "--json")
        assert code == 0, err
        (fact,) = json.loads(out)
        assert fact["crs"] == "EPSG:32632"
        assert any("placed by its RPCs" in warning for warning in fact["warnings"])
        assert not any("no map" in warning for warning in fact["warnings"])
        tops[name] = float(re.search(r"latitude \S+ to (\S+)", fact["extent"])[1])
    degrees = 10 * LEAN * 60 / METRES
    assert tops["told"] - tops["middle"] == pytest.approx(degrees, abs=1.5e-4)
    assert tops["model"] == pytest.approx(tops["told"], abs=1.1e-4)
    given = ("--checkpoint", work / "model", "--sar", path, "--sar-sensor", "s1")
    code, _, err = run(capsys, "segment", "water", *given, "--height", 260, "--out", tmp_path / "maps")
    assert code == 0, err
    maps = sorted((tmp_path / "maps").glob("*.tif"))
    assert maps
    there = load_pair(sar_path=path, sar_sensor="s1", height=260).transform
    for each in maps:
        with rasterio.open(each) as dataset:
            assert dataset.transform.f == pytest.approx(there.f)
    ask = ("ask", "x", *given)
    refused(capsys, *ask, "--height", "nan", says="must be -1000 to 10000 metres")
    refused(capsys, *ask, "--dem", tmp_path / "none.tif", says="none.tif does not exist")
    plain = ("--sar", work / "a_s1.tif", "--height", 100)
    refused(capsys, "ask", "x", "--checkpoint", work / "model", *plain, says="is not placed by them; leave it out")
    refused(capsys, "info", *plain[1:], says="is not placed by them; leave it out")
