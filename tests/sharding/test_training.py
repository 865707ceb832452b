"""Training the whole tiny model on eight devices is training it on one."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
import support

from earthmind_jax.config import Group, MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import bytes_per_device, put_batch
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step

WHOLE = support.model()
# Every component once: compiling takes the time, not the twenty steps.
GROUNDING = dataclasses.replace(WHOLE.grounding, stages=(1, 1, 1, 1), global_blocks=(2,), decoder_depth=1)
MODEL = dataclasses.replace(WHOLE, grounding=GROUNDING)
RUN = support.run_config(MODEL, (Group(pattern="grounding/prompt/"), *support.ALL))
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "fsdp and tensor": (1, 4, 2)}
STEPS = 20


@functools.cache
def batch():
    return support.scenes(MODEL)


def train(sizes):
    """(losses of each step, first state, last state, compiled variants) on a mesh (data, fsdp, tensor)."""
    data, fsdp, tensor = sizes
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: math.prod(sizes)])
    with jax.set_mesh(mesh):
        first, shardings = create(RUN, mesh, support.params(MODEL))
        step, state, losses = compile_step(RUN, mesh, shardings), first, []
        placed = put_batch(batch(), mesh)
        for _ in range(STEPS):
            state, metrics = step(state, placed)
            losses.append([float(metrics[name]) for name in ("loss", "text", "bce", "dice")])
    return np.array(losses), first, state, step._cache_size()


@functools.cache
def one_device():
    losses, _, state, _ = train((1, 1, 1))
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("name", MESHES)
def test_losses_are_those_of_one_device(name):
    losses, first, state, compiled = train(MESHES[name])
    wanted, _ = one_device()
    np.testing.assert_allclose(losses, wanted, atol=1e-4)
    assert losses[-1, 0] < losses[0, 0]
    assert compiled == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(first)), "the state is donated"
    kernel = "lm/blocks/mlp/up/kernel"
    shape = state.trainable[kernel].shape
    moments = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(state.opt)
        if any(getattr(key, "key", None) == kernel for key in path)
    ]
    _, fsdp, tensor = MESHES[name]
    for x in (state.trainable[kernel], *moments):
        assert x.sharding.shard_shape(shape) == (shape[0], shape[1] // fsdp, shape[2] // tensor)
    whole = sum(x.nbytes for x in state.params.values())
    assert bytes_per_device(state.params) <= (whole if name == "data" else 0.6 * whole)
