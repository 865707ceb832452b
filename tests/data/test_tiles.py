"""Tiling against the recorded outputs of the published code, and the geometry of validity and regions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from earthmind_jax.data import tiles
from earthmind_jax.errors import UserError

GOLDENS = Path(os.environ.get("EARTHMIND_GOLDENS", Path(__file__).parents[3] / "shared" / "goldens"))
CASES = sorted(GOLDENS.glob("f_preprocessing*")) if GOLDENS.is_dir() else []
recorded = pytest.mark.skipif(not CASES, reason="no recorded outputs")


@recorded
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_grids_recorded(case):
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    settings = [key.split(".")[0] for key in outputs.files if key.endswith(".grid_cols_rows")]
    assert settings
    for setting in settings:
        low, high, size = (int("".join(filter(str.isdigit, part))) for part in setting.split("_"))
        assert [list(g) for g in tiles.candidate_grids(low, high)] == outputs[f"{setting}.target_ratio_order"].tolist()
        grids = [tiles.closest_grid((int(w), int(h)), low, high, size) for w, h in inputs["wh"]]
        np.testing.assert_array_equal(grids, outputs[f"{setting}.grid_cols_rows"])
        assert [tiles.tile_count(g, False) for g in grids] == outputs[f"{setting}.n_tiles"].tolist()
        assert [tiles.tile_count(g, True) for g in grids] == outputs[f"{setting}.n_tiles_thumbnail"].tolist()


@recorded
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_pixels_recorded(case):
    inputs, outputs = np.load(case / "inputs.npz"), np.load(case / "outputs.npz")
    config = json.loads((case / "config.json").read_text())
    pixels = config["pixels"]
    for i in range(sum(key.startswith("image.") for key in inputs.files)):
        image = inputs[f"image.{i}"]
        made = tiles.dynamic_tiles(
            image, pixels["image_size"], pixels["min_num"], pixels["max_num"], pixels["use_thumbnail"]
        )
        np.testing.assert_array_equal(made, outputs[f"pixels.{i}.tiles_uint8"])
        values = outputs[f"pixels.{i}.pixel_values"]
        mine = tiles.normalise(made)
        if len(mine) != len(values):
            mine = mine[[0, -1]]
        np.testing.assert_allclose(mine.transpose(0, 3, 1, 2), values, atol=1e-5)
        size = config["direct_resize"]
        small = tiles.direct_resize(image, size)
        if (key := f"pixels.{i}.direct_resize_{size}_uint8") in outputs.files:
            np.testing.assert_array_equal(small, outputs[key])
        for mirror, name in ((True, "sam_preprocess_image"), (False, "sam_preprocess_image_training")):
            if (key := f"pixels.{i}.{name}") in outputs.files:
                mine = tiles.sam_preprocess_image(small, mirror_bf16=mirror)
                np.testing.assert_allclose(mine.transpose(2, 0, 1), outputs[key], atol=1e-5)


@pytest.mark.parametrize(
    ("wh", "count"), [((633, 633), 1), ((634, 634), 5), ((951, 951), 10), ((640, 480), 13), ((256, 256), 1)]
)
def test_published_tile_counts(wh, count):
    assert tiles.tile_count(tiles.closest_grid(wh), True) == count


def test_grid_errors():
    with pytest.raises(UserError, match="cannot be tiled"):
        tiles.closest_grid((0, 5))
    with pytest.raises(UserError, match="min"):
        tiles.candidate_grids(3, 2)
    with pytest.raises(UserError, match="8-bit"):
        tiles.as_picture(np.zeros((4, 4, 2), np.uint8))


def test_float_frames_round_to_bytes():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    frame = image.astype(np.float32) / 255
    np.testing.assert_array_equal(tiles.to_uint8(frame), image)
    np.testing.assert_array_equal(tiles.dynamic_tiles(frame, 28), tiles.dynamic_tiles(image, 28))


def test_tiles_are_row_major():
    image = np.zeros((2, 4, 3), np.uint8) + np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    made = tiles.dynamic_tiles(image, 2, grid=(2, 1), thumbnail=False)
    np.testing.assert_array_equal(made[..., 0], [[[0, 1], [4, 5]], [[2, 3], [6, 7]]])


def test_token_validity_counts_area():
    rng = np.random.default_rng(1)
    valid = rng.random((48, 96)) > 0.5
    grid, side = (2, 1), 4
    cells = tiles.token_validity(valid, side, grid, True)
    assert cells.shape == (3, 16)
    for tile in range(2):
        block = valid[:, tile * 48 : (tile + 1) * 48].reshape(4, 12, 4, 12).mean((1, 3))
        np.testing.assert_array_equal(cells[tile].reshape(4, 4), block >= 0.5)
    block = valid.reshape(4, 12, 4, 24).mean((1, 3))
    np.testing.assert_array_equal(cells[2].reshape(4, 4), block >= 0.5)


def test_token_validity_when_tokens_outnumber_pixels():
    valid = np.array([[True, False], [False, True]])
    cells = tiles.token_validity(valid, 5, (1, 1)).reshape(5, 5)
    share = tiles.valid_share(valid, (5, 5))
    assert cells[0, 0]
    assert not cells[0, 4]
    assert cells[2, 2]
    np.testing.assert_allclose(share[2, 2], 0.5, atol=1e-6)
    np.testing.assert_allclose(share.mean(), 0.5, atol=1e-6)


def test_token_validity_exact_half_is_valid():
    valid = np.zeros((12, 12), bool)
    valid[:6] = True
    assert tiles.token_validity(valid, 1, (1, 1)).all()
    valid[5, 0] = False
    assert not tiles.token_validity(valid, 1, (1, 1)).any()


def test_nearest_resize_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    for _ in range(200):
        h, w, a, b = (int(v) for v in rng.integers(1, 300, 4))
        mask = rng.random((h, w), np.float32)
        expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], (a, b), mode="nearest")[0, 0]
        np.testing.assert_array_equal(tiles.nearest_resize(mask, (a, b)), expected.numpy())


def test_region_cells_on_the_thumbnail():
    mask = np.zeros((32, 64), bool)
    mask[:8, :32] = True
    assert tiles.region_cells(mask, 4, (2, 1)) == [(2, 0), (2, 1)]
    assert tiles.region_cells(mask, 4, (1, 1)) == [(0, 0), (0, 1)]
    assert tiles.region_cells(mask, 4, (2, 1), thumbnail=False) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_region_cells_keep_tiny_regions():
    mask = np.zeros((64, 64), bool)
    mask[33, 50] = True
    assert tiles.region_cells(mask, 4, (1, 1), at_least_one=False) == []
    assert tiles.region_cells(mask, 4, (1, 1)) == [(0, 11)]
    with pytest.raises(UserError, match="at least one pixel"):
        tiles.region_cells(np.zeros((4, 4)), 4, (1, 1))
