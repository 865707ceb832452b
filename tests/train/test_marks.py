"""Clicks and boxes made from target masks, and a mask decoder that learns to be pointed with them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from scipy import ndimage

from earthmind_jax.config import LossConfig
from earthmind_jax.data.pointed import training_prompts
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.models import earthmind
from earthmind_jax.train.marks import pointing, sample_marks
from earthmind_jax.train.state import RUN_ONCE
from earthmind_jax.train.step import loss_terms

CONFIG = support.model("average")
RUN = support.run_config(CONFIG)


@functools.cache
def batch():
    """Four pictures of a bright square somewhere on the left and another on the right; only one of them is meant."""
    rng, samples = np.random.default_rng(0), []
    for i in range(4):
        picture, mask = np.full((32, 32, 3), 60, np.uint8), np.zeros((2, 32, 32), bool)
        for side in range(2):
            row, column = rng.integers(1, 22), 16 * side + rng.integers(1, 6)
            picture[row : row + 9, column : column + 9] = 220
            mask[side, row : row + 9, column : column + 9] = True
        turn = Turn("Show the ships near the harbour, all of them.", "Sure, [SEG] and [SEG].", mask)
        samples.append(Sample(f"{i}", (turn,), optical=picture))
    return jax.tree.map(jnp.asarray, support.batch(samples, CONFIG))


def test_marks_lie_where_their_masks_are():
    size = CONFIG.grounding.image_size
    kinds = set()
    for seed in range(6):
        marks, targets, _ = jax.tree.map(np.asarray, sample_marks(jax.random.key(seed), batch(), RUN))
        np.testing.assert_array_equal(targets, np.asarray(batch().masks) > 0.5)
        for b, m in np.ndindex(4, 2):
            mask = np.asarray(batch().masks[b, m]) > 0.5
            points, labels, valid = marks.points[b, m], marks.labels[b, m], marks.valid[b, m]
            kinds.add((labels[0], labels[1] if valid[1] else None))
            if labels[0] == 2:
                rows, columns = np.nonzero(mask)
                side = np.array([np.ptp(columns) + 1, np.ptp(rows) + 1])
                corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
                assert (np.abs(points / 4 - corners) < 5 * 0.1 * side).all()
                continue
            cell = (points * mask.shape[0] / size).astype(int)
            assert mask[cell[0, 1], cell[0, 0]]
            assert not valid[1] or mask[cell[1, 1], cell[1, 0]] == labels[1]
    assert kinds == {(1, None), (1, 0), (1, 1), (2, 3)}


def test_an_object_that_fills_the_image_has_nothing_beside_it():
    full = batch().replace(masks=jnp.ones_like(batch().masks))
    marks, _, _ = sample_marks(jax.random.key(0), full, RUN)
    assert not np.asarray(marks.valid[..., 1] & (marks.labels[..., 1] == 0)).any()


def spiral(size):
    """A band one pixel wide that winds inwards, with a gap of one pixel, and lone pixels that touch it by a corner."""
    made, low, high = np.zeros((size, size), bool), 0, size - 1
    while high - low > 4:
        made[low, low : high + 1] = made[low : high + 1, high] = made[high, low + 2 : high + 1] = True
        made[low + 2 : high + 1, low + 2] = True
        low, high = low + 2, high - 2
    made[::7, ::5] = True
    return made


def test_a_mark_means_the_connected_part_it_lies_in():
    """Clicks and boxes of masks in many parts are those of one part, which is scipy's; all of it where that is asked
    for."""
    noise = np.random.default_rng(2).random((4, 2, 16, 16)) < 0.45
    noise[0, 0], noise[0, 1] = spiral(16), 0
    many = batch().replace(masks=jnp.asarray(noise, jnp.float32))
    whole = dataclasses.replace(RUN, loss=LossConfig(mark_parts=False))
    draw = jax.jit(lambda key: (sample_marks(key, many, RUN), sample_marks(key, many, whole)))
    scale = CONFIG.grounding.image_size / 16
    for seed in range(5):
        (marks, parts, _), (_, all_of_it, _) = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        np.testing.assert_array_equal(all_of_it, noise)
        assert not parts[0, 1].any()
        for b, m in zip(*np.nonzero(noise.any((2, 3))), strict=True):
            labels, _ = ndimage.label(noise[b, m], np.ones((3, 3)))
            (number,) = np.unique(labels[parts[b, m]])
            np.testing.assert_array_equal(parts[b, m], labels == number)
            if marks.labels[b, m, 0] == 1:
                assert parts[b, m][tuple((marks.points[b, m, 0, ::-1] / scale).astype(int))]


def test_an_image_of_few_masks_gets_further_marks_of_them():
    """Each mask that is not empty has its turn before one is pointed at again, elsewhere; records' marks go along."""
    more = dataclasses.replace(RUN, loss=LossConfig(marks=3))
    own = steered().replace(masks=batch().masks.at[2, 0].set(0).at[3].set(0))
    marks, targets, of = jax.tree.map(np.asarray, pointing(jax.random.key(1), own, more))
    assert marks.points.shape == (4, 3, 4, 2)
    assert set(of[0]) == set(of[1]) == {0, 1}
    assert of[2].tolist() == [1, 1, 1]
    assert len({tuple(point) for point in marks.points[2, :, 0]}) == 3
    np.testing.assert_array_equal(targets, np.take_along_axis(np.asarray(own.masks), of[..., None, None], 1) > 0.5)
    for b, m in ((0, 1), (1, 0)):
        for slot in np.flatnonzero(of[b] == m):
            np.testing.assert_array_equal(marks.points[b, slot], own.marks.points[b, m])
            assert marks.masked[b, slot] == own.marks.masked[b, m]
    with pytest.raises(UserError, match="marks"):
        LossConfig(marks=-1)


