"""Tracking: frames in a scan are frames one by one, old frames are forgotten, objects and images keep to themselves."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind, functional
from earthmind_jax.models.sam2 import MaskHead
from earthmind_jax.models.sam2_memory import Memory, start_bank
from earthmind_jax.models.sam2_tracker import ABSENT, Tracker
from earthmind_jax.types import ImageFeatures

CONFIG = GroundingConfig(
    image_size=64, embed_dim=8, heads=1, stages=(1, 1, 2, 1), global_blocks=(3,), windows=(8, 4, 6, 3), pos_grid=(3, 4),
    width=32, decoder_heads=4, decoder_depth=1, decoder_mlp=48, iou_hidden=24, version="2.1",
    memory=True, memory_dim=16, memory_frames=3, memory_layers=2, memory_mlp=40, memory_pointers=4,
    memory_dtype="float32",
)  # fmt: skip
TRACKER = Tracker(CONFIG, Precision())
PROMPTED, FRAMES = 2, 7  # two memories and three pointers of frames that follow: both rings overflow


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def features(seed: int, *lead: int, size: tuple[int, int] = (4, 4)) -> ImageFeatures:
    h, w = size
    return ImageFeatures(
        embed=normal(seed, *lead, h, w, 32),
        high=(normal(seed + 1, *lead, 4 * h, 4 * w, 4), normal(seed + 2, *lead, 2 * h, 2 * w, 8)),
    )


@cache
def params():
    """Parameters of mask head and memory without special values; objects are seldom gone."""
    one = features(0, 1)
    bank = start_bank(CONFIG, jnp.zeros((1, 1, 1, 4, 4, 16)), jnp.zeros((1, 1, 1, 32)), jnp.ones(1, jnp.int32))

    def shapes(key):
        head = functional.init_module(MaskHead(CONFIG), key, one, jnp.zeros((1, 1, 32)))
        memory = functional.init_module(Memory(CONFIG), key, one.embed, bank)
        return functional.add_prefix(head, "grounding") | functional.add_prefix(memory, "grounding/memory")

    rng = np.random.default_rng(3)
    drawn = {
        path: rng.normal(size=x.shape).astype(np.float32)
        * (0.3 if x.ndim < 2 else 1.5 / np.sqrt(np.prod(x.shape[:-1])))
        + ("norm" in path and path.endswith("scale"))
        for path, x in jax.eval_shape(shapes, jax.random.key(0)).items()
    }
    drawn["grounding/decoder/object_head/fc3/bias"] += 4
    return {path: jnp.asarray(x) for path, x in drawn.items()}


@partial(jax.jit, static_argnums=0)
def run(tracker, params, frames, prompts, length=None):
    return tracker.track(params, frames, prompts, length=length)


def track(frames, prompts, tracker=TRACKER, length=None):
    return run(tracker, params(), frames, prompts, length)


@cache
def stack():
    """Frames [F 2 ...] and language prompts [P 2 3 D]."""
    return features(10, FRAMES, 2), {"language": normal(20, PROMPTED, 2, 3, 32)}


@cache
def tracked():
    return track(*stack())


def same(ours, theirs, atol=2e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), ours, theirs)


def test_shapes_and_dtypes():
    found = tracked()
    assert found.logits.shape == (2, FRAMES, 3, 16, 16)
    assert found.iou.shape == found.object_score.shape == (2, FRAMES, 3)
    assert found.candidates.shape == (2, FRAMES, 3, 4)
    assert found.pointer.shape == (2, FRAMES, 3, 32)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    assert bool((found.object_score > 0).mean() > 0.5)


def test_a_scan_is_a_loop():
    """Frame by frame with the functions that a stream of frames would call."""
    (frames, prompts), first = stack(), []
    memories = []

    @jax.jit
    def prompted(features, prompts):
        found = TRACKER.answer(params(), features, prompts)
        return found, TRACKER.remember(params(), features, found, prompted=True)

    for i in range(PROMPTED):
        found, memory = prompted(*jax.tree.map(lambda x, i=i: x[i], (frames, prompts)))
        first.append(found)
        memories.append(memory)
    pointers = jnp.stack([found.pointer for found in first], axis=2)
    bank = start_bank(CONFIG, jnp.stack(memories, axis=2), pointers, jnp.full(2, FRAMES))
    step = jax.jit(partial(TRACKER.step, params()))
    for i in range(PROMPTED, FRAMES):
        assert int(bank.frame) == i
        bank, found = step(bank, jax.tree.map(lambda x, i=i: x[i], frames))
        first.append(found)
    same(tracked(), jax.tree.map(lambda *x: jnp.stack(x, axis=1), *first))


def test_reading_the_rings_is_reading_every_frame():
    """The bank, rings and all, against memories gathered frame by frame from everything that ever was."""
    frames, config = 9, CONFIG
    memories, pointers = normal(1, 1, 2, frames, 4, 4, 16), normal(2, 1, 2, frames, 32)
    bank = start_bank(config, memories[:, :, :PROMPTED], pointers[:, :, :PROMPTED], jnp.array([frames]))
    embed, memory = normal(3, 1, 4, 4, 32), Memory(config)
    read = jax.jit(
        lambda bank: functional.apply_module(memory, params(), "grounding/memory", embed, bank, method="read")
    )
    for frame in range(PROMPTED, frames):
        recent = list(range(frame - 1, PROMPTED - 1, -1))
        # A bank with as many slots as there are frames to remember: none is empty, none has been overwritten.
        kept, known = recent[: config.memory_frames - 1], recent[: config.memory_pointers - 1]
        exact = bank.replace(
            frame=jnp.asarray(frame),
            recent=memories[:, :, np.array(kept, int)],
            recent_pointers=pointers[:, :, np.array(known, int)],
        )
        same(read(bank), read(exact))
        bank = bank.push(memories[:, :, frame], pointers[:, :, frame])


def test_what_left_the_rings_is_forgotten():
    """Frames before the rings change nothing any more, while the prompted ones always do."""
    bank = start_bank(CONFIG, normal(1, 1, 2, 1, 4, 4, 16), normal(2, 1, 2, 1, 32), jnp.array([20]))
    embed = normal(3, 1, 4, 4, 32)
    read = jax.jit(
        lambda bank: functional.apply_module(Memory(CONFIG), params(), "grounding/memory", embed, bank, method="read")
    )
    banks = []
    for first in (4, 5):  # two pasts that differ in the first frame that followed
        past = bank
        for i in (first, 6, 7, 8):
            past = past.push(normal(i, 1, 2, 4, 4, 16), normal(10 * i, 1, 2, 32))
        banks.append(past)
    same(read(banks[0]), read(banks[1]), atol=0)
    other = banks[0].replace(prompted=banks[0].prompted + 1)
    assert float(jnp.abs(read(other) - read(banks[0])).max()) > 1e-2


def test_objects_and_images_do_not_see_each_other():
    frames, prompts = stack()
    for m in (0, 2):
        alone = track(frames, jax.tree.map(lambda x, m=m: x[:, :, m : m + 1], prompts))
        same(jax.tree.map(lambda x, m=m: x[:, :, m : m + 1], tracked()), alone)
    alone = track(*jax.tree.map(lambda x: x[:, 1:], (frames, prompts)))
    same(jax.tree.map(lambda x: x[1:], tracked()), alone)


def test_padding_changes_nothing():
    """Objects, and frames at the end of a stack, that are there to fill a shape."""
    frames, prompts = stack()
    more = {"language": jnp.concatenate([prompts["language"], jnp.zeros((PROMPTED, 2, 2, 32))], axis=2)}
    longer = jax.tree.map(lambda x: jnp.concatenate([x, 9 * x[:2]]), frames)
    padded = track(longer, more, length=jnp.full(2, FRAMES))
    same(jax.tree.map(lambda x: x[:, :FRAMES, :3], padded), tracked())


def test_sam2_1_dates_pointers_by_the_length_of_the_stack():
    frames, prompts = stack()
    short = track(frames, prompts, length=jnp.full(2, 3))
    same(jax.tree.map(lambda x: x[:, :PROMPTED], short), jax.tree.map(lambda x: x[:, :PROMPTED], tracked()))
    assert float(jnp.abs(short.logits - tracked().logits).max()) > 1e-3
    older = Tracker(dataclasses.replace(CONFIG, version="2.0"), Precision())
    same(*(track(frames, prompts, older, jnp.full(2, length)) for length in (3, FRAMES)))


def test_frames_that_are_all_prompted_need_no_memory():
    frames, prompts = jax.tree.map(lambda x: x[:PROMPTED], stack())
    bare = Tracker(dataclasses.replace(CONFIG, memory=False), Precision(), empty_absent=False)
    found = track(frames, prompts, bare)
    assert found.pointer is None
    head = MaskHead(CONFIG)
    for i in range(PROMPTED):
        image, language = jax.tree.map(lambda x, i=i: x[i], (frames, prompts["language"]))
        alone = functional.apply_module(head, params(), "grounding", image, language)
        same((found.logits[:, i], found.iou[:, i]), (alone.logits, alone.iou))


def test_rectangles():
    frames = features(30, 4, 1, size=(2, 5))
    found = track(frames, {"boxes": jnp.array([[[[3.0, 4, 60, 20]]]])})
    assert found.logits.shape == (1, 4, 1, 8, 20)
    assert bool(jnp.isfinite(found.logits).all())


def test_absent_objects_are_not_drawn_unless_asked():
    frames, prompts = stack()
    gone = dict(params())
    gone["grounding/decoder/object_head/fc3/bias"] = gone["grounding/decoder/object_head/fc3/bias"] - 60
    found = run(TRACKER, gone, frames, prompts)
    assert bool((found.object_score < 0).all())
    assert bool((found.logits == ABSENT).all())
    assert float(jnp.ptp(found.pointer, axis=(0, 1, 2)).max()) == 0  # one pointer for all that is gone
    drawn = run(dataclasses.replace(TRACKER, empty_absent=False), gone, frames, prompts)
    assert float(jnp.abs(drawn.logits).max()) < -ABSENT
    assert float(drawn.logits.std()) > 0


def test_a_mask_is_followed_as_it_is():
    frames = features(10, 3, 1)
    masks = np.zeros((1, 1, 2, 64, 64), np.float32)
    masks[0, 0, 0, 16:48, 8:40] = 1  # the second object is not there
    found = track(frames, {"masks": jnp.asarray(masks)})
    np.testing.assert_array_equal(found.object_score[0, 0], [10, -10])
    np.testing.assert_array_equal(found.logits[0, 0, 0] > 0, masks[0, 0, 0, ::4, ::4] > 0)
    np.testing.assert_allclose(found.logits[0, 0, 1], -10, atol=1e-5)
    np.testing.assert_array_equal(found.pointer[0, 0, 1], params()["grounding/memory/no_pointer"])


def drift(ours, theirs) -> float:
    """Root mean square difference, relative to the spread of ``theirs``."""
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    return float(np.sqrt(np.square(ours - theirs).mean()) / theirs.std())


def test_memories_kept_in_bfloat16_stay_close():
    """Five frames on, each drawn from the rounded memories of the ones before."""
    frames, prompts = stack()
    rough = track(frames, prompts, Tracker(dataclasses.replace(CONFIG, memory_dtype="bfloat16"), Precision()))
    assert 0 < drift(rough.logits, tracked().logits) < 0.02
    assert drift(rough.pointer, tracked().pointer) < 0.02


def past_and_present(precision, params):
    """A memory of a mask, and a frame that reads it."""
    memory, embed, logits = Memory(CONFIG, precision), normal(1, 1, 4, 4, 32), normal(2, 1, 2, 16, 16)

    def call(*args, **kwargs):
        return functional.apply_module(memory, params, "grounding/memory", *args, **kwargs)

    score = jnp.array([[1.0, -1.0]])
    first = call(embed, logits, score, prompted=True, method="remember")
    pointer = call(normal(3, 1, 2, 32), score, method="pointer")
    bank = start_bank(CONFIG, first[:, :, None], pointer[:, :, None], jnp.array([9])).push(first, pointer)
    return first, pointer, call(normal(4, 1, 4, 4, 32), bank, method="read")


def test_bfloat16_stays_close():
    exact = jax.jit(partial(past_and_present, Precision()))(params())
    rough = jax.jit(partial(past_and_present, Precision(compute="bfloat16")))(params())
    assert rough[2].dtype == jnp.bfloat16
    for ours, theirs in zip(rough, exact, strict=True):
        assert 0 < drift(ours, theirs) < 0.05


def test_gradients_reach_the_memory():
    @jax.jit
    def gradient(params):
        return jax.grad(lambda params: (past_and_present(Precision(), params)[2] ** 2).mean())(params)

    memory = {path: x for path, x in params().items() if path.startswith("grounding/memory/")}
    grads = gradient(memory)
    assert all(bool(jnp.isfinite(x).all()) for x in grads.values())
    still = {path for path, x in grads.items() if not float(jnp.abs(x).max())}
    # What nothing reads, and what only a mask prompt reads; a key's bias moves all of its query's scores alike.
    unused = ("no_mem_position", "mask_downsample/kernel", "mask_downsample/bias")
    assert {f"grounding/memory/{path}" for path in unused} <= still
    assert all(path.endswith("/bias") for path in still - {f"grounding/memory/{path}" for path in unused})


def test_the_program_does_not_grow_with_the_frames():
    def lines(count):
        frames, prompts = features(0, count, 1), {"language": normal(1, 1, 1, 1, 32)}
        return len(run.lower(TRACKER, params(), frames, prompts).as_text().splitlines())

    assert lines(4) == lines(40)


def test_every_parameter_has_axes():
    config = dataclasses.replace(support.model(), grounding=CONFIG)
    axes, shapes = earthmind.param_axes(config), earthmind.shapes(config)
    memory = {path for path in shapes if path.startswith("grounding/memory/")}
    assert memory == {path for path in params() if path.startswith("grounding/memory/")}
    assert all(len(axes[path]) == len(shapes[path].shape) for path in memory)
    without = dataclasses.replace(config, grounding=dataclasses.replace(CONFIG, memory=False))
    assert set(shapes) - set(earthmind.shapes(without)) == memory


@pytest.mark.parametrize(
    ("count", "prompts", "change", "message"),
    [
        (1, {"language": jnp.zeros((2, 1, 1, 32))}, {}, "prompts for 2 frames but 1 frames"),
        (3, {"language": jnp.zeros((2, 1, 1, 32))}, {"memory": False}, "1 of 3 frames have no prompt.*with memory"),
        (3, {"masks": jnp.zeros((1, 1, 1, 64, 60))}, {}, r"resize them to \(64, 64\)"),
        (1, {"masks": jnp.zeros((1, 1, 1, 64, 64))}, {"memory": False}, "only be followed"),
        (3, {"masks": jnp.zeros((1, 1, 1, 64, 64)), "boxes": jnp.zeros((1, 1, 1, 4))}, {}, "leave out boxes"),
        (3, {}, {}, "prompts need arrays"),
        (3, {"boxes": jnp.zeros((1, 1, 1, 4)), "language": jnp.zeros((2, 1, 1, 32))}, {}, "one number of frames"),
    ],
)
def test_bad_requests_are_explained(count, prompts, change, message):
    tracker = Tracker(dataclasses.replace(CONFIG, **change), Precision())
    with pytest.raises(UserError, match=message):
        tracker.track(params(), features(0, count, 1), prompts)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"memory_dim": 24}, "memory_dim"), ({"memory_frames": 1}, "memory_frames"), ({"memory_pointers": 1}, "pointers"),
     ({"memory_dtype": "int8"}, "memory_dtype")],
)  # fmt: skip
def test_bad_sizes_are_explained(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_features_are_made_within_the_scan():
    """``encode`` sees one frame at a time, and what it makes is what would have been given."""
    frames, prompts = stack()
    seen = []

    def encode(half):
        seen.append(half.embed.shape)
        return jax.tree.map(lambda x: 2 * x, half)

    halves = jax.tree.map(lambda x: x / 2, frames)
    ours = jax.jit(lambda halves: TRACKER.track(params(), halves, prompts, encode=encode))(halves)
    assert set(seen) == {(2, 4, 4, 32)}
    same(ours, tracked())
