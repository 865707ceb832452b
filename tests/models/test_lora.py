import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import LmConfig, LoraConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models.decoder import Decoder
from earthmind_jax.models.functional import add_prefix, apply_module, init_module, merge_lora, module_axes

PLAIN = LmConfig(vocab=61, width=32, depth=3, heads=4, kv_heads=2, head_dim=8, mlp=48, remat="none")
LORA = LoraConfig(rank=4, alpha=8.0)
CONFIG = dataclasses.replace(PLAIN, lora=LORA)
TOKENS = jax.random.randint(jax.random.key(7), (2, 9), 0, PLAIN.vocab)
LAYERS = {f"blocks/{name}" for name in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")}


@functools.cache
def new(config):
    return jax.jit(lambda key: add_prefix(init_module(Decoder(config), key, TOKENS), "lm"))(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, rngs=None):
    decoder = Decoder(config)
    embeds = apply_module(decoder, params, "lm", TOKENS, method="embed")
    hidden = apply_module(decoder, params, "lm", embeds, rngs=rngs).hidden
    return apply_module(decoder, params, "lm", hidden, method="logits")


def split(params):
    lora = {path: value for path, value in params.items() if path.startswith("lora/")}
    return lora, {path: value for path, value in params.items() if path not in lora}


def trained(params):
    """Adapters that do something."""
    lora, base = split(params)
    numbers = np.random.default_rng(0)
    moved = {path: value + 0.2 * numbers.standard_normal(value.shape, np.float32) for path, value in lora.items()}
    return {**base, **moved}


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (LORA.targets, LAYERS),
        (".*", LAYERS | {"head"}),
        ("attn/(q|v)$", {"blocks/attn/q", "blocks/attn/v"}),
        ("nothing", set()),
    ],
)
def test_targets_choose_layers(targets, layers):
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4, targets=targets))
    lora, _ = split(add_prefix(module_axes(Decoder(config), TOKENS), "lm"))
    assert set(lora) == {f"lora/lm/{layer}/{factor}" for layer in layers for factor in "ab"}


def test_shapes_and_axes():
    params, axes = new(CONFIG), add_prefix(module_axes(Decoder(CONFIG), TOKENS), "lm")
    assert set(axes) == set(params)
    assert params["lora/lm/blocks/attn/o/a"].shape == (3, 4, 8, 4)
    assert axes["lora/lm/blocks/attn/o/a"] == ("layers", "heads", "head", "rank")
    assert params["lora/lm/blocks/attn/k/b"].shape == (3, 4, 2, 8)
    assert axes["lora/lm/blocks/attn/k/b"] == ("layers", "rank", "kv_heads", "head")


def test_starts_as_the_base_model_and_merges_into_it():
    params = new(CONFIG)
    _, base = split(params)
    np.testing.assert_array_equal(logits(CONFIG, params), logits(PLAIN, base))
    params = trained(params)
    merged = merge_lora(params, LORA)
    assert set(merged) == set(base)
    adapted = logits(CONFIG, params)
    assert np.abs(adapted - logits(PLAIN, base)).max() > 1e-2
    np.testing.assert_allclose(adapted, logits(PLAIN, merged), atol=1e-4)


def test_head_matrix_includes_its_adapter():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4, alpha=8.0, targets="head"))
    params = trained(new(config))
    decoder, hidden = Decoder(config), jax.random.normal(jax.random.key(1), (2, 3, 32))
    expected = apply_module(decoder, params, "lm", hidden, method="logits")
    np.testing.assert_allclose(hidden @ apply_module(decoder, params, "lm", method="head"), expected, atol=1e-4)
    np.testing.assert_allclose(hidden @ merge_lora(params, config.lora)["lm/head/kernel"], expected, atol=1e-4)


def test_gradients_exist_for_the_factors_alone():
    lora, base = split(trained(new(CONFIG)))

    config = dataclasses.replace(CONFIG, remat="full")

    @jax.jit
    def loss(lora, base):
        return jnp.mean(logits(config, {**base, **lora}) ** 2)

    gradient = jax.jit(jax.grad(loss))(lora, base)
    assert set(gradient) == {f"lora/lm/{layer}/{factor}" for layer in LAYERS for factor in "ab"}
    for path, value in gradient.items():
        assert value.shape == lora[path].shape
        assert np.abs(value).max() > 0, path
    step = {path: value - 1e-2 * gradient[path] for path, value in lora.items()}
    assert loss(step, base) < loss(lora, base)


def test_dropout_acts_in_training_only():
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, dropout=0.5))
    params = trained(new(config))
    np.testing.assert_array_equal(logits(config, params), logits(CONFIG, params))
    first, again, other = (logits(config, params, {"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_missing_factors_are_named():
    with pytest.raises(UserError, match="blocks/attn/q"):
        logits(CONFIG, new(PLAIN))
