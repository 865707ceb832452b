"""The fusion module declares the parameters of its mode, with axes, and runs the plain function."""

from __future__ import annotations

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from earthmind_jax.config import FUSION_MODES, FusionConfig
from earthmind_jax.models.fusion import Fusion
from earthmind_jax.nn.param import AXES
from earthmind_jax.ops import fusion


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    pair = (jax.random.normal(key, (2, 2, 9, 8)) for key in keys[:2])
    valid = jnp.ones((2, 2, 9), bool).at[0, 0, 4:].set(False)
    return (*pair, valid, ~valid | valid, jax.random.normal(keys[2], (2, 4, 8)), jnp.ones((2, 4), bool))


@pytest.mark.parametrize(("mode", "rank"), [*((mode, 0) for mode in FUSION_MODES), ("hca_plus", 3), ("hca_gated", 3)])
def test_module_is_the_function(mode, rank):
    config = FusionConfig(mode=mode, map_rank=rank, quality_hidden=5, temperature_init=2.0)
    module, x = Fusion(config, width=8), inputs()
    boxed = jax.jit(module.init)(jax.random.key(1), *x)
    params = nn.unbox(boxed).get("params", {})
    specs = fusion.fusion_specs(mode, 8, map_rank=rank, quality_hidden=5, temperature_init=2.0)
    assert {k: v.shape for k, v in params.items()} == {k: s.shape for k, s in specs.items()}
    axes = flatten_dict(nn.get_partition_spec(boxed).get("params", {}), sep="/")
    assert {k: tuple(v) for k, v in axes.items()} == {k: s.axes for k, s in specs.items()}
    assert all(axis in AXES for s in specs.values() for axis in s.axes if axis)
    if "log_temperature" in params:
        assert jnp.allclose(jnp.exp(params["log_temperature"]), 2.0)
    masks = {"optical_valid": x[2], "sar_valid": x[3], "text": x[4], "text_valid": x[5]}
    want = jax.jit(functools.partial(fusion.fuse, mode, map_rank=rank))(params, *x[:2], **masks)
    chex.assert_trees_all_close(jax.jit(module.apply)({"params": params}, *x), want, atol=1e-6)


def test_the_gate_of_the_june_release_can_be_off():
    x = inputs()
    module = Fusion(FusionConfig(mode="release_2025_06"), width=8)
    variables = nn.unbox(module.init(jax.random.key(1), *x))
    plain = Fusion(FusionConfig(mode="concat"), width=8).apply({}, *x)
    chex.assert_trees_all_equal(module.apply(variables, *x, gate=False), plain)
    assert jnp.abs(module.apply(variables, *x).tokens - plain.tokens).max() > 0.01
