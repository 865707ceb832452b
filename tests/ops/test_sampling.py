from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.sampling import greedy, sample


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 50)) * 2, jnp.float32)


def draws(row, count=4000, **options):
    """Share of each token among draws from one row of logits."""
    tokens = sample(jnp.broadcast_to(row, (count, len(row))), jax.random.key(1), **options)
    return np.bincount(tokens, minlength=len(row)) / count


def nucleus(row, top_p, temperature=1.0):
    p = np.asarray(jax.nn.softmax(row / temperature))
    order = np.argsort(-p)
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    return set(order[:size].tolist())


def test_greedy(logits):
    got = greedy(logits)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, logits.argmax(-1))
    assert greedy(jnp.array([[1.0, 3.0, 3.0]]))[0] == 1


def test_distribution(logits):
    for temperature in (0.7, 1.0, 2.0):
        want = np.asarray(jax.nn.softmax(logits[0] / temperature))
        assert np.abs(draws(logits[0], temperature=temperature) - want).max() < 0.04


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_zero_temperature_is_greedy(logits, temperature):
    got = sample(logits, jax.random.key(0), temperature=temperature)
    np.testing.assert_array_equal(got, greedy(logits))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"temperature": 1e-6}])
def test_restrictions_end_at_greedy(logits, options):
    np.testing.assert_array_equal(sample(logits, jax.random.key(0), **options), greedy(logits))


@pytest.mark.parametrize("top_k", [2, 5, 1000])
def test_top_k(logits, top_k):
    share = draws(logits[0], top_k=top_k, temperature=3.0)
    allowed = np.argsort(-np.asarray(logits[0]))[:top_k]
    assert share[allowed].sum() == pytest.approx(1)
    assert set(np.flatnonzero(share)) <= set(allowed.tolist())
    assert (share[allowed[:5]] > 0).all()


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_top_p(logits, top_p):
    share = draws(logits[0], top_p=top_p)
    assert set(np.flatnonzero(share)) <= nucleus(logits[0], top_p)
    assert len(np.flatnonzero(share)) >= 0.7 * len(nucleus(logits[0], top_p))


def test_top_k_comes_before_top_p():
    """The nucleus is that of the renormalised top-k distribution, as in the published generation code."""
    row = jnp.log(jnp.array([0.3, 0.3, 0.2, 0.2]))
    assert set(np.flatnonzero(draws(row, top_k=2, top_p=0.45))) == {0}
    assert set(np.flatnonzero(draws(row, top_p=0.45))) == {0, 1}


def test_equal_tokens_are_equally_likely():
    assert np.abs(draws(jnp.zeros(8)) - 1 / 8).max() < 0.03


def test_one_compilation_serves_every_setting(logits):
    step = jax.jit(lambda x, key, t, k, p: sample(x, key, temperature=t, top_k=k, top_p=p))
    for t, k, p in ((0.0, 0, 1.0), (0.7, 5, 0.9), (1.3, 50, 0.5)):
        got = step(logits, jax.random.key(2), jnp.float32(t), jnp.int32(k), jnp.float32(p))
        np.testing.assert_array_equal(got, sample(logits, jax.random.key(2), temperature=t, top_k=k, top_p=p))
    assert step._cache_size() == 1


def test_a_row_does_not_depend_on_its_neighbours(logits):
    changed = logits.at[1:].set(-logits[1:])
    for options in ({}, {"top_k": 7}, {"top_p": 0.8}):
        first, second = (sample(x, jax.random.key(3), **options) for x in (logits, changed))
        assert first[0] == second[0]


def test_low_precision_logits(logits):
    assert sample(logits.astype(jnp.bfloat16), jax.random.key(0), temperature=0.0).dtype == jnp.int32
    assert (greedy(logits.astype(jnp.bfloat16)) == greedy(logits)).all()
