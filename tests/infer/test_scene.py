"""Large scenes from file to file: the same answer as in memory, for any size, whatever the windows."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scenes
from affine import Affine
from rasterio.windows import Window
from support import run
from swaths import flat_at, lattice, leaning, written

from earthmind_jax import checkpoint
from earthmind_jax.config import SensorConfig
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.geo.scene import strips
from earthmind_jax.infer import overview as overview_module
from earthmind_jax.infer.ahead import ahead
from earthmind_jax.infer.overview import look_side, overview
from earthmind_jax.infer.scene import OVERLAP, to_percent, window_note
from earthmind_jax.infer.scene_ask import ask_large
from earthmind_jax.infer.scene_read import SceneReader
from earthmind_jax.infer.scene_store import PLACE, Store
from earthmind_jax.infer.windows import Blend, Lattice, windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def pair(folder):
    return scenes.write(folder, "a", (101, 150))


@pytest.fixture(scope="module")
def whole(pair, folder):
    """One uninterrupted run."""
    return scenes.draw(pair, folder / "whole", weights=True)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


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
            np.testing.assert_array_equal(rows.frames[name][1], valid[cut])
            assert np.abs(rows.frames[name][0].astype(int) - frames[:, cut]).max() <= 1
    assert any("offset -1000" in note for note in reader.notes)


def test_the_same_as_in_memory(pair, whole):
    """The road for large scenes and that for images in memory draw the same masks at the same places."""
    for i, target in enumerate(scenes.TARGETS, 1):
        small = scenes.model().segment(target, **pair)
        percent = read(whole.out / f"mask_{i}_probability.tif")
        drawn = small.masks[0]
        assert drawn.probability.std() > 0.01
        assert np.abs(percent / 100 - drawn.probability)[drawn.valid].max() < 0.02
        np.testing.assert_array_equal(percent == 255, ~drawn.valid)
        agree = (read(whole.out / f"mask_{i}.tif") == 1) == drawn.array
        assert agree[drawn.valid].mean() > 0.995
        shares = whole.answer["masks"][i - 1]["fusion"]
        assert shares["sar"] == pytest.approx(small.sensor_shares["sar"], abs=0.02)
        assert shares["sar"] + shares["optical"] == pytest.approx(1)


def test_what_is_written(pair, whole):
    answer = json.loads((whole.out / "answer.json").read_text())
    assert answer == whole.answer
    assert sorted(answer["files"]) == sorted(p.name for p in whole.out.iterdir())
    with rasterio.open(pair["optical"]) as optical:
        for i in (1, 2):
            for name in (f"mask_{i}", f"mask_{i}_probability"):
                with rasterio.open(whole.out / f"{name}.tif") as dataset:
                    assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                    assert (dataset.transform, dataset.crs, dataset.shape) == (
                        optical.transform, optical.crs, optical.shape,
                    )  # fmt: skip
                    assert scenes.TARGETS[i - 1] in dataset.tags()["prompt"]
            mask, percent = (read(whole.out / f"mask_{i}{end}.tif") for end in ("", "_probability"))
            np.testing.assert_array_equal(mask == 1, (percent > 50) & (percent != 255))
            assert answer["masks"][i - 1]["pixels"] == (mask == 1).sum()
            with rasterio.open(whole.out / f"mask_{i}_sar_weight.tif") as weight:
                cell = scenes.model().config.sensors.window / scenes.model().config.vision.grid
                assert weight.transform.a == pytest.approx(optical.transform.a * cell)
                assert weight.read(1).max() <= 100
    features = json.loads((whole.out / "mask_1.geojson").read_text())["features"]
    area = sum(f["properties"]["area_m2"] for f in features)
    assert area == pytest.approx(answer["masks"][0]["pixels"] * 100, rel=0.01)


def test_several_targets_are_each_what_they_are_alone(pair, whole, tmp_path):
    alone = scenes.draw(pair, tmp_path / "alone", targets=scenes.TARGETS[1:])
    several = read(whole.out / "mask_2_probability.tif").astype(int)
    assert np.abs(several - read(alone.out / "mask_1_probability.tif")).max() <= 1


def test_an_overview_is_the_mean_of_the_scene_in_its_place(pair):
    """Of the whole and of a window, whatever the parts that it is read in; nodata takes no part."""
    reader = SceneReader(pair, scenes.model().config.sensors)
    images = load_images(pair, scenes.model().config.sensors)
    reader.strips = [[Window(x, y, min(64, 150 - x), min(37, 101 - y)) for x in (0, 64, 128)] for y in (0, 37, 74)]
    for window in (None, (slice(7, 90), slice(30, 131))):
        part = images if window is None else images.crop(window)
        seen = overview(reader, 30, window)
        (height, width), (rows, columns) = part.shape, seen.shape
        assert max(rows, columns) == 30
        assert seen.scale == (height / rows, width / columns)
        cells = [((np.arange(n) + 0.5) * m // n).astype(int) for n, m in ((height, rows), (width, columns))]
        weights = [cell == np.arange(m)[:, None] for cell, m in zip(cells, (rows, columns), strict=True)]
        for name, (bands, valid) in part.pictures.items():
            count = weights[0] @ valid.astype(float) @ weights[1].T
            area = np.outer(weights[0].sum(1), weights[1].sum(1))
            np.testing.assert_array_equal(seen.pictures[name][1], (count >= 0.5 * area) & (count > 0))
            for band, values in bands.items():
                mean = weights[0] @ np.where(valid, values, 0).astype(float) @ weights[1].T / np.maximum(count, 1)
                np.testing.assert_allclose(seen.pictures[name][0][band], mean, atol=1e-4)
        for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):  # exactly the same ground
            there = seen.transform @ (corner[0] * columns, corner[1] * rows)
            assert there == pytest.approx(part.transform @ (corner[0] * width, corner[1] * height), abs=1e-6)


def test_a_question_about_a_large_image(pair, whole, tmp_path, monkeypatch):
    """Words from a view of the whole, the mask at full resolution."""
    monkeypatch.setattr(overview_module, "PICTURED", 16)
    question, side = whole.answer["run"]["questions"][1], look_side(scenes.model().config)
    answer, drawn = ask_large(scenes.model(), question, **pair, out=tmp_path / "out", max_new=6)
    assert max(answer.masks[0].probability.shape) == side < 150
    assert "segment_scene" in answer.notes[-1]
    several = read(whole.out / "mask_2_probability.tif").astype(int)
    assert np.abs(several - read(drawn.out / "mask_1_probability.tif")).max() <= 1


@pytest.mark.parametrize("size", [(20, 20), (33, 17), (16, 97)])
def test_odd_sizes(size, tmp_path):
    """Smaller than a window, one pixel more than a window, narrow."""
    pair = scenes.write(tmp_path, "odd", size)
    made = scenes.draw(pair, tmp_path / "out", targets=("lake",), weights=True)
    assert read(made.out / "mask_1.tif").shape == size
    assert set(np.unique(read(made.out / "mask_1.tif"))) <= {0, 1}


def test_windows_without_data_are_left_out_and_stay_nodata(pair, tmp_path):
    with rasterio.open(pair["optical"]) as source:
        data, profile, names, tags = source.read(), source.profile, source.descriptions, source.tags()
    data[:, :, 70:] = 0
    data[:, 50:] = 0
    with rasterio.open(tmp_path / "part.tif", "w", **profile) as dataset:
        dataset.write(data)
        dataset.descriptions = names
        dataset.update_tags(**tags)
    made = scenes.draw({"optical": tmp_path / "part.tif", "sar": None}, tmp_path / "out", targets=("lake",))
    np.testing.assert_array_equal(read(made.out / "mask_1.tif") == 255, (data == 0).any(0))
    assert made.answer["scene"]["empty windows"] > 0
    assert made.answer["masks"][0]["fusion"]["optical"] == pytest.approx(1)


@pytest.fixture(scope="module")
def dense(pair, folder):
    """One uninterrupted run in which four windows share a pixel of a column."""
    return scenes.draw(pair, folder / "dense", weights=True, overlap=0.75)


@pytest.mark.parametrize(("kind", "overlap", "stop"), [("whole", OVERLAP, 1), ("whole", OVERLAP, 2),
                                                       ("whole", OVERLAP, 4), ("dense", 0.75, 5)])  # fmt: skip
def test_broken_off_and_continued(kind, overlap, stop, pair, tmp_path, request):
    """After any row of windows; a half-written last line is as if it were not there."""
    whole = request.getfixturevalue(kind)
    out, rows = tmp_path / "out", []

    def report(*facts):
        rows.append(facts)
        if len(rows) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scenes.draw(pair, out, weights=True, overlap=overlap, report=report)
    assert not (out / "answer.json").exists()
    with open(out / PLACE / "rows.jsonl", "a") as log:
        log.write('{"row": 99, "pix')
    rows.clear()
    scenes.draw(pair, out, weights=True, overlap=overlap, report=lambda *facts: rows.append(facts))
    lattice = Lattice.of((101, 150), 32, overlap, 8)
    kept = lattice.next_top(stop - 2) if stop > 1 else 0  # the last rows may have been on their way to the disk
    assert len(rows) <= len(lattice.rows) - lattice.first_row(kept)
    assert scenes.contents(out) == scenes.contents(whole.out)


def test_broken_off_while_the_maps_are_written(pair, whole, tmp_path, monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", fail)
        with pytest.raises(KeyboardInterrupt):
            scenes.draw(pair, tmp_path / "out", weights=True)
    (tmp_path / "out" / "answer.json").unlink()
    assert scenes.draw(pair, tmp_path / "out", weights=True).seconds["maps"] > 0
    assert scenes.contents(tmp_path / "out") == scenes.contents(whole.out)


def start(folder, out):
    """The same run in a process of its own, which waits for a line after each row of windows."""
    root = Path(scenes.__file__).parents[1]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    program = [sys.executable, scenes.__file__, str(folder), str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(program, **pipes, text=True, env=env)


def until(child, line):
    """Let it go on until it says ``line``; whether it did."""
    for said in child.stdout:
        if said.strip() == line:
            return True
        child.stdin.write("\n")
        child.stdin.flush()
    return False


@pytest.mark.slow
def test_killed_by_the_system_and_continued(folder, whole, tmp_path):
    out = tmp_path / "out"
    for line, number in (("windows 18", signal.SIGKILL), ("windows 9", signal.SIGTERM)):  # windows of one start
        with start(folder, out) as child:
            assert until(child, line)
            child.send_signal(number)
            assert "finished" not in child.stdout.read()
            assert child.wait(timeout=60) == -number
        assert (out / PLACE).is_dir()
    with start(folder, out) as child:
        assert until(child, "finished")
        assert child.wait(timeout=120) == 0
    assert scenes.contents(out) == scenes.contents(whole.out)


def test_a_finished_run_is_not_repeated_and_another_is_refused(pair, whole):
    before = scenes.contents(whole.out)
    again = scenes.draw(pair, whole.out, weights=True)
    assert again.answer == whole.answer
    with pytest.raises(UserError, match="another targets and questions"):
        scenes.draw(pair, whole.out, weights=True, targets=("ship", "lake"))
    with pytest.raises(UserError, match="another overlap"):
        scenes.draw(pair, whole.out, weights=True, overlap=0.25)
    with pytest.raises(UserError, match="another window"):
        scenes.draw(pair, whole.out, weights=True, window=64)
    assert scenes.contents(whole.out) == before


def test_other_results_are_not_overwritten(pair, tmp_path):
    scenes.model().segment("lake", **pair).save(tmp_path)
    before = scenes.contents(tmp_path)
    with pytest.raises(UserError, match="holds other results"):
        scenes.draw(pair, tmp_path, targets=("lake",))
    assert scenes.contents(tmp_path) == before


def test_two_runs_in_one_directory(pair, tmp_path):
    def report(*facts):
        with pytest.raises(UserError, match="in use by another run"):
            scenes.draw(pair, tmp_path / "out", targets=("lake",))

    scenes.draw(pair, tmp_path / "out", targets=("lake",), report=report)


def test_a_block_that_breaks_on_the_way_keeps_what_is_finished(tmp_path):
    """The file's last rows become unreadable after the run has begun."""
    pair = scenes.write(tmp_path, "bad", (2200, 32))
    path = pair["optical"]
    with rasterio.open(path) as dataset:
        place = [int(dataset.get_tag_item(f"BLOCK_{what}_0_4", "TIFF", bidx=4)) for what in ("OFFSET", "SIZE")]

    def report(*facts):
        with open(path, "r+b") as file:
            file.seek(place[0])
            file.write(b"\xff" * place[1])

    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"bad_s2\.tif is damaged or cut short"):
        scenes.draw(pair, out, targets=("lake",), overlap=0.0, report=report)
    assert 400 < json.loads((out / PLACE / "rows.jsonl").read_text().splitlines()[-1])["pixels"] < 2048
    assert sorted(p.name for p in out.iterdir()) == [PLACE]


