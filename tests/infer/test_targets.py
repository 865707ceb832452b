"""Several targets on images that are drawn window by window, or have several dates: as one by one, but seen once."""

from __future__ import annotations

import numpy as np
import pytest
import scenes
import support

from earthmind_jax.infer import drawing, scene_model
from earthmind_jax.models.earthmind import PROMPTED_FRAMES

TARGETS = ["river", "lake", "ships near the harbour"]
RNG = np.random.default_rng(0)


def picture(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return scenes.write(tmp_path_factory.mktemp("pair"), "pair", (70, 90), nodata=0.2)


def one_by_one(answer, **images):
    """The answer to several targets is that to each alone; its windows are of one compiled size."""
    dates = len(answer.masks) // len(TARGETS)
    for i, target in enumerate(TARGETS):
        alone = scenes.model().segment(target, **images)
        assert answer.text.splitlines()[i] == f"{target}: {alone.text}"
        for mask, expected in zip(answer.masks[i * dates : (i + 1) * dates], alone.masks, strict=True):
            assert (mask.name, mask.date, mask.transform, mask.crs) == (
                target, expected.date, expected.transform, expected.crs,
            )  # fmt: skip
            np.testing.assert_array_equal(mask.valid, expected.valid)
            np.testing.assert_allclose(mask.probability, expected.probability, atol=2e-5)
    assert np.ptp(answer.masks[0].probability) > 0.01
    np.testing.assert_allclose(answer.fusion, scenes.model().segment(TARGETS[0], **images).fusion, atol=2e-5)


@pytest.mark.parametrize("sensors", [("optical",), support.BOTH])
def test_windows_are_seen_once_for_all_targets(pair, sensors, monkeypatch):
    images = {name: pair[name] for name in sensors}
    seen = []
    see = scene_model._see
    monkeypatch.setattr(scene_model, "_see", lambda *given: (seen.append(len(given[3][sensors[0]])), see(*given))[1])
    answer = scenes.model().segment(TARGETS, **images)
    monkeypatch.undo()
    # 4 x 5 windows of 32 pixels that share half, in batches of 16 rows for 4 questions (3 and one for the size).
    assert seen == [4] * 5
    one_by_one(answer, **images)


def test_targets_whose_masks_do_not_fit_at_once_are_drawn_in_turns(pair, monkeypatch):
    whole = scenes.model().segment(TARGETS, **pair)
    monkeypatch.setattr(drawing, "CANVAS", 2 * 70 * 90)
    turns = scenes.model().segment(TARGETS, **pair)
    assert turns.text == whole.text
    for mask, expected in zip(turns.masks, whole.masks, strict=True):
        np.testing.assert_allclose(mask.probability, expected.probability, atol=2e-5)
    np.testing.assert_allclose(turns.fusion, whole.fusion, atol=2e-5)


@pytest.mark.parametrize("shape", [(30, 26), (50, 40)])
def test_several_dates(shape):
    images = {"optical": [picture(*shape) for _ in range(PROMPTED_FRAMES - 2)], "sar": picture(*shape)}
    one_by_one(scenes.model().segment(TARGETS, **images), **images)


def test_pictures_of_different_sizes():
    images = {"optical": picture(48, 80), "sar": picture(24, 40)}
    one_by_one(scenes.model().segment(TARGETS, **images), **images)
