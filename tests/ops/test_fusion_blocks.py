"""Blockwise scores are the dense ones, in values and gradients, and never hold an N x N array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fusion_cases import run, same, scene, start, trained
from jax.extend import core

from earthmind_jax.ops import fusion
from earthmind_jax.ops.fusion_scores import attention_entropy, attention_received, largest_product


@pytest.fixture(autouse=True)
def float64():
    """Exact means exact: compared far below the rounding of float32."""
    with jax.enable_x64(True):
        yield


BLOCKED = ["hca", "hca_printed", "release_2025_10"]  # hca_plus and hca_gated share the scores of hca


@pytest.mark.parametrize("block", [4, 5, 8, 11])
def test_values_and_gradients_of_the_scores(block):
    """12 queries and 9 keys: even, uneven and single-token last blocks; one row of tokens is all invalid."""
    random = np.random.default_rng(0)
    queries, others, mix = (jnp.asarray(random.normal(size=shape)) for shape in ((2, 12, 8), (2, 9, 8), (2, 12)))
    query_valid = jnp.ones((2, 12), bool).at[0, 7:].set(False)
    key_valid = jnp.ones((2, 9), bool).at[0, 2:4].set(False).at[1].set(False)

    @jax.jit(static_argnums=2)
    def every(queries, others, block):
        received = attention_received(queries, others, query_valid, key_valid, scale=0.7, block=block)
        entropy = attention_entropy(queries, query_valid, scale=0.7, block=block)
        largest = jnp.where(
            key_valid.any(-1, keepdims=True), largest_product(queries, others, key_valid, block=block), 0
        )
        return received, entropy, largest

    def total(queries, others, block):
        received, entropy, largest = every(queries, others, block)
        return (received * mix[:, :9]).sum() + (entropy * mix).sum() + (largest * mix).sum()

    dense, blocked = every(queries, others, 99), every(queries, others, block)
    same(blocked, dense, 1e-12)
    np.testing.assert_allclose(dense[0].sum(-1), [1, 0], atol=1e-6)
    gradient = jax.grad(total, argnums=(0, 1))
    same(gradient(queries, others, block), gradient(queries, others, 99), 1e-12)


def test_leading_axes_broadcast():
    """One text for all tiles of a sample."""
    text, tokens = (
        jax.random.normal(jax.random.key(0), (2, 1, 7, 4)),
        jax.random.normal(jax.random.key(1), (2, 3, 10, 4)),
    )
    valid = jnp.ones((2, 1, 7), bool).at[1, 0, 3:].set(False), jnp.ones((2, 3, 10), bool)
    dense, blocked = (attention_received(text, tokens, *valid, scale=0.5, block=b) for b in (10, 4))
    assert blocked.shape == (2, 3, 10)
    same(blocked, dense, 1e-12)


@pytest.mark.parametrize("mode", BLOCKED)
def test_values_and_gradients_of_the_modes(mode):
    x, params = scene(tiles=2, dtype=jnp.float64), trained(mode)

    def loss(x, params, block):
        fused = run(mode, x, params, block=block, across_tiles=True)
        return (fused.tokens * jnp.arange(16)).sum(), fused

    evaluate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, dense), dense_gradients = evaluate(x, params, 1024)
    (_, blocked), gradients = evaluate(x, params, 7)
    same(blocked, dense, 1e-11)
    same(gradients, dense_gradients, 1e-9)


def sizes(jaxpr):
    """Elements of every intermediate array, in nested programs too."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    yield from sizes(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    yield from sizes(inner)


@pytest.mark.parametrize("mode", BLOCKED)
def test_no_array_of_n_by_n(mode):
    """4096 tokens, forward and backward: everything stays within block x block, or tokens x width."""
    count, block, width = 4096, 256, 8
    x = jax.eval_shape(lambda: scene(batch=1, tiles=1, tokens=count, width=width))
    params = start(mode, width)

    def largest(block):
        def loss(x):
            return fusion.fuse(mode, params, x["optical"], x["sar"], text=x["text"], block=block).tokens.sum()

        return max(sizes(jax.make_jaxpr(jax.grad(loss))(x).jaxpr))

    assert largest(block) <= max(block * block, count * width * (count // block))
    assert largest(block) < count * count / 16
    assert largest(count) >= count * count  # the measure sees the dense form