def test_marks_can_mean_their_own_shape():
    shapes = dataclasses.replace(RUN, loss=LossConfig(mark_shapes=1.0))
    size, sizes = CONFIG.grounding.image_size, set()
    for seed in range(6):
        marks, targets, _ = jax.tree.map(np.asarray, sample_marks(jax.random.key(seed), batch(), shapes))
        rows, columns = (np.indices(targets.shape[2:]) + 0.5) * size / targets.shape[-1]
        for b, m in np.ndindex(4, 2):
            (x, y), (right, low) = marks.points[b, m]
            if marks.labels[b, m, 0] == 2:
                sizes.add(targets[b, m].sum())
                inside = (columns > x) & (columns < right) & (rows > y) & (rows < low)
                assert (inside & targets[b, m]).sum() > 0.4 * (inside | targets[b, m]).sum()  # corners are noisy
            else:
                disc = (columns - x) ** 2 + (rows - y) ** 2 < (size / 8) ** 2
                np.testing.assert_array_equal(targets[b, m], disc)
    assert len(sizes) > 3
    with pytest.raises(UserError, match="mark_shapes"):
        LossConfig(mark_shapes=1.5)


def steered():
    """The batch of :func:`batch` where the second mask of the first picture has clicks of its own, the first of the
    second a mask."""
    clicks = Mark("a", (32, 32), np.array([[20.0, 5.0], [25.0, 9.0], [3.0, 3.0]]), np.array([1, 1, 0], np.int32))
    drawn = np.zeros((32, 32), bool)
    drawn[4:20, 8:16] = True
    area = Mark("b", (32, 32), np.zeros((0, 2)), np.zeros(0, np.int32), mask=drawn)
    marks = training_prompts([(None, clicks), (area,), (), ()], CONFIG.grounding, 2, 4)
    return batch().replace(marks=jax.tree.map(jnp.asarray, marks))


