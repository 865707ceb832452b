"""Scores: intervals over groups, strict and official IoU, answers that mean the same."""

from __future__ import annotations

import numpy as np
import pytest

from earthmind_jax.evaluate.metrics import bootstrap, foreground_iou, official_iou, same_answer


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [(e := bootstrap(rng.normal(size=60), draws=300, seed=i)).low <= 0 <= e.high for i in range(200)]
    assert 0.89 <= np.mean(hits) <= 0.99


def test_values_of_one_scene_count_as_one():
    """Copies of a value add nothing: the interval is that of the scenes."""
    scenes = np.random.default_rng(1).normal(size=30)
    alone = bootstrap(scenes)
    copied = bootstrap(np.repeat(scenes, 5), np.repeat(np.arange(30), 5))
    assert copied.count == 150
    np.testing.assert_allclose((copied.mean, copied.low, copied.high), (alone.mean, alone.low, alone.high))
    careless = bootstrap(np.repeat(scenes, 5))
    assert careless.high - careless.low < 0.6 * (copied.high - copied.low)


def test_bootstrap_of_nothing():
    estimate = bootstrap([])
    assert estimate.count == 0
    assert np.isnan(estimate.mean)


def test_foreground_iou():
    target = np.zeros((4, 4), bool)
    assert foreground_iou(None, target) == 1.0
    target[:2] = True
    assert foreground_iou(None, target) == 0.0
    drawn = np.zeros((4, 4), bool)
    drawn[1:3] = True
    assert foreground_iou(drawn, target) == pytest.approx(4 / 12)
    valid = np.zeros((4, 4), bool)
    valid[1] = True
    assert foreground_iou(drawn, target, valid) == 1.0


def test_official_iou_averages_background_and_foreground():
    target, drawn = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    target[:2], drawn[1:3] = True, True
    assert official_iou(drawn, target) == pytest.approx((4 / 12 + 4 / 12) / 2)
    assert official_iou(None, target) is None


@pytest.mark.parametrize(
    ("predicted", "reference", "same"),
    [
        ("Yes.<|im_end|>", "yes", True),
        ("two", "Two.", True),
        ("B", "B. forest", True),
        ("B.", "B. forest", True),
        ("b. forest", "B. forest", True),
        ("A", "B. forest", False),
        ("forests", "forest", False),
    ],
)
def test_same_answer(predicted, reference, same):
    assert same_answer(predicted, reference) is same
