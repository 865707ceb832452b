"""Files of many sensors in the small: their numbers, and what a model gets of them."""

from __future__ import annotations

import dataclasses

import numpy as np
from affine import Affine

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.geo.told import Told

RNG = np.random.default_rng(11)
FINE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
SR = [f"SR_B{i}" for i in range(1, 8)]
TRUE_COLOUR = SensorConfig()
FALSE_COLOUR = dataclasses.replace(TRUE_COLOUR, optical_bands=("B11", "B08", "B04"))


def numbers(count, low=8000, high=20000, side=40, dtype="uint16"):
    return RNG.integers(low, high, (count, side, side)).astype(dtype)


def said(raster):
    return " ".join(raster.notes)


def frames_of(path, kind="optical", sensors=TRUE_COLOUR, told=None):
    images = load_images({kind: path}, sensors, told or Told())
    picture, valid = images.pictures[kind]
    return sensor_frames(picture, valid, kind, sensors)[0], images
