"""Mixtures: exact shares, sources shuffled by themselves, entered anywhere."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import support

from earthmind_jax.config import DataConfig, RunConfig, SourceConfig, from_json, to_json
from earthmind_jax.data.pipeline import Lazy, pipeline
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.sources import Mixture, most_dates, place
from earthmind_jax.errors import UserError

CFG = support.model(grounding=None)
DATA = DataConfig(batch_size=4, text_length=64)


def source(letter: str, count: int) -> list[Sample]:
    return [Sample(f"{letter}{i}", (Turn(f"{letter}{i}", "Yes"),)) for i in range(count)]


PARTS = {"a": 7, "b": 5, "c": 11}
SOURCES = [source(*part) for part in PARTS.items()]


def mixture(*weights: float | None, repeat: int = 1) -> Mixture:
    configs = [
        SourceConfig(path=f"{n}.jsonl", weight=w, repeat=repeat if n == "a" else 1)
        for n, w in zip(PARTS, weights, strict=True)
    ]
    return Mixture.of(SOURCES, configs)


def stream(mixed: Mixture, **options):
    return pipeline(mixed, CFG, DATA, support.tokenizer(), **{"seed": 1, "sensors": (), **options})


def names(batch) -> list[str]:
    return [support.tokenizer().decode(row[mark]) for row, mark in zip(batch.tokens, batch.question, strict=True)]


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 7), (1, 999), (5, 3, 2), (1, 1, 1, 1, 1), (10**9, 1, 10**9 + 7)])
def test_shares_are_exact_and_every_sample_has_its_turn(shares):
    seen: Counter[int] = Counter()
    for position in range(4000):
        number, key = place(position, shares)
        assert key == seen[number], "each source is taken in its own order, none is left out"
        seen[number] += 1
        for i, share in enumerate(shares):
            assert abs(seen[i] - (position + 1) * share / sum(shares)) <= len(shares)
    assert place(10**15, shares)[1] >= 0
    if sum(shares) <= 1000:
        assert Counter(place(p, shares)[0] for p in range(7 * sum(shares))) == {i: 7 * s for i, s in enumerate(shares)}


def test_weights_become_whole_shares():
    assert mixture(0.1, 0.3, 0.6).shares == (1, 3, 6)
    assert mixture(1.0, 1 / 3, 2.0).shares[0] * 2 == mixture(1.0, 1 / 3, 2.0).shares[2]
    assert mixture(None, None, None).shares == (7, 5, 11)
    assert mixture(None, None, None, repeat=3).shares == (21, 5, 11)
    assert mixture(1.0, 1.0, 2.0).names == ("a", "b", "c")


def test_a_stream_has_the_shares_and_names_its_sources():
    mixed = stream(mixture(1.0, 1.0, 2.0))
    batches = [next(mixed) for _ in range(56)]
    told = np.concatenate([b.source for b in batches])
    assert told.dtype == np.int32
    assert np.bincount(told).tolist() == [56, 56, 112]
    asked = [name for b in batches for name in names(b)]
    assert [name[0] for name in asked] == ["abc"[i] for i in told]
    first = [name for name in asked if name[0] == "a"]
    epochs = [first[i : i + 7] for i in range(0, 56, 7)]
    assert all(sorted(epoch) == [f"a{i}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 4, "each epoch of a source has an order of its own"


def test_a_mixture_resumes_and_is_shared_by_processes():
    mixed = stream(mixture(0.2, 0.3, 0.5))
    wanted = [next(mixed) for _ in range(12)]
    parts = [stream(mixture(0.2, 0.3, 0.5), process=p, processes=2) for p in range(2)]
    for part in parts:
        part.set_state({"batches": 7})
    for batch in wanted[7:]:
        left, right = (next(part) for part in parts)
        np.testing.assert_array_equal(np.concatenate([left.tokens, right.tokens]), batch.tokens)
        np.testing.assert_array_equal(np.concatenate([left.source, right.source]), batch.source)


def test_one_source_is_no_mixture():
    plain = next(pipeline(SOURCES[0], CFG, DATA, support.tokenizer(), seed=1, sensors=()))
    assert plain.source is None


def test_configurations():
    data = DataConfig(sources=(SourceConfig(path="data/x.y.jsonl", weight=2.0), SourceConfig(simulated=5, weight=1.0)))
    assert [s.title for s in data.sources] == ["x", "simulated"]
    run = RunConfig(data=data)
    assert from_json(RunConfig, to_json(run)) == run
    with pytest.raises(UserError, match="a path or a number of simulated scenes"):
        SourceConfig()
    with pytest.raises(UserError, match="not both"):
        SourceConfig(path="a", simulated=3)
    with pytest.raises(UserError, match="must be positive"):
        SourceConfig(path="a", weight=0.0)
    with pytest.raises(UserError, match="weight or is repeated"):
        SourceConfig(path="a", weight=1.0, repeat=2)
    with pytest.raises(UserError, match="names of their own"):
        DataConfig(sources=(SourceConfig(path="one/a.jsonl"), SourceConfig(path="two/a.jsonl")))
    with pytest.raises(UserError, match="Either every source"):
        DataConfig(sources=(SourceConfig(path="a.jsonl", weight=1.0), SourceConfig(path="b.jsonl")))
    with pytest.raises(UserError, match="'b' is empty"):
        Mixture.of([SOURCES[0], []], [SourceConfig(path="a.jsonl"), SourceConfig(path="b.jsonl")])


def test_the_dates_of_sources():
    image = np.zeros((4, 4, 3), np.uint8)
    several = [dataclasses.replace(SOURCES[0][0], optical=(image, image, image))]
    assert most_dates(SOURCES[0]) == 1
    assert most_dates(several) == 3
    assert most_dates(Mixture((SOURCES[0], several), (1, 1), ("a", "b"))) == 3
    assert most_dates(Lazy(several.__getitem__, 1)) == 1
    assert most_dates(Lazy(several.__getitem__, 1, dates=3)) == 3
