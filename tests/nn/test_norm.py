import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import Precision
from earthmind_jax.models.functional import apply_module, init_module, module_axes
from earthmind_jax.nn.embed import TokenEmbed
from earthmind_jax.nn.norm import LayerNorm, RMSNorm, norm

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_matches_torch(kind):
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 9, 32)).astype(np.float32)
    layer = LayerNorm(eps=1e-5) if kind == "layer_norm" else RMSNorm(eps=1e-5)
    params = init_module(layer, jax.random.key(0), x)
    params = {path: jax.random.normal(jax.random.key(len(path)), value.shape) for path, value in params.items()}
    scale = torch.tensor(np.asarray(params["scale"]))
    if kind == "layer_norm":
        bias = torch.tensor(np.asarray(params["bias"]))
        expected = torch.nn.functional.layer_norm(torch.tensor(x), (32,), scale, bias, 1e-5)
    else:
        expected = torch.nn.functional.rms_norm(torch.tensor(x), (32,), scale, 1e-5)
    np.testing.assert_allclose(apply_module(layer, params, "", x), expected.numpy(), atol=2e-5)


def test_parameters_by_kind():
    x = jnp.ones((2, 8))
    make = lambda kind, **options: norm(kind, eps=1e-6, precision=Precision(), name=None, **options)  # noqa: E731
    assert module_axes(make("rms_norm"), x) == {"scale": ("embed",)}
    assert module_axes(make("layer_norm", axis=None), x) == {"scale": (None,), "bias": (None,)}


def test_low_precision_input_keeps_its_dtype():
    x = jnp.ones((2, 8), jnp.bfloat16)
    layer = LayerNorm(precision=Precision(compute="bfloat16"))
    assert apply_module(layer, init_module(layer, jax.random.key(0), x), "", x).dtype == jnp.bfloat16


def test_embedding_looks_up_and_flags_foreign_ids():
    layer = TokenEmbed(10, 4)
    tokens = jnp.array([[0, 9, 3]])
    params = init_module(layer, jax.random.key(0), tokens)
    assert {path: value.shape for path, value in params.items()} == {"embedding": (10, 4)}
    np.testing.assert_array_equal(apply_module(layer, params, "", tokens)[0], params["embedding"][jnp.array([0, 9, 3])])
    assert np.isnan(apply_module(layer, params, "", jnp.array([10]))).all()
    np.testing.assert_array_equal(apply_module(layer, params, "", method="head"), params["embedding"].T)
