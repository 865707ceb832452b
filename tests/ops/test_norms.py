from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.norms import layer_norm, rms_norm

torch = pytest.importorskip("torch")


@pytest.fixture(params=[0.0, 300.0], ids=["centred", "large mean"])
def x(request):
    return np.random.default_rng(0).standard_normal((3, 5, 48)).astype(np.float32) + np.float32(request.param)


@pytest.fixture
def scale():
    return np.random.default_rng(1).standard_normal(48).astype(np.float32)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_layer_norm(x, scale, eps):
    bias = scale[::-1].copy()
    exact = torch.nn.functional.layer_norm(
        torch.tensor(x).double(), (48,), torch.tensor(scale).double(), torch.tensor(bias).double(), eps
    ).numpy()
    want = torch.nn.functional.layer_norm(torch.tensor(x), (48,), torch.tensor(scale), torch.tensor(bias), eps).numpy()
    got = np.asarray(layer_norm(x, scale, bias, eps))
    # At a mean of 300 float32 itself leaves about 1e-4, in PyTorch too; a one-pass variance would leave 4e-2.
    assert np.abs(got - exact).max() <= max(2e-6, 3 * np.abs(want - exact).max())


def test_layer_norm_without_parameters(x):
    got = layer_norm(x, None, None, 1e-6)
    np.testing.assert_allclose(got.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(got.std(-1), 1, atol=1e-4)


def test_rms_norm(x, scale):
    want = torch.nn.functional.rms_norm(torch.tensor(x), (48,), torch.tensor(scale), 1e-6).numpy()
    np.testing.assert_allclose(rms_norm(x, scale, 1e-6), want, rtol=1e-5, atol=1e-6)


def test_gradients(scale):
    x = np.random.default_rng(2).standard_normal((4, 48)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    torch.nn.functional.layer_norm(leaf, (48,), torch.tensor(scale), None, 1e-6).pow(3).sum().backward()
    got = jax.grad(lambda x: (layer_norm(x, scale, None, 1e-6) ** 3).sum())(x)
    np.testing.assert_allclose(got, leaf.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_input_has_float32_statistics(dtype, scale):
    x = (jnp.asarray(np.random.default_rng(3).standard_normal((4, 48))) * 30).astype(dtype)
    for norm in (lambda x: rms_norm(x, scale, 1e-6), lambda x: layer_norm(x, scale, None, 1e-6)):
        got = norm(x)
        assert got.dtype == dtype
        want = norm(x.astype(jnp.float32))
        np.testing.assert_array_equal(got, want.astype(dtype))


def test_large_half_precision_values_do_not_overflow():
    x = jnp.full((2, 8), 6e4, jnp.float16)
    np.testing.assert_allclose(rms_norm(x, None, 1e-6), 1, atol=1e-3)
