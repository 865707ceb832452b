"""Gradients, precision and compilation of every fusion mode."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from fusion_cases import N_MODES, run, same, scene, start, trained

from earthmind_jax.ops import fusion

MODES = list(fusion.FUSION)


@pytest.mark.parametrize(("mode", "block"), [*((m, 1024) for m in MODES), ("hca", 5), ("release_2025_10", 5)])
def test_gradients_are_finite_and_reach_every_parameter(mode, block):
    """With holes, disjoint sensors, a missing sensor, and no text in some samples and tiles."""
    x, params = scene(batch=3), trained(mode)
    valid = jnp.ones((3, 3, 12), bool)
    masks = {
        "optical_valid": valid.at[0, 0, 3:].set(False).at[0, 1].set(False).at[1, 0, 0].set(False),
        "sar_valid": valid.at[0, 0, :6].set(False).at[0, 2].set(False),
        "text_valid": jnp.ones((3, 5), bool).at[1].set(False),
    }

    # As users compile it: the suite's quick compilation rounds and overflows elsewhere.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def gradient(x, params):
        target = jnp.cos(jnp.arange(16.0))

        def loss(x, params):
            return (run(mode, {**x, **masks}, params, block=block).tokens ** 2 * target).sum()

        return jax.grad(loss, argnums=(0, 1))(x, params)

    got, of_params = gradient(x, params)
    chex.assert_tree_all_finite((got, of_params))
    for name, value in of_params.items():
        assert jnp.abs(value).max() > 1e-6, name
    assert jnp.abs(got["optical"]).max() > 0
    zero_grads, _ = gradient(jax.tree.map(jnp.zeros_like, x), params)
    chex.assert_tree_all_finite(zero_grads)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_drifts_little(mode):
    x, params = scene(), trained(mode)
    exact, short = run(mode, x, params), run(mode, jax.tree.map(lambda v: v.astype(jnp.bfloat16), x), params)
    assert short.tokens.dtype == jnp.bfloat16
    assert short.weights.dtype == jnp.float32
    same(short.weights, exact.weights, 0.05)
    a, b = exact.tokens.ravel(), short.tokens.astype(jnp.float32).ravel()
    assert float(a @ b / jnp.sqrt((a @ a) * (b @ b))) > 0.999


@pytest.mark.parametrize("mode", N_MODES)
def test_scores_are_float32_inside(mode):
    x = jax.tree.map(lambda v: v.astype(jnp.bfloat16), scene())
    text = str(jax.make_jaxpr(lambda x: run(mode, x, start(mode)).weights)(x))
    checked = 0
    for line in text.splitlines():
        if any(f"= {op}[" in line or f"= {op} " in line for op in ("exp", "rsqrt", "logistic", "log", "reduce_sum")):
            assert "bf16" not in line, line
            checked += 1
    assert checked


class FusionVariants(chex.TestCase):
    """The same result compiled and not."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_every_mode(self):
        x = scene()
        for mode in MODES:
            with self.subTest(mode):
                params = trained(mode)

                def fused(x, params, mode=mode):
                    return fusion.fuse(mode, params, x["optical"], x["sar"], text=x["text"])

                same(self.variant(fused)(x, params), run(mode, x, params), 1e-5)
