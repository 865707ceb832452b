import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import LoraConfig
from earthmind_jax.models.functional import apply_module, init_module, module_axes
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.stack import scan_or_loop

DEPTH, WIDTH = 5, 8
LORA = LoraConfig(rank=2, alpha=2.0, dropout=0.5, targets="up")


class Block(nn.Module):
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, carry, per_layer, shared):
        up = Linear(16, ("embed", "mlp"), lora=self.lora, name="up")(carry)
        down = Linear(WIDTH, ("mlp", "embed"), lora=self.lora, name="down")(jnp.tanh(up))
        carry = carry + down * per_layer + shared["offset"]
        return carry, jnp.sum(carry)


class Model(nn.Module):
    scan: bool = True
    remat: str = "none"
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x):
        stack = scan_or_loop(Block, DEPTH, scan=self.scan, remat=self.remat)(self.lora, name="blocks")
        return stack(x, jnp.arange(1.0, DEPTH + 1), {"offset": jnp.float32(0.1)})


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(3), (2, WIDTH))


@pytest.fixture(scope="module")
def params(x):
    return init_module(Model(), jax.random.key(0), x)


def test_is_the_plain_loop_over_slices(x, params):
    expected, sums = x, []
    for layer in range(DEPTH):
        own = {path.removeprefix("blocks/"): value[layer] for path, value in params.items()}
        expected, total = apply_module(Block(), own, "", expected, jnp.float32(layer + 1), {"offset": 0.1})
        sums.append(total)
    y, outputs = apply_module(Model(), params, "", x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(outputs, sums, rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_scan_and_remat_change_nothing(x, params, scan, remat):
    def loss(module, params):
        y, outputs = apply_module(module, params, "", x)
        return jnp.sum(y**2) + jnp.sum(outputs)

    value, gradient = jax.value_and_grad(functools.partial(loss, Model()))(params)
    other, other_gradient = jax.jit(jax.value_and_grad(functools.partial(loss, Model(scan, remat))))(params)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for path, want in gradient.items():
        np.testing.assert_allclose(want, other_gradient[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_same_parameters_either_way(x, params):
    loop = init_module(Model(scan=False), jax.random.key(0), x)
    assert {path: value.shape for path, value in loop.items()} == {path: v.shape for path, v in params.items()}
    assert module_axes(Model(scan=False), x) == module_axes(Model(), x)
    assert module_axes(Model(), x)["blocks/up/kernel"] == ("layers", "embed", "mlp")
    kernel = params["blocks/up/kernel"]
    assert kernel.shape == (DEPTH, WIDTH, 16)
    assert len({float(layer[0, 0]) for layer in kernel}) == DEPTH  # every layer has its own draw


def test_one_form_loops_the_other_is_unrolled(x, params):
    text = {
        scan: jax.jit(lambda p, s=scan: apply_module(Model(s), p, "", x)).lower(params).as_text() for scan in (1, 0)
    }
    assert "stablehlo.while" in text[1]
    assert "stablehlo.while" not in text[0]


def test_lora_is_stacked_and_dropout_differs_by_layer(x):
    module = Model(lora=LORA)
    params = init_module(module, jax.random.key(0), x)
    assert params["lora/blocks/up/a"].shape == (DEPTH, WIDTH, 2)
    assert module_axes(module, x)["lora/blocks/up/b"] == ("layers", "rank", "mlp")
    assert not any("lora/blocks/down" in path for path in params)
    params["lora/blocks/up/b"] = jnp.ones_like(params["lora/blocks/up/b"])
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    a, b, c = (apply_module(module, params, "", x, rngs=rng)[0] for rng in rngs)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4
    remat = apply_module(Model(remat="full", lora=LORA), params, "", x, rngs=rngs[0])[0]
    np.testing.assert_allclose(a, remat, atol=1e-6)
