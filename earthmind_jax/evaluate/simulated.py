"""Unseen simulated scenes as a benchmark: questions and masks in three sensor settings, clear and cloudy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from earthmind_jax.data.collate import SENSORS, Buckets
from earthmind_jax.data.records import Sample
from earthmind_jax.data.simulate import Scene, make_questions, make_scene, to_sample
from earthmind_jax.data.simulate.qa import QA
from earthmind_jax.evaluate.metrics import Estimate, bootstrap, foreground_iou, official_iou, same_answer
from earthmind_jax.infer.answer import answer
from earthmind_jax.infer.engine import Engine

SEGMENTATION, OBJECT = "referring_segmentation", "object_segmentation"
QUESTIONS = (
    "object_existence", "hallucination_detection", "scene_classification", "object_counting", "spatial_relationship",
)  # fmt: skip
TASKS = (SEGMENTATION, SEGMENTATION, SEGMENTATION, OBJECT, *QUESTIONS)
SETTINGS = ("optical", "sar", "both")
SKIES = ("clear", "cloudy")
BATCH, BUCKETS, NEW = 32, Buckets(tiles=(1,), text=(128, 512)), 16  # of :func:`score`
UNSEEN = 1_000_003  # evaluation scenes never share a seed with training scenes


@dataclass(frozen=True, eq=False)
class Item:
    """One question about one unseen scene; ``place`` names the scene."""

    place: str
    scene: Scene
    sample: Sample
    qa: QA
    sky: str


@dataclass(frozen=True)
class Score:
    """One answer's scores. ``iou`` (strict) and ``official`` are None unless the task has a mask; ``right`` is None for
    masks. ``sar_cloud`` / ``sar_clear`` are the mean weights of SAR over hidden and over visible tokens."""

    place: str
    task: str
    sky: str
    setting: str
    iou: float | None
    official: float | None
    right: bool | None
    sar_cloud: float | None
    sar_clear: float | None


def make_items(scenes: int, seed: int = 0, tasks: Sequence[str] = TASKS, skies: Sequence[str] = SKIES) -> list[Item]:
    """Questions about ``scenes`` unseen scenes of each sky; the seed gives the same items every time."""
    items = []
    for s, sky in enumerate(skies):
        for i in range(scenes):
            rng = np.random.default_rng((UNSEEN, seed, s, i))
            scene = make_scene(rng, cloud=sky)
            for k, qa in enumerate(make_questions(scene, rng, tasks, lettered=False)):
                items.append(Item(f"{sky}-{i}", scene, to_sample(scene, [qa], f"{sky}-{i}-{k}"), qa, sky))
    return items


def score(engine: Engine, items: Sequence[Item], setting: str) -> list[Score]:
    """Scores of every item, task by task, with the sensors of ``setting``: "optical", "sar" or "both"."""
    # Alike questions side by side: a batch of short answers ends early, and one without masks draws none.
    items = sorted(items, key=lambda item: item.qa.task)
    samples = [
        dataclasses.replace(
            item.sample,
            optical=None if setting == "sar" else item.sample.optical,
            sar=None if setting == "optical" else item.sample.sar,
        )
        for item in items
    ]
    replies = answer(engine, samples, batch_size=BATCH, max_new=NEW, buckets=BUCKETS, sensors=SENSORS)
    scores = []
    for item, reply in zip(items, replies, strict=True):
        target, iou, official, right = item.qa.mask, None, None, None
        if item.qa.task not in (SEGMENTATION, OBJECT):
            right = same_answer(reply.text, item.qa.answer)
        elif target is not None:
            drawn = reply.mask(target.shape)
            mask = None if drawn is None else drawn > 0.5
            iou, official = foreground_iou(mask, target), official_iou(mask, target)
        else:
            drawn = reply.mask(item.scene.shape)  # absent: there is nothing to draw, with or without saying so
            right = drawn is None or not (drawn > 0.5).any()
        cloud, clear = sar_weight(item.scene, reply.weights) if setting == "both" else (None, None)
        scores.append(Score(item.place, item.qa.task, item.sky, setting, iou, official, right, cloud, clear))
    return scores


def sar_weight(scene: Scene, weights: np.ndarray | None) -> tuple[float | None, float | None]:
    """Mean weight of SAR over hidden and over visible ground, from fusion weights [I N 2] of the last tile."""
    if weights is None:
        return None, None
    side = weights.shape[1]
    rows, columns = (np.arange(n) * side // n for n in scene.shape)
    sar = weights[-1, rows[:, None], columns[None, :], 1]
    both = scene.optical_valid & scene.sar_valid
    parts = [both & scene.cloud, both & ~scene.cloud & ~scene.shadow]
    cloud, clear = (float(sar[p].mean()) if p.any() else None for p in parts)
    return cloud, clear


@dataclass(frozen=True)
class Summary:
    """Means with intervals (over scenes) for one sky and setting: strict IoU of areas, of single objects, question
    accuracy, absent targets left empty (no mask, or one without pixels); and the official IoU of areas."""

    sky: str
    setting: str
    iou: Estimate
    accuracy: Estimate
    absent: Estimate
    objects: Estimate
    official: float


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """One row for each sky and setting that occurs."""
    rows = []
    for sky in dict.fromkeys(s.sky for s in scores):
        for setting in dict.fromkeys(s.setting for s in scores):
            chosen = [s for s in scores if s.sky == sky and s.setting == setting]
            areas = [s for s in chosen if s.task == SEGMENTATION]
            answers = [s for s in chosen if s.task not in (SEGMENTATION, OBJECT)]
            official = [s.official for s in areas if s.official is not None]
            rows.append(
                Summary(
                    sky,
                    setting,
                    _over_scenes([(s.place, s.iou) for s in areas]),
                    _over_scenes([(s.place, s.right) for s in answers]),
                    _over_scenes([(s.place, s.right) for s in areas]),
                    _over_scenes([(s.place, s.iou) for s in chosen if s.task == OBJECT]),
                    float(np.mean(official)) if official else float("nan"),
                )
            )
    return rows


def _over_scenes(pairs: Sequence[tuple[str, float | bool | None]]) -> Estimate:
    """Mean of the values that there are, with its interval over the scenes named beside them."""
    there = [(place, float(value)) for place, value in pairs if value is not None]
    return bootstrap([value for _, value in there], [place for place, _ in there])


def sar_share(scores: Sequence[Score]) -> tuple[float, float]:
    """Mean weight of SAR over tokens under cloud, and over visible ones."""
    cloud = [s.sar_cloud for s in scores if s.sar_cloud is not None]
    clear = [s.sar_clear for s in scores if s.sar_clear is not None]
    return float(np.mean(cloud)) if cloud else float("nan"), float(np.mean(clear)) if clear else float("nan")
