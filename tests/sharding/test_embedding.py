"""The token table is looked up where its columns lie: no device ever holds it, or its gradient, whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.config import MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import batch_sharding, param_shardings, step_rules
from earthmind_jax.nn.embed import TokenEmbed

VOCAB, WIDTH, BATCH, LENGTH = 30011, 256, 8, 32  # an odd vocabulary, as the published ones
AXES = ("vocab", "vocab_embed")


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB + 5], ids=["odd", "even"])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (1, 1, 8)], ids=str)
def test_the_table_is_never_whole(sizes, vocab):
    mesh, layer = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])), TokenEmbed(vocab, WIDTH)
    shape = jax.ShapeDtypeStruct((vocab, WIDTH), jnp.float32)
    (sharding,) = param_shardings({"table": shape}, {"table": AXES}, mesh).values()
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)

    def loss(table, tokens, target):
        return jnp.sum((layer.apply({"params": {"embedding": table}}, tokens) - target) ** 2)

    def step(table, tokens, target):
        with step_rules():
            return table - 0.1 * jax.grad(loss)(table, tokens, target)

    samples = batch_sharding(mesh)
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, in_shardings=(sharding, samples, samples), out_shardings=sharding, donate_argnums=0)
        compiled = jitted.lower(shape, tokens, jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)).compile()
        memory, whole = compiled.memory_analysis(), shape.size * 4
        assert memory.argument_size_in_bytes < 1.1 * whole / (sizes[1] * sizes[2]) + 2**20
        # The gradient and the sum that makes the new table, of this device's columns; replicas then add theirs up.
        assert memory.temp_size_in_bytes < 2.2 * whole / (sizes[1] * sizes[2]) + 2**20
        rng = np.random.default_rng(0)
        table = rng.standard_normal((vocab, WIDTH), np.float32)
        tokens = rng.integers(0, vocab, (BATCH, LENGTH)).astype(np.int32)
        target = rng.standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
        placed = [jax.device_put(x, s) for x, s in ((table, sharding), (tokens, samples), (target, samples))]
        new = compiled(*placed)
    assert new.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(new, jax.jit(step)(table, tokens, target), atol=1e-5)
