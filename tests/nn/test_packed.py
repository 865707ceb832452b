import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import LoraConfig, Precision
from earthmind_jax.models.functional import apply_module, init_module
from earthmind_jax.nn import packed
from earthmind_jax.nn.linear import Linear
from earthmind_jax.nn.param import param
from earthmind_jax.nn.stack import scan_or_loop

DEPTH, WIDTH, HIDDEN = 5, 8, 14
HALF = Precision(param="bfloat16", compute="bfloat16")


class Block(nn.Module):
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x, per_layer, shared):
        up = Linear(HIDDEN, ("embed", "mlp"), precision=HALF, lora=self.lora, name="up")(x)
        down = Linear(WIDTH, ("mlp", "embed"), precision=HALF, name="down")(jnp.tanh(up))
        # An odd number of columns, and a parameter that is stored in float32 among those that are not.
        odd = param(self, "odd", nn.initializers.ones, (3,), (None,), "bfloat16")
        wide = param(self, "wide", nn.initializers.ones, (WIDTH,), ("embed",), "float32")
        return x + down * wide.astype(x.dtype) + jnp.sum(odd), None


class Model(nn.Module):
    remat: str = "none"
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x):
        blocks = scan_or_loop(Block, DEPTH, remat=self.remat, packed=not self.is_initializing())
        return blocks(self.lora, name="blocks")(x, jnp.arange(DEPTH), None)[0]


def loss(module, params, x):
    return jnp.sum(jnp.square(apply_module(module, params, "", x).astype(jnp.float32)))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(3), (4, WIDTH), jnp.bfloat16)


def test_packing_keeps_every_bit():
    bits = np.arange(2**16, dtype=np.uint16).reshape(2, -1)
    x = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    back = jax.jit(lambda x: packed.unpack(packed.pack(x)))(x)
    np.testing.assert_array_equal(jax.lax.bitcast_convert_type(back, jnp.uint16), bits)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=2.0, targets="up")])
@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_values_and_gradients_are_those_of_unpacked_weights(monkeypatch, x, remat, lora):
    module = Model(remat, lora)
    params = init_module(module, jax.random.key(0), x)
    params |= {path: value + 0.1 for path, value in params.items() if "lora" in path}
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(module, p, x)))(params)
    monkeypatch.setattr(packed, "on_cpu", lambda: False)
    plain = init_module(module, jax.random.key(0), x)
    assert {k: (v.shape, v.dtype) for k, v in plain.items()} == {k: (v.shape, v.dtype) for k, v in params.items()}
    want, wanted = jax.jit(jax.value_and_grad(lambda p: loss(module, p, x)))(params)
    np.testing.assert_array_equal(value, want)
    for path, expected in wanted.items():
        assert gradient[path].dtype == params[path].dtype
        np.testing.assert_array_equal(gradient[path], expected, err_msg=path)


def test_no_wide_copy_of_the_stack_is_made(monkeypatch, x):
    def copies():
        params = init_module(Model(), jax.random.key(0), x)
        text = jax.jit(lambda p, x: apply_module(Model(), p, "", x)).lower(params, x).compile().as_text()
        return f"f32[{DEPTH},{WIDTH},{HIDDEN}]" in text

    assert not copies()
    monkeypatch.setattr(packed, "on_cpu", lambda: False)
    jax.clear_caches()
    if not copies():
        pytest.skip("this XLA slices bfloat16 as it is: packing is no longer needed")
