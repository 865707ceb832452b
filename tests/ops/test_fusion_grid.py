"""Tokens and weights on their grids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.errors import UserError
from earthmind_jax.ops import fusion


@pytest.mark.parametrize(("source", "target"), [((8, 8), (4, 4)), ((7, 6), (4, 4)), ((3, 3), (5, 4)), ((5, 5), (5, 5))])
def test_pooling_is_adaptive_average(source, target):
    torch = pytest.importorskip("torch")
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, *source, 6)))
    want = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x).flatten(0, 1).movedim(-1, 1), target)
    got = fusion.pool_to_grid(jnp.asarray(x).reshape(2, 3, -1, 6), source, target)
    np.testing.assert_allclose(got, want.movedim(1, -1).reshape(2, 3, -1, 6), atol=1e-6)
    pooled, valid = fusion.pool_valid_to_grid(
        jnp.asarray(x).reshape(2, 3, -1, 6), jnp.ones((2, 3, source[0] * source[1]), bool), source, target
    )
    np.testing.assert_allclose(pooled, got, atol=1e-6)
    assert valid.all()


def test_pooling_averages_valid_tokens_only():
    x = jnp.arange(16.0).reshape(1, 16, 1).at[0, 5].set(jnp.nan)
    valid = jnp.ones((1, 16), bool).at[0, 5].set(False).at[0, jnp.array([10, 11, 14, 15])].set(False)
    pooled, kept = fusion.pool_valid_to_grid(x, valid, (4, 4), (2, 2))
    np.testing.assert_allclose(pooled[0, :, 0], [(0 + 1 + 4) / 3, (2 + 3 + 6 + 7) / 4, (8 + 9 + 12 + 13) / 4, 0])
    np.testing.assert_array_equal(kept, [[True, True, True, False]])
    gradient = jax.grad(lambda x: fusion.pool_valid_to_grid(x, valid, (4, 4), (2, 2))[0].sum())(x)
    assert jnp.isfinite(gradient).all()
    assert pooled.dtype == x.dtype
    short, _ = fusion.pool_valid_to_grid(x.astype(jnp.bfloat16), valid, (4, 4), (2, 2))
    assert short.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(12, 20), (3, 2), (4, 5)])
def test_weights_are_bilinear_and_sum_to_one(size):
    torch = pytest.importorskip("torch")
    optical = jax.random.uniform(jax.random.key(0), (2, 3, 20))
    placed = fusion.weights_to_grid(jnp.stack([optical, 1 - optical], -1), (4, 5), size)
    assert placed.shape == (2, 3, *size, 2)
    np.testing.assert_allclose(placed.sum(-1), 1, atol=1e-6)
    image = torch.tensor(np.asarray(optical)).reshape(2, 3, 4, 5)
    want = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(placed[..., 0], want, atol=1e-6)


def test_weights_around_invalid_tokens():
    weights = jnp.full((3, 16, 2), 0.5)
    weights = weights.at[0].set(jnp.array([1.0, 0.0])).at[0, 3].set(0)  # SAR missing, one optical hole
    weights = weights.at[1, :2].set(jnp.array([0.8, 0.2])).at[1, 2:].set(0)  # two valid tokens
    weights = weights.at[2].set(0)  # nothing valid
    placed = fusion.weights_to_grid(weights, (4, 4), (16, 16))
    np.testing.assert_allclose(placed.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(placed[0, ..., 1], 0, atol=1e-6)  # never any weight for the missing sensor
    np.testing.assert_allclose(placed[1, ..., 0], 0.8, atol=1e-6)
    np.testing.assert_allclose(placed[2], 0.5)
    assert jnp.isfinite(jax.grad(lambda w: fusion.weights_to_grid(w, (4, 4), (16, 16))[..., 0].sum())(weights)).all()


def test_pooled_pair_fuses_on_the_sar_grid():
    keys = jax.random.split(jax.random.key(0), 3)
    optical, sar = jax.random.normal(keys[0], (2, 1, 36, 8)), jax.random.normal(keys[1], (2, 1, 16, 8))
    pooled, valid = fusion.pool_valid_to_grid(optical, jnp.ones((2, 1, 36), bool), (6, 6), (4, 4))
    fused = fusion.fuse("average", {}, pooled, sar, optical_valid=valid)
    np.testing.assert_allclose(fused.tokens, (pooled + sar) / 2, atol=1e-6)


def test_tokens_must_fill_the_grid():
    with pytest.raises(UserError, match="12 tokens do not fill a grid of 4 x 4"):
        fusion.pool_to_grid(jnp.zeros((12, 3)), (4, 4), (2, 2))
    with pytest.raises(UserError, match="do not fill"):
        fusion.weights_to_grid(jnp.zeros((1, 9, 2)), (4, 4), (2, 2))
