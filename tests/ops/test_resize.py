from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops import resize

torch = pytest.importorskip("torch")
SIZES = [((7, 7), (256, 256)), ((32, 32), (16, 24)), ((13, 21), (13, 40)), ((100, 130), (32, 32)), ((5, 3), (1, 1)),
         ((1, 4), (3, 2)), ((64, 48), (37, 61)), ((9, 9), (9, 9))]  # fmt: skip


def image(size, channels=3, seed=0):
    return np.random.default_rng(seed).standard_normal((2, *size, channels)).astype(np.float32)


def through_torch(function, x):
    leaf = torch.tensor(x, requires_grad=True)
    out = function(leaf.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    out.square().sum().backward()
    return out.detach().numpy(), leaf.grad.numpy()


def interpolate(mode, size):
    mode, _, antialiased = mode.partition("_")
    options = {} if mode == "nearest" else {"align_corners": False, "antialias": bool(antialiased)}
    return lambda x: torch.nn.functional.interpolate(x, size=size, mode=mode, **options)


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "bilinear_antialiased", "nearest"])
def test_interpolate(mode, source, target):
    x = image(source)
    want, want_gradient = through_torch(interpolate(mode, target), x)
    function = getattr(resize, mode)
    np.testing.assert_allclose(function(x, target), want, rtol=1e-5, atol=2e-5)
    gradient = jax.grad(lambda x: jnp.square(function(x, target)).sum())(x)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-4 * np.abs(want_gradient).max())


@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("kind", ["average", "max"])
def test_adaptive(kind, source, target):
    pool = {"average": torch.nn.functional.adaptive_avg_pool2d, "max": torch.nn.functional.adaptive_max_pool2d}[kind]
    x = image(source, seed=1)
    want, want_gradient = through_torch(lambda x: pool(x, target), x)
    function = getattr(resize, f"adaptive_{kind}")
    np.testing.assert_allclose(function(x, target), want, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.square(function(x, target)).sum())(x)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-4 * np.abs(want_gradient).max())


def test_nearest_index_rule_at_every_size():
    """The source pixel itself, where float32 rounding of i * H / h decides."""
    for source in (3, 7, 10, 49, 100, 448, 1001):
        row = torch.arange(source, dtype=torch.float32).reshape(1, 1, 1, source)
        for target in (*range(1, 130), 448, 999, 1024):
            want = torch.nn.functional.interpolate(row, size=(1, target), mode="nearest")[0, 0, 0].numpy()
            np.testing.assert_array_equal(resize._nearest_index(source, target), want)


def test_constants_stay_constant():
    x = jnp.full((1, 11, 6, 2), 3.5)
    for name in ("bicubic", "bilinear", "nearest", "adaptive_average", "adaptive_max"):
        np.testing.assert_allclose(getattr(resize, name)(x, (8, 17)), 3.5, rtol=1e-6)


def test_dtypes():
    x = image((8, 8))
    low = resize.bicubic(jnp.asarray(x, jnp.bfloat16), (20, 20))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), resize.bicubic(x, (20, 20)), atol=0.05)
    mask = x[..., :1] > 0
    assert resize.nearest(mask, (3, 3)).dtype == jnp.bool_
    pooled = resize.adaptive_max(mask, (3, 5))
    assert pooled.dtype == jnp.bool_
    np.testing.assert_array_equal(pooled, resize.adaptive_max(mask.astype(np.float32), (3, 5)) > 0)
    assert resize.bilinear((mask * 255).astype(np.uint8), (3, 3)).dtype == jnp.float32


def test_leading_axes():
    x = image((6, 5))
    np.testing.assert_array_equal(resize.bilinear(x[0], (9, 9)), resize.bilinear(x, (9, 9))[0])
    np.testing.assert_array_equal(resize.bilinear(x[None], (9, 9))[0], resize.bilinear(x, (9, 9)))


@pytest.mark.parametrize(("shape", "size"), [((4, 4), (2, 2)), ((4, 4, 1), (0, 2)), ((0, 4, 1), (2, 2))])
def test_errors(shape, size):
    with pytest.raises(ValueError, match="Resizing"):
        resize.bilinear(jnp.zeros(shape), size)


def test_recorded_targets(goldens):
    """Target masks are brought to the decoder's resolution by the nearest rule."""
    inputs, outputs = (np.load(goldens / "g_losses" / f"{name}.npz") for name in ("inputs", "outputs"))
    got = resize.nearest(jnp.asarray(inputs["gt_big"])[..., None], (32, 32))[..., 0]
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, outputs["gt_big_nearest"])
