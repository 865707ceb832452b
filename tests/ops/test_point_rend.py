"""Points at which masks are compared, against torch's ``grid_sample`` and what they are drawn for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops import point_rend

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("size", [(32, 32), (5, 9)])
def test_point_sample(size):
    rng = np.random.default_rng(5)
    maps = rng.standard_normal((3, *size)).astype(np.float32)
    coords = (rng.random((3, 200, 2)) * 1.4 - 0.2).astype(np.float32)  # also outside of the map
    leaf = torch.tensor(maps, requires_grad=True)
    want = torch.nn.functional.grid_sample(
        leaf[:, None], torch.tensor(2 * coords - 1)[:, None], mode="bilinear", align_corners=False
    )[:, 0, 0]
    want.square().sum().backward()
    np.testing.assert_allclose(point_rend.point_sample(maps, coords), want.detach().numpy(), rtol=1e-5, atol=2e-5)
    gradient = jax.grad(lambda x: jnp.square(point_rend.point_sample(x, coords)).sum())(maps)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_sample_points():
    """Points lie in the unit square, and most of them where the logits are near zero."""
    logits = jnp.broadcast_to(jnp.linspace(-10, 10, 64)[None, None, :], (2, 64, 64))
    coords = point_rend.sample_points(jax.random.key(0), logits, 1000, 3.0, 0.75)
    assert coords.shape == (2, 1000, 2)
    assert float(coords.min()) >= 0
    assert float(coords.max()) < 1
    near = np.abs(point_rend.point_sample(logits, coords)) < 3.0
    assert near[:, :750].mean() > 0.95
    assert 0.15 < near[:, 750:].mean() < 0.45
    assert not np.array_equal(coords[0], coords[1])
    gradient = jax.grad(lambda x: point_rend.sample_points(jax.random.key(0), x, 10).sum())(logits)
    np.testing.assert_array_equal(gradient, 0)
    for bad in ({"oversample": 0.5}, {"importance": 1.5}, {"points": 0}):
        with pytest.raises(ValueError, match="Point sampling"):
            point_rend.sample_points(jax.random.key(0), logits, **{"points": 10, **bad})
