"""Both sensors of a sample are encoded where the sample lies: no device asks another for a picture."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import support

from earthmind_jax.config import MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import batch_sharding, replicated
from earthmind_jax.models import earthmind
from earthmind_jax.plan.hlo import Program

MODEL = support.model()


def tiles(params, optical, sar):
    return earthmind.encode_sensors(MODEL, params, optical, sar)


def pictures(params, optical, sar):
    return earthmind.image_features(MODEL, params, optical, sar)


@pytest.mark.parametrize(("encoder", "shape"), [(tiles, (8, 2, 32, 32, 3)), (pictures, (8, 64, 64, 3))])
def test_pairs_stay_on_their_devices(encoder, shape):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rng, whole = np.random.default_rng(0), batch_sharding(mesh)
    optical, sar = (jax.device_put(rng.standard_normal(shape, np.float32), whole) for _ in range(2))
    params = jax.device_put(support.params(MODEL), replicated(mesh))
    run = jax.jit(encoder, out_shardings=whole)
    collectives = Program(run.lower(params, optical, sar).compile().as_text()).work().collectives
    assert {kind: traffic.calls for kind, traffic in collectives.items() if traffic.calls} == {}
    # Each sensor's features are those that it has alone; blended, they count alike.
    both, first, second = (run(params, *pair) for pair in ((optical, sar), (optical, None), (None, sar)))
    if encoder is tiles:
        expected = first[0], second[1]
    else:
        expected = jax.tree.map(lambda one, other: (one + other) / 2, first, second)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), both, expected)
