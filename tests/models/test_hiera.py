"""Hiera and its pyramid: the published plan of blocks, sizes, and what may depend on what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import GroundingConfig, Precision
from earthmind_jax.models import functional
from earthmind_jax.models.hiera import FpnNeck, Hiera, block_specs, level_positions
from earthmind_jax.models.sam2_presets import sam2_preset

TINY = GroundingConfig(
    image_size=64, embed_dim=8, heads=1, stages=(1, 1, 2, 1), global_blocks=(3,), windows=(8, 4, 6, 3), pos_grid=(3, 4),
    width=16, decoder_heads=2, decoder_mlp=24, iou_hidden=16,
)  # fmt: skip

QUICK = {"xla_backend_optimization_level": 0}  # sizes are tiny and compilation is most of the time


def _quick(function):
    return jax.jit(function, compiler_options=QUICK)


@pytest.fixture(scope="module")
def trunk():
    module = Hiera(TINY, Precision())
    params = _quick(lambda key: functional.init_module(module, key, jnp.zeros((1, 64, 64, 3))))(jax.random.key(0))
    return _quick(module.apply), functional.unflatten(params)


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)


def test_blocks_of_the_large_model():
    specs = block_specs(sam2_preset("sam2_hiera_large"))
    assert len(specs) == 48
    assert [i for i, spec in enumerate(specs) if spec.pool] == [2, 8, 44]
    assert [specs[i].window for i in (0, 2, 3, 8, 9, 44, 45)] == [8, 8, 4, 4, 16, 16, 8]
    assert [i for i, spec in enumerate(specs) if spec.window == 0] == [23, 33, 43]
    assert [i for i, spec in enumerate(specs) if spec.last] == [1, 7, 43, 47]
    assert {(spec.width, spec.heads) for spec in specs} == {(144, 2), (288, 4), (576, 8), (1152, 16)}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sam2_hiera_tiny", 26_849_472),
        ("sam2.1_hiera_small", 33_947_328),
        ("sam2_hiera_base_plus", 68_675_712),
        ("sam2.1_hiera_large", 212_149_296),
    ],
)
def test_published_parameter_counts(name, count):
    module, key = Hiera(sam2_preset(name), Precision()), jax.random.key(0)
    shapes = jax.eval_shape(lambda: functional.init_module(module, key, jnp.zeros((1, 64, 64, 3))))
    assert sum(x.size for x in shapes.values()) == count


def test_every_parameter_has_axes():
    axes = functional.module_axes(Hiera(TINY, Precision()), jnp.zeros((1, 64, 64, 3)))
    assert axes["block_1/attn/q/kernel"] == ("embed", "heads", "head")
    assert axes["block_1/attn/out/kernel"] == ("heads", "head", "embed")
    assert axes["block_1/mlp/fc1/kernel"] == ("embed", "mlp")
    assert axes["block_1/proj/kernel"] == ("embed", "embed_out")
    assert "block_0/proj/kernel" not in axes


def test_stages_shrink_and_widen(trunk, image):
    apply, variables = trunk
    stages = apply(variables, image)
    assert [x.shape for x in stages] == [(2, 16, 24, 8), (2, 8, 12, 16), (2, 4, 6, 32), (2, 2, 3, 64)]
    assert all(bool(jnp.isfinite(x).all()) for x in stages)


def test_images_do_not_see_each_other(trunk, image):
    apply, variables = trunk
    both = apply(variables, image)
    other = apply(variables, image.at[1].set(-3.0))
    for x, y in zip(both, other, strict=True):
        np.testing.assert_allclose(x[0], y[0], atol=1e-6)
        assert float(jnp.abs(x[1] - y[1]).max()) > 1e-2


def test_windows_keep_the_first_stage_local(trunk, image):
    """A pixel moves only its own window of 8 x 8 cells in the first stage."""
    apply, variables = trunk
    moved = jnp.abs(apply(variables, image)[0] - apply(variables, image.at[0, 10, 10].add(5.0))[0]).max((0, 3))
    assert float(moved[:8, :8].max()) > 1e-3
    assert float(moved.at[:8, :8].set(0).max()) == 0.0


def test_gradients_are_finite(trunk, image):
    apply, variables = Hiera(TINY, Precision()).apply, trunk[1]
    grads = _quick(jax.grad(lambda v: sum((x**2).mean() for x in apply(v, image))))(variables)
    flat = functional.flatten(grads)
    assert all(bool(jnp.isfinite(x).all()) for x in flat.values())
    assert all(float(jnp.abs(x).max()) > 0 for path, x in flat.items() if not path.endswith("attn/k/bias"))


def test_bfloat16_stays_close(trunk, image):
    apply, variables = trunk
    half = _quick(Hiera(TINY, Precision(compute="bfloat16")).apply)(variables, image)
    for x, y in zip(apply(variables, image), half, strict=True):
        assert y.dtype == jnp.bfloat16
        a, b = x.ravel(), y.ravel().astype(jnp.float32)
        assert float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)) > 0.999


def test_only_top_down_levels_see_the_level_below():
    rng = np.random.default_rng(1)
    stages = [jnp.asarray(rng.normal(size=(1, 32 >> i, 16 >> i, 8 << i)), jnp.float32) for i in range(4)]
    neck = FpnNeck(TINY, Precision())
    variables = functional.unflatten(functional.init_module(neck, jax.random.key(0), tuple(stages)))
    levels = neck.apply(variables, tuple(stages))
    assert [x.shape for x in levels] == [(1, 32 >> i, 16 >> i, 16) for i in range(4)]
    moved = neck.apply(variables, (*stages[:3], stages[3] + 1.0))
    changed = [bool(jnp.any(x != y)) for x, y in zip(levels, moved, strict=True)]
    assert changed == [False, False, True, True]  # level 1 is no top-down level, so nothing passes it
    assert [x.shape for x in level_positions(levels)] == [(32 >> i, 16 >> i, 16) for i in range(4)]