def test_marks_of_a_record_stand_in_for_drawn_ones():
    key, own = jax.random.key(3), steered()
    parts = own.replace(masks=jnp.asarray(np.random.default_rng(3).random((4, 2, 16, 16)) < 0.5, jnp.float32))
    (made, meant, _), (drawn, drawn_parts, _) = pointing(key, parts, RUN), sample_marks(key, parts, RUN)
    np.testing.assert_array_equal(pointing(key, parts.replace(marks=None), RUN).prompts.points, drawn.points)
    for b, m in np.ndindex(4, 2):
        own_mark = (b, m) in ((0, 1), (1, 0))
        np.testing.assert_array_equal(meant[b, m], parts.masks[b, m] > 0.5 if own_mark else drawn_parts[b, m])
    for b, m in np.ndindex(4, 2):
        if (b, m) in ((0, 1), (1, 0)):
            for name in ("points", "labels", "valid"):
                np.testing.assert_array_equal(getattr(made, name)[b, m], getattr(own.marks, name)[b, m])
            continue
        np.testing.assert_array_equal(made.points[b, m, :2], drawn.points[b, m])
        assert made.labels[b, m].tolist() == [*drawn.labels[b, m].tolist(), -1, -1]
        assert made.valid[b, m].tolist() == [*drawn.valid[b, m].tolist(), False, False]
    assert made.masked.tolist() == [[False, False], [True, False], [False, False], [False, False]]
    stacked = own.replace(masks=jnp.stack([own.masks] * 3, 1), mask_valid=jnp.stack([own.mask_valid] * 3, 1))
    each, _, _ = pointing(key, stacked, RUN)
    assert each.points.shape == (12, 2, 4, 2)
    for date in range(3):
        np.testing.assert_array_equal(each.points[date, 1], own.marks.points[0, 1])
        np.testing.assert_array_equal(each.points[3 + date, 0], own.marks.points[1, 0])


def test_training_draws_what_inference_draws():
    """Masks of a record's marks beside its words are those of :func:`earthmind.ground` with both; masks without marks,
    and those of phrases, are as they are without any."""
    params, own = {k: jnp.asarray(v) for k, v in support.params(CONFIG).items()}, steered()
    quick = functools.partial(jax.jit, compiler_options=RUN_ONCE)
    out = quick(lambda b: earthmind.forward(CONFIG, params, b, phrases=True))
    plain, made = out(batch().replace(marks=jax.tree.map(jnp.asarray, nothing()))), out(own)

    @quick
    def asked(b, prompts, weights, marks):
        sensors = (b.ground_optical, b.ground_sar, b.ground_optical_valid, b.ground_sar_valid)
        features = earthmind.image_features(CONFIG, params, *sensors, weights)
        return earthmind.ground(CONFIG, params, features, prompts, marks).logits

    weights = earthmind.grounding_weights(made.fused)
    wanted = asked(own, made.prompts[0], weights, own.marks)
    words = asked(own, made.prompts[0], weights, None)
    np.testing.assert_allclose(made.masks.logits, wanted, atol=1e-4)
    np.testing.assert_allclose(plain.masks.logits, words, atol=1e-4)
    np.testing.assert_allclose(made.phrase_masks.logits, plain.phrase_masks.logits, atol=1e-4)
    change = np.abs(np.asarray(made.masks.logits - plain.masks.logits)).max((-1, -2))
    assert (change > 1e-2).tolist() == [[False, True], [True, False], [False, False], [False, False]]


def nothing():
    return training_prompts([()] * 4, CONFIG.grounding, 2, 4)


def test_the_decoder_learns_from_them():
    """The loss falls, every part of the decoder that marks go through moves, and the mark decides what is drawn."""
    loss = LossConfig(points=0, text=0.0, seg=0.0, mark=1.0, marks=3, mask_contrast=1.0)
    config = dataclasses.replace(support.run_config(CONFIG), loss=loss)
    paths = [path for path in support.params(CONFIG) if path.startswith("grounding/")]
    new = jax.jit(functools.partial(earthmind.init, CONFIG, only=paths))(jax.random.key(0))
    everything = {k: jnp.asarray(v) for k, v in support.params(CONFIG).items()} | new
    learned = {k: v for k, v in new.items() if k.startswith(("grounding/decoder/", "grounding/prompt/points"))}
    optimiser = optax.adam(1e-3)

    @jax.jit
    def step(learned, state, key):
        def total(learned):
            return loss_terms(config, everything | learned, batch(), key)

        (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(learned)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(learned, updates), state, metrics

    state, found = optimiser.init(learned), []
    for i in range(25):
        learned, state, metrics = step(learned, state, jax.random.key(i))
        found.append({name: float(value) for name, value in metrics.items()})
    assert set(found[0]) == {"mark_bce", "mark_dice", "mark_contrast", "loss"}
    assert found[-1]["loss"] < 0.75 * found[0]["loss"]
    moved = {k for k, v in learned.items() if np.abs(np.asarray(v - new[k])).max() > 0}
    assert {k for k in learned if "/transformer/" in k and k.endswith("kernel")} | {"grounding/prompt/points"} <= moved
