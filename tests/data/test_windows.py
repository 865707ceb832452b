"""Batches of like size: every process finds the same plan, and little of a batch is padding."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle

import jax
import numpy as np
import pytest
import support

from earthmind_jax.config import DataConfig
from earthmind_jax.data.buckets import TRAINING, TRAINING_WINDOW, Buckets, Shape, bucketed
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.layout import measure
from earthmind_jax.data.pipeline import Lazy, generator, pipeline
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tiles import closest_grid, tile_count
from earthmind_jax.data.windows import Windows, padding_share
from earthmind_jax.errors import UserError

CFG = dataclasses.replace(
    support.model(grounding=None), sensors=dataclasses.replace(support.model().sensors, max_tiles=4)
)
DATA = DataConfig(
    batch_size=4, text_length=512, text_buckets=(96, 160, 256, 384, 512), tile_buckets=(1, 3, 5), window=4, turns=3,
    drop_optical=0.3, drop_sar=0.3,
)  # fmt: skip


def make(index: int) -> Sample:
    """Text alone, one sensor or a pair of one to five tiles, one to five turns, short answers and long ones."""
    rng = np.random.default_rng(index)
    shape = ((32, 32), (32, 32), (32, 64), (64, 64), (90, 32))[rng.integers(5)]
    images = {name: rng.integers(0, 256, (*shape, 3), np.uint8) for name in ("optical", "sar") if rng.random() < 0.8}
    lake = "Yes, there is a lake. "
    turns = tuple(
        Turn(f"Is there a lake in image {index}?", lake * int(rng.integers(1, 6))) for _ in range(rng.integers(1, 6))
    )
    return Sample(str(index), turns, **images)


SOURCE = [make(i) for i in range(50)]


def stream(data: DataConfig = DATA, source=SOURCE, **options):
    return pipeline(source, CFG, data, support.tokenizer(), **{"seed": 3, **options})


def equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def joined(parts):
    """The global batch of which the processes hold neighbouring samples."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@functools.cache
def batches(count: int = 24):
    whole = stream()
    return [next(whole) for _ in range(count)]


def test_measured_is_what_is_encoded():
    for index, sample in enumerate(SOURCE):
        options = {"sensors": ("optical", "sar")}
        buckets = Buckets(tiles=(5,), text=(512,))
        found = measure(sample, CFG, DATA, support.tokenizer(), buckets, rng=generator(0, index), **options)
        example = encode_sample(sample, CFG, DATA, support.tokenizer(), buckets, rng=generator(0, index), **options)
        assert found.shape == example.shape
        np.testing.assert_array_equal(found.prompt.tokens, example.prompt.tokens)


def test_batches_are_of_like_size_and_in_another_order():
    shapes = [(b.optical.shape[1], b.tokens.shape[1]) for b in batches()]
    assert len(set(shapes)) > 3
    assert all(tiles in DATA.tile_buckets and text in DATA.text_buckets for tiles, text in shapes)
    for batch in batches():
        smaller = [size for size in DATA.text_buckets if size < batch.tokens.shape[1]]
        assert not smaller or batch.lengths.max() > smaller[-1]
    share = {}
    for window in (1, 12):
        some = stream(dataclasses.replace(DATA, window=window))
        made = [next(some) for _ in range(24)]
        share[window] = 1 - sum(b.lengths.sum() for b in made) / sum(b.tokens.size for b in made)
    assert share[12] < 0.7 * share[1]
    places = [shapes[i : i + 4] for i in range(0, 24, 4)]
    assert any(place != sorted(place) for place in places), "batches of a window come in an order of their own"


def test_a_window_holds_the_same_samples_as_the_plain_stream():
    plain = stream(dataclasses.replace(DATA, window=1, text_buckets=(), tile_buckets=(5,)))
    seen = [sorted(row[:n].tolist() for b in part for row, n in zip(b.tokens, b.lengths, strict=True))
            for part in (batches()[:4], [next(plain) for _ in range(4)])]  # fmt: skip
    assert seen[0] == seen[1], "dropout and turns belong to the position in the stream"


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_agree(window, processes):
    data = dataclasses.replace(DATA, window=window)
    whole = stream(data)
    parts = [stream(data, process=p, processes=processes) for p in range(processes)]
    for _ in range(9):
        assert equal(next(whole), joined([next(part) for part in parts]))


def test_resuming_anywhere_and_with_other_processes():
    for start in (1, 6, 11):
        state = json.loads(json.dumps({"batches": start}))
        parts = [stream(process=p, processes=2) for p in range(2)]
        for part in parts:
            part.set_state(state)
        for wanted in batches()[start : start + 3]:
            assert equal(wanted, joined([next(part) for part in parts]))


