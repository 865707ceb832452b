"""The parts of a run over a large scene: windows read ahead, each pixel once, blended to the mean of all."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import scenes

from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.scene import strips
from earthmind_jax.infer.ahead import ahead
from earthmind_jax.infer.scene_read import SceneReader
from earthmind_jax.infer.scene_run import to_percent
from earthmind_jax.infer.windows import Blend, windows


def test_a_canvas_that_moves_gives_the_mean_of_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(5):
        shape, side, overlap = tuple(rng.integers(9, 60, 2)), int(rng.integers(4, 12)), float(rng.uniform(0, 0.8))
        places = list(windows(shape, side, overlap))
        values = [rng.random((*(s.stop - s.start for s in place), 2), np.float32) for place in places]
        still, moving = Blend(shape, 2), Blend((min(side, shape[0]), shape[1]), 2)
        done = []
        for place, value in zip(places, values, strict=True):
            if place[0].start > moving.top:
                done.append(moving.finish(place[0].start))
            still.add(place, value)
            moving.add(place, value)
        done.append(moving.finish(shape[0]))
        np.testing.assert_array_equal(np.concatenate(done), still.mean())


def test_percent_is_above_fifty_exactly_where_the_mask_is():
    probability = np.random.default_rng(0).random((200, 50, 1), np.float32)
    probability[:, :20] = 0.5 + (probability[:, :20] - 0.5) * 1e-3
    probability[0, 0] = 0.5
    valid = np.random.default_rng(1).random((200, 50)) > 0.2
    percent = to_percent(probability, valid)
    np.testing.assert_array_equal((percent > 50)[valid], (probability > 0.5)[valid])
    assert (percent[~valid] == 255).all()
    assert np.abs(percent[valid] / 100 - probability[valid]).max() < 0.0101


def test_things_made_ahead_keep_their_order_and_their_error():
    def items():
        yield from range(20)
        raise UserError("the end of the world")

    made = ahead(items(), 3)
    assert [next(made) for _ in range(20)] == list(range(20))
    with pytest.raises(UserError, match="the end of the world"):
        next(made)
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    running = ahead(endless(), 2)
    assert next(running) == 1
    running.close()
    assert closed == [True]


def test_every_pixel_is_read_once_and_as_a_whole_would_be(pair, tmp_path):
    sensors = scenes.model().config.sensors
    with rasterio.open(pair["optical"]) as dataset:
        profile, data = dataset.profile, dataset.read()
        names, tags = dataset.descriptions, dataset.tags()
    profile |= {"blockxsize": 16, "blockysize": 16}
    tiled = tmp_path / "tiled.tif"
    with rasterio.open(tiled, "w", **profile) as dataset:
        dataset.write(data)
        dataset.descriptions = names
        dataset.update_tags(**tags)
    for path in (tiled, pair["optical"]):
        seen = np.zeros(data.shape[1:], int)
        for strip in strips(path):
            for window in strip:
                seen[window.toslices()] += 1
        assert (seen == 1).all()
    reader = SceneReader({"optical": tiled, "sar": pair["sar"]}, sensors)
    reader.strips = [[type(w)(w.col_off, top, w.width, min(23, 101 - top)) for w in reader.strips[0]]
                      for top in range(0, 101, 23)]  # fmt: skip
    reader._tops = [strip[0].row_off for strip in reader.strips]
    images = load_images(pair, sensors)
    for rows in reader.rows((top, min(top + 40, 101)) for top in (0, 11, 37, 90)):
        for name in ("optical", "sar"):
            frames, valid = sensor_frames(*images.pictures[name], name, sensors)
            cut = slice(rows.top, rows.bottom)
            ((got, seen),) = rows.frames[name]
            np.testing.assert_array_equal(seen, valid[cut])
            assert np.abs(got.astype(int) - frames[:, cut]).max() <= 1
    assert any("offset -1000" in note for note in reader.notes)
