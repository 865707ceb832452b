"""Stacks of dates: [SEG] speaks to the first of them, and what it means there is followed through the rest."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import support

from earthmind_jax.errors import UserError
from earthmind_jax.infer.engine import Engine
from earthmind_jax.models import earthmind

PLAIN = support.model()
CONFIG = dataclasses.replace(
    PLAIN, grounding=dataclasses.replace(PLAIN.grounding, memory=True, memory_dim=8, memory_layers=1, memory_mlp=16)
)
DATES, OBJECTS = earthmind.PROMPTED_FRAMES + 2, 2
ATOL = 3e-4


@functools.cache
def engine():
    return Engine(CONFIG, support.params(CONFIG), support.tokenizer())


@functools.cache
def batch():
    return support.batch([support.sample(i, answer=None) for i in range(2)], sensors=support.BOTH, text=96)


@functools.cache
def states():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, OBJECTS, CONFIG.lm.width), np.float32))


@functools.cache
def stacks():
    """Both sensors' pictures of every date [2 F G G 3]; the second sample has no SAR on the last date but one."""
    rng, side = np.random.default_rng(1), CONFIG.grounding.image_size
    there = np.ones((2, DATES), bool)
    sar_there = there.copy()
    sar_there[1, -2] = False
    pictures = (rng.standard_normal((2, DATES, side, side, 3)).astype(np.float32) for _ in range(2))
    fields = ("ground_optical", "ground_sar", "ground_optical_valid", "ground_sar_valid")
    return dict(zip(fields, (*pictures, there, sar_there), strict=True))


def masks(count=DATES, engine=engine, **changes):
    fields = {name: x[:, :count] for name, x in (stacks() | changes).items()}
    return engine().masks(batch().replace(**fields), engine().encode(batch()), states())


@functools.cache
def followed():
    return masks()


def test_prompted_dates_are_images_of_their_own():
    logits, iou = followed()
    side = CONFIG.grounding.mask_size
    assert (logits.shape, iou.shape) == ((2, DATES, OBJECTS, side, side), (2, DATES, OBJECTS))
    for date in range(earthmind.PROMPTED_FRAMES):
        image = batch().replace(**{name: x[:, date] for name, x in stacks().items()})
        alone, score = engine().masks(image, engine().encode(batch()), states())
        np.testing.assert_allclose(logits[:, date], alone, atol=ATOL)
        np.testing.assert_allclose(iou[:, date], score, atol=ATOL)


def test_later_dates_remember_the_earlier_ones():
    """Another picture of the first date is felt on the last ones, and no later date on an earlier one."""
    logits, _ = followed()
    first = stacks()["ground_sar"].copy()
    first[:, 0] += 1
    changed, _ = masks(ground_sar=first)
    np.testing.assert_allclose(
        changed[:, 1 : earthmind.PROMPTED_FRAMES], logits[:, 1 : earthmind.PROMPTED_FRAMES], atol=ATOL
    )
    assert np.abs(changed - logits)[:, earthmind.PROMPTED_FRAMES :].max(axis=(0, 2, 3, 4)).min() > 1e-3
    shorter, _ = masks(DATES - 1)
    np.testing.assert_allclose(shorter, logits[:, : DATES - 1], atol=ATOL)


def test_a_sensor_may_be_missing_on_one_date():
    """Its pixels there do not count."""
    logits, _ = followed()
    hidden = stacks()["ground_sar"].copy()
    hidden[1, -2] = 7
    np.testing.assert_allclose(masks(ground_sar=hidden)[0], logits, atol=ATOL)


def test_a_model_without_memory_says_so():
    bare = Engine(PLAIN, support.params(PLAIN), support.tokenizer())
    assert masks(earthmind.PROMPTED_FRAMES, lambda: bare)[0].shape[1] == earthmind.PROMPTED_FRAMES
    with pytest.raises(UserError, match="2 of 7 frames have no prompt"):
        masks(DATES, lambda: bare)
