import jax
import jax.numpy as jnp
import numpy as np

from earthmind_jax.config import LoraConfig
from earthmind_jax.models.functional import add_prefix, apply_module, flatten, init_module, merge_lora, unflatten
from earthmind_jax.nn.linear import Linear

LAYER = Linear(3, ("embed", "mlp"), lora=LoraConfig(rank=2, alpha=4.0, targets=""))
X = jnp.ones((1, 4))


def test_flat_and_nested_are_inverse():
    variables = {"params": {"a": {"kernel": 1}, "b": 2}, "lora": {"a": {"a": 3, "b": 4}}}
    flat = flatten(variables)
    assert flat == {"a/kernel": 1, "b": 2, "lora/a/a": 3, "lora/a/b": 4}
    assert unflatten(flat) == variables
    assert unflatten({"b": 2}) == {"params": {"b": 2}}


def test_a_prefix_selects_its_own_sub_tree():
    flat = add_prefix({"kernel": 1, "lora/a": 2}, "lm/head")
    assert flat == {"lm/head/kernel": 1, "lora/lm/head/a": 2}
    crowd = {**flat, "lm/header/kernel": 5, "lora/lm/header/a": 6, "vision/kernel": 7}
    assert unflatten(crowd, "lm/head") == {"params": {"kernel": 1}, "lora": {"a": 2}}
    assert unflatten(crowd, "vision") == {"params": {"kernel": 7}}


def test_components_run_below_their_prefix():
    params = init_module(LAYER, jax.random.key(0), X)
    expected = apply_module(LAYER, params, "", X)
    both = {**add_prefix(params, "one"), **add_prefix({k: 2 * v for k, v in params.items()}, "two")}
    np.testing.assert_array_equal(apply_module(LAYER, both, "one", X), expected)
    np.testing.assert_allclose(apply_module(LAYER, both, "two", X), 2 * expected, rtol=1e-6)


def test_initialisation_is_a_pure_function_of_the_key():
    first, again = (jax.jit(lambda key: init_module(LAYER, key, X))(jax.random.key(0)) for _ in range(2))
    other = init_module(LAYER, jax.random.key(1), X)
    np.testing.assert_array_equal(first["kernel"], again["kernel"])
    assert np.abs(first["kernel"] - other["kernel"]).max() > 0
    shapes = jax.eval_shape(lambda key: init_module(LAYER, key, X), jax.random.key(0))
    assert shapes["lora/b"].shape == (2, 3)


def test_merging_leaves_other_parameters_alone():
    params = add_prefix(init_module(LAYER, jax.random.key(0), X), "lm/head") | {"vision/kernel": X}
    params["lora/lm/head/b"] = jnp.ones((2, 3))
    merged = merge_lora(params, LAYER.lora)
    assert set(merged) == {"lm/head/kernel", "lm/head/bias", "vision/kernel"}
    expected = params["lm/head/kernel"] + 2.0 * params["lora/lm/head/a"] @ params["lora/lm/head/b"]
    np.testing.assert_allclose(merged["lm/head/kernel"], expected, atol=1e-6)
