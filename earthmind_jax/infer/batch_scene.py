"""What the questions of a batch about one scene share: its images, their tokens and the mask decoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.collate import stack
from earthmind_jax.data.encode import Example
from earthmind_jax.data.read import Images
from earthmind_jax.infer.compiled import Pyramids, Seen
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import QUESTIONS
from earthmind_jax.types import Batch


@dataclass(eq=False)
class Scene:
    """What all questions about one image share.

    Attributes:
      example: the image as tiles; once they are encoded, without them.
      batch: a batch of one, without pixels.
      alone: nothing is shared but the reading.
      pyramids: made when the first mask is drawn; until then ``grounds`` holds the pixels for it.
    """

    images: Images | None
    example: Example | None
    batch: Batch | None = None
    seen: Seen | None = None
    grounds: Batch | None = None
    pyramids: Pyramids | None = None
    alone: bool = False


def see(model: EarthMind, scene: Scene, buckets: Buckets) -> None:
    """Encode the images of a scene."""
    assert scene.example is not None
    batch = stack([scene.example], model.config, QUESTIONS, buckets, sensors=model.sensors)
    scene.seen = model.engine.see(batch)
    scene.grounds = batch.replace(optical=None, sar=None)
    scene.batch = scene.grounds.replace(ground_optical=None, ground_sar=None)
    scene.example = replace(scene.example, pixels={}, valid={}, ground={})


def pyramids_of(model: EarthMind, scene: Scene) -> Pyramids:
    """The mask decoder's features of a scene, made once."""
    if scene.pyramids is None:
        assert scene.grounds is not None
        scene.pyramids, scene.grounds = model.engine.pyramids(scene.grounds), None
    return scene.pyramids


def joined(trees: Sequence[Any]) -> Any:
    """The rows of all, None where the first has none."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows) if len(rows) > 1 else rows[0], *trees)


def beside(scenes: Sequence[Pyramids]) -> Pyramids:
    """Features of all scenes, scene by scene."""
    each, presence = [features for features, _ in scenes], [there for _, there in scenes]
    return joined(each), None if presence[0] is None else joined(presence)
