import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.models.functional import apply_module, init_module, module_axes
from earthmind_jax.nn.conv import Conv2d, ConvTranspose2x2

torch = pytest.importorskip("torch")


def _torch(x):
    return torch.tensor(np.asarray(x))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "size"),
    [
        (7, 4, 3, 1, (29, 32)),  # Hiera's patch embedding
        (14, 14, 0, 1, (28, 45)),  # InternViT's, with an incomplete last window
        (2, 2, 0, 1, (8, 6)),
        (1, 1, 0, 1, (5, 4)),
        (7, 1, 3, 6, (9, 10)),  # depthwise
        (3, 2, 1, 2, (9, 8)),
        ((3, 5), 1, 0, 1, (9, 8)),
    ],
)
def test_convolution_matches_torch(kernel, stride, padding, groups, size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 6))
    layer = Conv2d(12, kernel, stride=stride, padding=padding, groups=groups)
    params = init_module(layer, jax.random.key(1), x)
    params["bias"] = jax.random.normal(jax.random.key(2), (12,))
    weight = _torch(params["kernel"]).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(
        _torch(x).permute(0, 3, 1, 2), weight, _torch(params["bias"]), stride, padding, 1, groups
    )
    out = apply_module(layer, params, "", x)
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_transposed_convolution_matches_torch():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 6))
    layer = ConvTranspose2x2(3)
    params = init_module(layer, jax.random.key(1), x)
    params["bias"] = jax.random.normal(jax.random.key(2), (3,))
    weight = _torch(params["kernel"]).permute(2, 3, 0, 1)
    expected = torch.nn.functional.conv_transpose2d(
        _torch(x).permute(0, 3, 1, 2), weight, _torch(params["bias"]), stride=2
    )
    out = apply_module(layer, params, "", x)
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_parameters():
    x = jnp.ones((1, 8, 8, 6))
    axes = module_axes(Conv2d(12, 3, padding=1, axes=(None, None, "hidden", "embed")), x)
    assert axes == {"kernel": (None, None, "hidden", "embed"), "bias": ("embed",)}
    assert set(init_module(ConvTranspose2x2(3, use_bias=False), jax.random.key(0), x)) == {"kernel"}
    kernel = init_module(ConvTranspose2x2(256), jax.random.key(0), jnp.ones((1, 2, 2, 64)))["kernel"]
    assert np.std(kernel) == pytest.approx(1 / np.sqrt(64), rel=0.05)
