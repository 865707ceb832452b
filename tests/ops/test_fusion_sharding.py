"""The result does not depend on how samples and width lie on the devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from fusion_cases import same, scene, trained
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from earthmind_jax.ops import fusion


@pytest.mark.parametrize(("mode", "block"), [*((m, 1024) for m in fusion.FUSION), ("hca", 5), ("release_2025_10", 5)])
def test_sharded_is_unsharded(mode, block):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    x, params = scene(batch=4, tiles=2), trained(mode)
    x["optical_valid"] = jnp.ones((4, 2, 12), bool).at[1, 0, 3:].set(False).at[2].set(False)

    def spread(*names):
        return NamedSharding(mesh, PartitionSpec(*names))

    inputs = {
        "optical": spread("data", None, None, "tensor"),
        "sar": spread("data", None, None, "tensor"),
        "text": spread("data", None, "tensor"),
        "optical_valid": spread("data"),
    }
    weights = {n: spread(*(["tensor"] if v.ndim and v.shape[0] == 16 else [])) for n, v in params.items()}

    def loss(x, params):
        rest = {"text": x["text"], "optical_valid": x["optical_valid"]}
        fused = fusion.fuse(mode, params, x["optical"], x["sar"], **rest, block=block)
        return (fused.tokens**2).sum(), fused

    step = jax.value_and_grad(loss, argnums=1, has_aux=True)
    (_, want), want_gradients = jax.jit(step)(x, params)
    (_, got), gradients = jax.jit(step, in_shardings=(inputs, weights))(
        jax.device_put(x, inputs), jax.device_put(params, weights)
    )
    assert len(got.tokens.sharding.device_set) == 8
    same(got, want, 1e-5)
    same(gradients, want_gradients, 2e-4)
