"""EarthMind-Bench's scenes of all bands: one file for each band, on grids of their own, beside a SAR picture."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import rasterio
import support
from PIL import Image
from rasterio.transform import from_origin

from configs import tiny
from earthmind_jax.config import SensorConfig
from earthmind_jax.data import datasets
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.read import load_record

pytest.importorskip("earthmind_jax.data.images", reason="records that describe an image")

STEPS = {10: "B02 B03 B04 B08", 20: "B05 B06 B07 B8A B11 B12", 60: "B01 B09"}


@pytest.fixture
def bench(tmp_path):
    """One scene of 600 m; band B04 is brightest in its upper half."""
    rng = np.random.default_rng(0)
    images = tmp_path / "ms_sar/ms/img"
    images.mkdir(parents=True)
    for step, bands in STEPS.items():
        side = 600 // step
        for band in bands.split():
            values = rng.integers(1500, 1700, (side, side)).astype(np.uint16)
            if band == "B04":
                values[: side // 2] += 3000
            place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5200000, step, step)}
            path = images / f"scene[1]_{band}.tif"
            with rasterio.open(path, "w", "GTiff", side, side, 1, dtype="uint16", **place) as dataset:
                dataset.write(values, 1)
    entry = {"file_name": "scene[1].json", "question": "Which?", "candidate": ["A. wet", "B. dry"], "answer": "A. wet"}
    (tmp_path / "ms_sar/ms_scene_classification_qa.json").write_text(
        json.dumps([entry, entry | {"file_name": "x.json"}])
    )
    (tmp_path / "ms_sar/sar/img").mkdir(parents=True)
    for name in ("scene[1]", "x"):
        Image.fromarray(rng.integers(0, 256, (60, 60), np.uint8)).save(tmp_path / f"ms_sar/sar/img/{name}.png")
    return tmp_path


def test_bands_are_named_and_brought_together(bench):
    assert datasets.recognise(bench) == "earthmind_bench"
    first, second = datasets.read(bench, "earthmind_bench", "ms_scene_classification")
    assert "no band file" in second.problems[0]
    assert len(first.record.optical["bands"]) == 12
    sample = load_record(first.record, SensorConfig())
    assert {band.shape for band in sample.optical.values()} == {(60, 60)}
    red = sample.optical["B04"]
    assert red[:28].mean() > 2 * red[32:].mean()
    data = dataclasses.replace(tiny.get_config().data, turns=8)
    example = encode_sample(sample, support.model(), data, support.tokenizer())
    assert "Which?\nA. wet\nB. dry" in support.tokenizer().decode(example.prompt.tokens)


def test_bands_beside_the_other_images(bench):
    (bench / "json").mkdir()
    (bench / "ms_sar/ms_scene_classification_qa.json").rename(bench / "json/ms_scene_classification_qa.json")
    (bench / "test").mkdir()
    (bench / "ms_sar").rename(bench / "test/ms_sar")
    first, _ = datasets.read(bench, "earthmind_bench", "ms_scene_classification")
    assert (len(first.record.optical["bands"]), first.record.sar) == (12, "test/ms_sar/sar/img/scene[1].png")
