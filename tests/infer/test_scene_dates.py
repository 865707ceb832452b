"""Large scenes of several dates: the masks that small ones get, on the first date's grid, from file to file."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pyogrio
import pytest
import rasterio
import scenes
import support
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
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
    """Of dates that the language model sees, and of one that is followed; where each of them has data."""
    small = model().segment(scenes.TARGETS, **series)
    assert [mask.date for mask in small.masks] == [*NAMES, *NAMES]
    for name, mask in zip(small.names, small.masks, strict=True):
        percent = read(whole.out / f"{name}_probability.tif")
        print(name, mask.probability.std(), np.abs(percent / 100 - mask.probability)[mask.valid].max())
