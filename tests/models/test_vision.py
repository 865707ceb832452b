import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import Precision, VisionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models.functional import add_prefix, apply_module, init_module, module_axes
from earthmind_jax.models.intern_vit import InternViT
from earthmind_jax.models.projector import Projector, TextHiddenFcs

CONFIG = VisionConfig(image_size=56, patch_size=14, width=32, depth=3, heads=2, mlp=48)


@pytest.fixture(scope="module")
def pixels():
    return jax.random.normal(jax.random.key(0), (2, 56, 56, 3))


@pytest.fixture(scope="module")
def params(pixels):
    return jax.jit(lambda key: add_prefix(init_module(InternViT(CONFIG), key, pixels), "vision"))(jax.random.key(1))


@functools.partial(jax.jit, static_argnames=("config", "precision", "states"))
def run(config, params, pixels, precision=Precision(), **options):  # noqa: B008
    return apply_module(InternViT(config, precision), params, "vision", pixels, **options)


def test_parameters(pixels, params):
    assert {path: value.shape for path, value in params.items()} == {
        "vision/class_embedding": (32,),
        "vision/patch_embedding/kernel": (14, 14, 3, 32),
        "vision/patch_embedding/bias": (32,),
        "vision/position_embedding": (17, 32),
        **{f"vision/blocks/norm{i}/{kind}": (3, 32) for i in (1, 2) for kind in ("scale", "bias")},
        **{f"vision/blocks/ls{i}": (3, 32) for i in (1, 2)},
        **{f"vision/blocks/attn/{name}/kernel": (3, 32, 2, 16) for name in "qkv"},
        **{f"vision/blocks/attn/{name}/bias": (3, 2, 16) for name in "qkv"},
        "vision/blocks/attn/out/kernel": (3, 2, 16, 32),
        "vision/blocks/attn/out/bias": (3, 32),
        "vision/blocks/mlp/fc1/kernel": (3, 32, 48),
        "vision/blocks/mlp/fc1/bias": (3, 48),
        "vision/blocks/mlp/fc2/kernel": (3, 48, 32),
        "vision/blocks/mlp/fc2/bias": (3, 32),
    }
    np.testing.assert_allclose(params["vision/blocks/ls1"], CONFIG.layer_scale_init)
    assert set(add_prefix(module_axes(InternViT(CONFIG), pixels), "vision")) == set(params)
    options = dataclasses.replace(CONFIG, norm="rms_norm", qk_norm=True, qkv_bias=False)
    other = set(module_axes(InternViT(options), pixels))
    assert {"blocks/attn/q_norm/scale", "blocks/attn/k_norm/scale"} <= other
    assert not {"blocks/norm1/bias", "blocks/attn/q/bias"} & other


def test_published_size_has_the_published_parameter_count():
    shapes = jax.eval_shape(
        lambda key: init_module(InternViT(VisionConfig()), key, jnp.zeros((1, 448, 448, 3))), jax.random.key(0)
    )
    assert sum(int(np.prod(value.shape)) for value in shapes.values()) == 304_012_288


def test_select_layer_feeds_the_features(pixels, params):
    out = run(CONFIG, params, pixels, states=True)
    assert out.features.shape == (2, 4, 4, 32)
    np.testing.assert_array_equal(out.states[-1], out.hidden)
    for select in (-1, -2, 0):
        features = run(dataclasses.replace(CONFIG, select_layer=select), params, pixels).features
        np.testing.assert_allclose(features.reshape(2, 16, 32), out.states[select][:, 1:], atol=1e-6)


def test_scan_loop_and_remat_agree(pixels, params):
    @functools.partial(jax.jit, static_argnums=0)
    def gradients(config, params):
        return jax.value_and_grad(lambda params: jnp.sum(run(config, params, pixels).features ** 2))(params)

    value, gradient = gradients(CONFIG, params)
    for changes in ({"remat": "full"}, {"remat": "dots", "scan": False}):
        config = dataclasses.replace(CONFIG, **changes)
        other, other_gradient = gradients(config, params)
        np.testing.assert_allclose(value, other, rtol=1e-5)
        for path, want in gradient.items():
            np.testing.assert_allclose(want, other_gradient[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_any_multiple_of_the_patch_and_nothing_else(params):
    assert run(CONFIG, params, jnp.ones((1, 28, 70, 3))).features.shape == (1, 2, 5, 32)
    with pytest.raises(UserError, match="60 x 56"):
        run(CONFIG, params, jnp.ones((1, 60, 56, 3)))


def test_a_tile_does_not_see_its_neighbours(pixels, params):
    both = run(CONFIG, params, pixels).hidden
    np.testing.assert_allclose(both[:1], run(CONFIG, params, pixels[:1]).hidden, atol=1e-5)


def test_bfloat16_stays_close(pixels, params):
    full = run(CONFIG, params, pixels).hidden
    half = run(CONFIG, params, pixels, Precision(compute="bfloat16")).hidden
    assert half.dtype == jnp.bfloat16
    half = half.astype(jnp.float32)
    assert jnp.vdot(full, half) / (jnp.linalg.norm(full) * jnp.linalg.norm(half)) > 0.999


def test_projector_and_text_hidden_fcs():
    features = jnp.ones((2, 4, 6, 32))
    module = Projector(24)
    params = init_module(module, jax.random.key(0), features)
    assert {path: value.shape for path, value in params.items()} == {
        "norm/scale": (128,),
        "norm/bias": (128,),
        "fc1/kernel": (128, 24),
        "fc1/bias": (24,),
        "fc2/kernel": (24, 24),
        "fc2/bias": (24,),
    }
    assert apply_module(module, params, "", features).shape == (2, 6, 24)
    assert set(module_axes(module, features)) == set(params)
    with pytest.raises(UserError, match="3 x 4"):
        apply_module(module, params, "", jnp.ones((1, 3, 4, 32)))
    heads = init_module(TextHiddenFcs(8), jax.random.key(0), jnp.ones((2, 3, 24)))
    assert {path: value.shape for path, value in heads.items()} == {
        "fc1/kernel": (24, 24),
        "fc1/bias": (24,),
        "fc2/kernel": (24, 8),
        "fc2/bias": (8,),
    }
