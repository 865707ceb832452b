import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import LoraConfig, Precision
from earthmind_jax.errors import UserError
from earthmind_jax.models.functional import apply_module, init_module, module_axes
from earthmind_jax.nn.linear import Linear, merge_factors

HEADS = {"features": (4, 5), "axes": ("embed", "heads", "head")}
OUT = {"features": 7, "axes": ("heads", "head", "embed"), "contract": 2}
LORA = LoraConfig(rank=3, alpha=6.0, targets="")


@pytest.mark.parametrize(("options", "shape"), [(HEADS, (2, 6, 8)), (OUT, (2, 6, 4, 5)), (HEADS, (8,))])
def test_is_a_dense_map_over_trailing_axes(options, shape):
    layer, x = Linear(**options), jax.random.normal(jax.random.key(1), shape)
    params = init_module(layer, jax.random.key(0), x)
    params["bias"] = jax.random.normal(jax.random.key(2), params["bias"].shape)
    contract = options.get("contract", 1)
    inputs = int(np.prod(shape[len(shape) - contract :]))
    flat = np.asarray(x).reshape(-1, inputs) @ np.asarray(params["kernel"]).reshape(inputs, -1)
    expected = flat.reshape(*shape[: len(shape) - contract], *params["bias"].shape) + params["bias"]
    np.testing.assert_allclose(apply_module(layer, params, "", x), expected, atol=1e-5)


def test_parameters_and_axes():
    layer, x = Linear(**HEADS, lora=LORA), jnp.zeros((2, 8))
    shapes = {path: value.shape for path, value in init_module(layer, jax.random.key(0), x).items()}
    assert shapes == {"kernel": (8, 4, 5), "bias": (4, 5), "lora/a": (8, 3), "lora/b": (3, 4, 5)}
    assert module_axes(layer, x) == {
        "kernel": ("embed", "heads", "head"),
        "bias": ("heads", "head"),
        "lora/a": ("embed", "rank"),
        "lora/b": ("rank", "heads", "head"),
    }


def test_without_bias():
    assert set(init_module(Linear(**OUT, use_bias=False), jax.random.key(0), jnp.zeros((1, 4, 5)))) == {"kernel"}


@pytest.mark.parametrize("options", [HEADS, OUT])
def test_lora_starts_at_zero_and_merges_exactly(options):
    shape = (3, 8) if options is HEADS else (3, 4, 5)
    x = jax.random.normal(jax.random.key(1), shape)
    plain, adapted = Linear(**options), Linear(**options, lora=LORA)
    params = init_module(adapted, jax.random.key(0), x)
    base = {path: value for path, value in params.items() if not path.startswith("lora/")}
    np.testing.assert_array_equal(apply_module(adapted, params, "", x), apply_module(plain, base, "", x))
    params["lora/b"] = jax.random.normal(jax.random.key(3), params["lora/b"].shape)
    merged = {**base, "kernel": merge_factors(params["kernel"], params["lora/a"], params["lora/b"], 6.0 / 3)}
    adapted_out = apply_module(adapted, params, "", x)
    np.testing.assert_allclose(adapted_out, apply_module(plain, merged, "", x), atol=1e-5)
    assert np.abs(adapted_out - apply_module(plain, base, "", x)).max() > 0.1


def test_stacked_factors_merge_layer_by_layer():
    keys = jax.random.split(jax.random.key(0), 3)
    kernel, a, b = (jax.random.normal(k, s) for k, s in zip(keys, [(6, 8, 4, 5), (6, 8, 3), (6, 3, 4, 5)], strict=True))
    merged = merge_factors(kernel, a, b, 0.5)
    for layer in range(6):
        np.testing.assert_allclose(merged[layer], merge_factors(kernel[layer], a[layer], b[layer], 0.5), atol=1e-6)
    half = merge_factors(kernel.astype(jnp.bfloat16), a, b, 0.5)
    assert half.dtype == jnp.bfloat16


def test_targets_are_searched_in_the_path():
    assert not any(
        path.startswith("lora/")
        for path in init_module(
            Linear(**HEADS, lora=LoraConfig(rank=2, targets="attn/q")), jax.random.key(0), jnp.zeros((1, 8))
        )
    )


def test_missing_factors_are_named():
    x = jnp.zeros((1, 8))
    params = init_module(Linear(**HEADS), jax.random.key(0), x)
    with pytest.raises(UserError, match="LoRA"):
        apply_module(Linear(**HEADS, lora=LORA), params, "", x)


def test_adapter_dropout_needs_a_key_and_spares_the_base():
    layer = Linear(**HEADS, lora=LoraConfig(rank=3, alpha=6.0, dropout=0.5, targets=""))
    x = jnp.ones((4, 8))
    params = init_module(layer, jax.random.key(0), x)
    base = apply_module(layer, params, "", x)
    rngs = {"dropout": jax.random.key(5)}
    np.testing.assert_array_equal(apply_module(layer, params, "", x, rngs=rngs), base)  # b = 0
    params["lora/b"] = jnp.ones_like(params["lora/b"])
    full = apply_module(layer, params, "", x)
    np.testing.assert_array_equal(full, apply_module(layer, params, "", x))
    assert np.abs(full - apply_module(layer, params, "", x, rngs=rngs)).max() > 1e-3
    draws = jax.jit(jax.vmap(lambda key: apply_module(layer, params, "", x, rngs={"dropout": key})))(
        jax.random.split(jax.random.key(0), 2000)
    )
    np.testing.assert_allclose(np.mean(draws, 0), full, atol=0.25 * np.abs(full - base).max())


def test_precision_of_storage_compute_and_output():
    precision = Precision(param="float32", compute="bfloat16")
    x = jnp.ones((2, 8))
    layer = Linear(**HEADS, precision=precision)
    params = init_module(layer, jax.random.key(0), x)
    assert params["kernel"].dtype == jnp.float32
    frozen = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    out = apply_module(layer, params, "", x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, apply_module(layer, frozen, "", x))
    assert apply_module(Linear(**HEADS, precision=precision, output="float32"), params, "", x).dtype == jnp.float32