def test_a_full_disk_keeps_what_is_finished(pair, whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"picture_optical\.raw: File too large"):
            scenes.draw(pair, tmp_path / "out", weights=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "out" / PLACE / "rows.jsonl").read_text().splitlines()[-1])["pixels"] > 0
    scenes.draw(pair, tmp_path / "out", weights=True)
    assert scenes.contents(tmp_path / "out") == scenes.contents(whole.out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": ()}, "nothing to segment"),
        ({"targets": ("water", " ")}, "nothing to segment"),
        ({"targets": ("water", "water ")}, "twice"),
        ({"window": 48}, "multiple of the model's own 32"),
        ({"window": 0}, "multiple"),
        ({"overlap": 0.95}, "0 to 0.9"),
        ({"optical": None, "sar": None}, "Give an optical image"),
        ({"optical": "missing.tif"}, "missing.tif"),
        ({"optical": "picture.png", "sar": None}, "picture.png"),
    ],
)
def test_what_cannot_be_drawn(options, says, pair, tmp_path):
    with pytest.raises(UserError, match=says):
        scenes.draw(pair | {k: v for k, v in options.items() if k in pair}, tmp_path / "out",
                    **{k: v for k, v in options.items() if k not in pair})  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_images_of_other_ground_are_refused(pair, tmp_path):
    far = scenes.write(tmp_path, "far away", (60, 60))
    with pytest.raises(UserError, match=r"covers 0.0%"):
        scenes.draw({"optical": pair["optical"], "sar": far["sar"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(pair, tmp_path, capsys):
    model = scenes.model()
    checkpoint.save(
        tmp_path / "model", model.config, model.engine.params, model.engine.tokenizer, {"made": "for tests"}
    )
    told = ("segment", "river", "lake", "--checkpoint", tmp_path / "model", "--optical", pair["optical"], "--sar",
            pair["sar"], "--out", tmp_path / "out", "--overlap", "0", "--json")  # fmt: skip
    code, text, err = run(capsys, *told)
    assert code == 0, err
    facts = json.loads(text)
    assert [mask["target"] for mask in facts["masks"]] == ["river", "lake"]
    assert "windows/s" in err
    assert "0:00 min left" in err
    code, text, err = run(capsys, *told, "--window", 64)
    assert code == 2
    assert "another window" in err
    code, text, err = run(capsys, *told, "--picture")
    assert (code, "--picture" in err) == (2, True)


@pytest.mark.parametrize("kind", ["gcps", "rpcs"])
def test_a_scene_that_only_control_places(tmp_path, kind):
    """Every part of it has the values, and the place, of the whole brought onto its map grid."""
    given = {"gcps": lattice()} if kind == "gcps" else {"rpcs": leaning(), "centres": flat_at(200)}
    path = written(tmp_path / "a.tif", **given)
    sensors = scenes.model().config.sensors
    whole = load_images({"sar": path}, sensors)
    reader = SceneReader({"sar": path}, sensors)
    assert (reader.grid.transform, reader.grid.crs, reader.shape) == (whole.transform, whole.crs, whole.shape)
    height = reader.shape[0]
    rows = list(reader.rows(iter([(0, 50), (40, height)])))
    frames, valid = sensor_frames(*whole.pictures["sar"], "sar", sensors)
    for part in rows:
        got, seen = part.frames["sar"]
        np.testing.assert_array_equal(seen, valid[part.top : part.bottom])
        off = np.abs(got.astype(int) - frames[:, part.top : part.bottom])
        assert off[:, seen].max() <= 1  # of 255
    if kind == "rpcs":  # from here on it is all the same
        return
    result = scenes.draw({"sar": path}, tmp_path / "out", targets=["river"])
    with rasterio.open(result.files[0]) as drawn:
        assert (drawn.shape, drawn.crs) == (whole.shape, whole.crs)
        assert drawn.transform.almost_equals(whole.transform)
        np.testing.assert_array_equal(drawn.read(1) != 255, whole.valid)


def test_longitudes_may_count_from_either_side(tmp_path):
    """Across the antimeridian: the optical image counts on beyond 180, the SAR image from -180."""
    place = {"driver": "GTiff", "height": 40, "width": 40, "crs": "EPSG:4326"}
    size, rng = 1e-4, np.random.default_rng(0)
    with rasterio.open(
        tmp_path / "o.tif", "w", count=3, dtype="uint16", transform=Affine(size, 0, 180.001, 0, -size, 5), **place
    ) as file:
        file.write(rng.integers(300, 3000, (3, 40, 40)).astype(np.uint16))
        file.descriptions = ("B04", "B03", "B02")
    with rasterio.open(
        tmp_path / "s.tif", "w", count=2, dtype="float32", transform=Affine(size, 0, -180, 0, -size, 5), **place
    ) as file:
        file.write(rng.gamma(4, 0.02, (2, 40, 40)).astype(np.float32))
    reader = SceneReader({"optical": tmp_path / "o.tif", "sar": tmp_path / "s.tif"}, SensorConfig())
    assert reader.overlap == pytest.approx(0.75)
    (rows,) = reader.rows(iter([(0, 40)]))
    assert rows.frames["sar"][1].mean() == pytest.approx(0.75)


def test_windows_far_larger_than_the_model_s_own(pair, tmp_path):
    result = scenes.draw(pair, tmp_path / "wide", targets=["river"], window=128)
    assert "4 times the side of the model's own (32): what is small" in result.answer["notes"][0]
    assert window_note(scenes.model(), 64) is None
