"""Large scenes of several dates: the masks that small ones get, on the first date's grid, from file to file."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import numpy as np
import pyogrio
import pytest
import rasterio
import scenes
import support
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.dates import load_dates
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.errors import UserError
from earthmind_jax.geo import sample
from earthmind_jax.geo.told import Told
from earthmind_jax.infer import scene_read
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.scene import segment_scene
from earthmind_jax.infer.scene_read import SceneReader

SIZE = (45, 70)
DAYS = ("20240501", "20240611", "20240715", "20240803", "20240812", "20240920")
NAMES = ("2024-05-01", "2024-06-11", "2024-07-15", "2024-08-03", "2024-08-12", "2024-09-20")


@functools.cache
def model():
    """The model of :mod:`scenes` with the memory that follows objects."""
    plain = scenes.model().config
    grounding = dataclasses.replace(plain.grounding, memory=True, memory_dim=8, memory_layers=1, memory_mlp=16)
    config = dataclasses.replace(plain, grounding=grounding)
    params, last = dict(support.params(config)), "grounding/decoder/hyper/fc3/kernel"
    params[last] = 40 * params[last]
    return EarthMind(config, scenes.Pointing(config, params, support.tokenizer()), "tiny")


def write(path, values, profile, like, **changes):
    with rasterio.open(path, "w", **{**profile, **changes}) as file:
        file.write(values)
        file.descriptions = like.descriptions
        file.update_tags(**like.tags())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dates")


@pytest.fixture(scope="module")
def series(folder):
    """The ground on six days: as it was, in degrees, its left with a hole, mirrored twice, and its right part alone.

    The first day has no data in a corner that others see."""
    optical = []
    pair = scenes.write(folder, "a", SIZE)
    with rasterio.open(pair["optical"]) as file:
        data, profile = file.read(), file.profile
        here = profile["transform"]
        corner, hole = data.copy(), data[:, :, :40].copy()
        corner[:, :40, :35] = 0
        hole[:, 5:20, 8:30] = 0
        size = calculate_default_transform(file.crs, "EPSG:4326", SIZE[1], SIZE[0], *file.bounds)
        degrees = np.zeros((len(data), size[2], size[1]), data.dtype)
        places = {"src_crs": file.crs, "src_transform": here, "dst_crs": "EPSG:4326", "dst_transform": size[0]}
        reproject(data, degrees, **places, src_nodata=0, dst_nodata=0, resampling=Resampling.nearest)
        days = {
            DAYS[0]: (corner, {}),
            DAYS[1]: (degrees, {"crs": "EPSG:4326", "transform": size[0], "height": size[2], "width": size[1]}),
            DAYS[2]: (hole, {"width": 40}),
            DAYS[3]: (data[:, ::-1], {}),
            DAYS[4]: (data[:, :, ::-1], {}),
            DAYS[5]: (data[:, :, 30:], {"width": 40, "transform": here @ Affine.translation(30, 0)}),
        }
        for day, (values, changes) in days.items():
            optical.append(write(folder / f"s2_{day}.tif", values, profile, file, **changes))
    with rasterio.open(pair["sar"]) as file:
        radar, profile = file.read(), file.profile
        radar[:, :, : 3 * radar.shape[2] // 5] = 0
        sar = write(folder / "s1.tif", radar, profile, file)
    return {"optical": optical, "sar": sar}


def draw(series, out, **options):
    return segment_scene(model(), options.pop("targets", scenes.TARGETS), **series, out=out, **options)


@pytest.fixture(scope="module")
def whole(series, folder):
    return draw(series, folder / "whole", weights=True)


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_the_same_as_in_memory(series, whole):
    """On dates that the language model sees and on one that is followed, and where the first day has no data."""
    small = model().segment(scenes.TARGETS, **series)
    assert [mask.date for mask in small.masks] == [*NAMES, *NAMES]
    for name, mask, told in zip(small.names, small.masks, whole.answer["masks"], strict=True):
        percent, drawn = read(whole.out / f"{name}_probability.tif"), read(whole.out / f"{name}.tif")
        assert mask.probability[mask.valid].std() > 0.05
        assert np.abs(percent / 100 - mask.probability)[mask.valid].max() < 0.011  # of which 0.01 is rounding
        np.testing.assert_array_equal(percent == 255, ~mask.valid)
        np.testing.assert_array_equal(drawn == 255, ~mask.valid)
        assert ((drawn == 1) == mask.array)[mask.valid].mean() > 0.999
        assert told["date"] == mask.date
        assert told["share"] == pytest.approx(mask.array.sum() / mask.valid.sum(), abs=1e-3)
    corner = small.masks[0].valid[:32, :32]
    assert not corner.any()
    assert (read(whole.out / "mask_1_2024-06-11_probability.tif")[:20, :20] > 0).mean() > 0.9


def test_what_is_written(series, whole):
    answer = json.loads((whole.out / "answer.json").read_text())
    assert answer == whole.answer
    assert sorted(answer["files"]) == sorted(p.name for p in whole.out.iterdir())
    stems = [f"mask_{i}_{day}" for i in (1, 2) for day in NAMES]
    assert [path.stem for path in whole.masks] == stems
    maps = {f"{stem}{end}" for stem in stems for end in (".tif", "_probability.tif", ".geojson")}
    weights = {"mask_1_sar_weight.tif", "mask_2_sar_weight.tif"}
    assert set(answer["files"]) == maps | weights | {"masks.gpkg", "panel.png", "item.json", "answer.json"}
    with rasterio.open(series["optical"][0]) as first:
        for name in sorted(maps):
            if name.endswith(".tif"):
                with rasterio.open(whole.out / name) as drawn:
                    assert (drawn.transform, drawn.crs, drawn.shape) == (first.transform, first.crs, first.shape)
    meta, _, _, fields = pyogrio.raw.read(whole.out / "masks.gpkg")
    rows = dict(zip(meta["fields"], fields, strict=True))
    there = set(zip(rows["mask"], rows["target"], rows["date"], strict=True))
    told = [(i, mask["target"], mask["date"], mask["pixels"]) for i, mask in enumerate(answer["masks"], 1)]
    assert there == {row[:3] for row in told if row[3]}
    assert len(there) > len(NAMES)
    features = json.loads((whole.out / f"{stems[1]}.geojson").read_text())["features"]
    assert {f["properties"]["date"] for f in features} == {NAMES[1]}
    item = json.loads((whole.out / "item.json").read_text())
    inputs = [link["title"] for link in item["links"] if link["rel"] == "derived_from"]
    assert inputs == [*(f"optical {day}" for day in NAMES), f"sar {NAMES[0]}"]
    assert {f"{stem}_polygons" for stem in stems} < set(item["assets"])
    assert list(answer["scene"]["dates"]) == list(NAMES)
    assert answer["scene"]["dates"][NAMES[5]] == pytest.approx(40 / 70)
    assert any("6 dates (2024-05-01" in note and "on the grid of the first" in note for note in answer["notes"])


def test_broken_off_and_continued(series, whole, tmp_path, monkeypatch):
    """What is said only of the parts that were read last is not said of the whole."""
    rows, out = [], tmp_path / "out"

    def report(*facts):
        rows.append(facts)
        if len(rows) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(series, out, weights=True, report=report)
    assert not (out / "answer.json").exists()
    load = scene_read.load_dates

    def more(*given, **options):
        images = load(*given, **options)
        return dataclasses.replace(images, notes=(*images.notes, "nothing of it lies here"))

    monkeypatch.setattr(scene_read, "load_dates", more)
    (out / ".mask_1_2024-06-11.0123456789ab.tif.plain.tif").touch()  # left by a kill
    draw(series, out, weights=True, report=report)
    assert scenes.contents(out) == scenes.contents(whole.out)
    with pytest.raises(UserError, match="another optical"):
        draw(series | {"optical": series["optical"][::-1]}, out, weights=True)


def test_parts_of_every_date_are_read_as_the_whole_is(series, folder):
    """Of SAR alone, whose dates lie on another grid than one another."""
    sensors = model().config.sensors
    fine = folder / "s1_20240611.tif"
    with rasterio.open(series["sar"]) as file:
        place = {"transform": file.transform @ Affine.scale(0.5), "width": 2 * file.width, "height": 2 * file.height}
        write(fine, file.read().repeat(2, 1).repeat(2, 2), file.profile, file, **place)
    dates = {"sar": [folder / "a_s1.tif", fine, series["sar"]]}
    first = load_dates(dates, sensors)
    reader = SceneReader(dates, sensors)
    assert reader.names == ("date_1", "2024-06-11", "date_3")
    height = reader.shape[0]
    for rows in reader.rows(iter([(0, 20), (13, height)])):
        cut = slice(rows.top, rows.bottom)
        for images, valid, (got, seen) in zip((first, *first.later), rows.valid, rows.frames["sar"], strict=True):
            frames, known = sensor_frames(*images.pictures["sar"], "sar", sensors)
            np.testing.assert_array_equal(seen, known[cut])
            np.testing.assert_array_equal(valid, known[cut])
            assert np.abs(got.astype(int) - frames[:, cut]).max() <= 1


def test_each_file_of_a_series_is_sampled_once(tmp_path, monkeypatch):
    """Decisions about a scene rest on a look at all of it, which no strip of it repeats."""
    pair = scenes.write(tmp_path, "pair", SIZE)
    dates = {name: [tmp_path / f"{name}_{day}.tif" for day in DAYS[:5]] for name in pair}
    for name, paths in dates.items():
        for path in paths:
            shutil.copy(pair[name], path)
    taken, decimated = [], sample._decimated

    def counted(dataset, *given):
        taken.append(dataset.name)
        return decimated(dataset, *given)

    monkeypatch.setattr(sample, "_decimated", counted)
    reader = SceneReader(dates, scenes.model().config.sensors)
    assert len(list(reader.rows(iter([(0, 20), (13, SIZE[0])])))) == 2
    assert sorted(taken) == sorted(str(path) for paths in dates.values() for path in paths)


def test_what_cannot_be_drawn(series, tmp_path):
    optical, out = series["optical"], tmp_path / "out"
    with pytest.raises(UserError, match="2 sar images but 6"):
        draw(series | {"sar": [series["sar"]] * 2}, out)
    with pytest.raises(UserError, match="list of sar images is empty"):
        draw(series | {"sar": []}, out)
    with pytest.raises(UserError, match="belongs to one image, but there are 6 dates"):
        draw(series, out, told=Told(scl=str(optical[0])))
    with pytest.raises(UserError, match="6 dates, and this model has no memory"):
        scenes.draw(series, out)
    assert not out.exists()
    with rasterio.open(optical[0]) as file:
        profile = {**file.profile, "count": 3, "dtype": "uint8", "photometric": "RGB", "nodata": None}
        with rasterio.open(tmp_path / "rgb.tif", "w", **profile) as picture:
            picture.write((file.read((4, 3, 2)) // 32).astype(np.uint8))
    bands = SensorConfig(optical_bands=("B04", "B03", "B02", "B11", "B08", "B04"))
    with pytest.raises(UserError, match=r"rgb\.tif\) are finished pictures and some have bands"):
        SceneReader({"optical": [optical[0], tmp_path / "rgb.tif"]}, bands)