def test_worker_processes_give_the_same_batches():
    working = stream(dataclasses.replace(DATA, workers=2))
    working.set_state({"batches": 3})
    for wanted in batches()[3:7]:
        assert equal(wanted, next(working))


def test_finite_streams_and_evaluation_keep_to_their_order():
    finite = list(stream(epochs=1))
    assert len(finite) == 50 // 4
    ordered = list(stream(shuffle=False, augment=False, epochs=1))
    asked = [support.tokenizer().decode(b.tokens[0]) for b in ordered]
    assert [f"image {4 * i}?" in text for i, text in enumerate(asked)] == [True] * 12
    every = [list(stream(epochs=1, process=p, processes=2)) for p in range(2)]
    assert len(every[0]) == len(every[1]) == 12


def test_one_program_for_each_bucket_used():
    step = jax.jit(lambda batch: batch.tokens.sum() + batch.optical.sum())
    for batch in batches():
        step(batch)
    assert step._cache_size() == len({(b.optical.shape[1], b.tokens.shape[1]) for b in batches()})


def drawn(position: int) -> Shape:
    """A mixture such as the published one: text alone, small pictures, and grids of up to 12 tiles and a thumbnail;
    short answers, and long captions now and then."""
    rng = np.random.default_rng(position)
    kind, count = rng.random(), 1
    if kind > 0.55:
        width, height = (int(x) for x in rng.integers(300, 2000, 2))
        count = tile_count(closest_grid((width, height)), True)
    count = 0 if kind < 0.05 else count
    lengths = np.where(rng.random(6) < 0.7, rng.integers(12, 45, 6), rng.integers(60, 350, 6))
    return Shape(count, min(4096, 256 * count + 2 + int(lengths[: rng.integers(1, 7)].sum())))


@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_realistic_mixture_is_padded_by_less_than_a_fifth(batch_size):
    samples = [drawn(i) for i in range(3 * TRAINING_WINDOW * batch_size)]
    assert {0, 1, 13} <= {s.tiles for s in samples}
    data = bucketed(DataConfig(batch_size=batch_size, text_length=4096))
    assert data.text_buckets[-1] == 4096
    buckets = Buckets(tiles=data.tile_buckets, text=data.text_buckets)
    assert padding_share(samples, buckets, batch_size, data.window) <= 0.2
    assert padding_share(samples, Buckets(tiles=TRAINING.tiles, text=(4096,)), batch_size, 1) > 0.6


def test_the_share_is_that_of_the_batches():
    few = [Shape(1, 10), Shape(1, 30), Shape(1, 40), Shape(1, 16)]
    assert padding_share(few, Buckets(tiles=(1,), text=(16, 40)), 2, 2) == pytest.approx(1 - 96 / 112)
    batch = batches()[0]
    inside = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    assert (batch.tokens[~inside] == CFG.tokens.pad).all()
    assert batch.padding == pytest.approx((~inside).mean())


def test_errors_reach_the_reader_and_plans_travel_to_workers():
    def broken(position: int) -> Shape:
        raise UserError(f"position {position} is broken")

    plans = Windows(broken, Buckets(), 2, 2, 10, 0)
    for _ in range(2):
        with pytest.raises(UserError, match="position 0 is broken"):
            plans[0]
    good = Windows(drawn, Buckets(), 4, 8, 20, 1)
    again = pickle.loads(pickle.dumps(good))
    assert [again[i] for i in (19, 3, 11)] == [good[i] for i in (19, 3, 11)]


def test_files_that_change_are_noticed():
    seen = set()

    def changing(index: int) -> Sample:
        """Small when it is measured, larger when it is read."""
        first = index not in seen
        seen.add(index)
        return make(0) if first else make(3)

    data = dataclasses.replace(DATA, batch_size=1, window=2)
    with pytest.raises(UserError, match=r"measured as .* but read as"):
        list(stream(data, Lazy(changing, 8), epochs=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_buckets": (160, 96, 512)}, "increasing"),
        ({"tile_buckets": (0, 4)}, "increasing"),
        ({"window": 0}, "at least 1"),
        ({"workers": -1}, "must not be negative"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_wrong_configurations(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(DATA, **change)


def test_buckets_end_with_the_longest_text():
    with pytest.raises(UserError, match=r"must end with data\.text_length 512"):
        stream(dataclasses.replace(DATA, text_buckets=(96, 160)))
