"""The training state: what exists, in which dtype, and where it lives."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import support

from earthmind_jax.config import Group, MeshConfig, Precision
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import bytes_per_device
from earthmind_jax.models import api
from earthmind_jax.train import state as state_module
from earthmind_jax.train.state import create, state_shardings

GROUPS = (Group(pattern="vision/"), Group(pattern="lm/embed"), Group(pattern=".*", learning_rate=1.0))


def config(**precision):
    model = dataclasses.replace(support.model(grounding=None), precision=Precision(**precision))
    return support.run_config(model, GROUPS)


def moments(state):
    """Shapes of the optimiser's arrays, without its counters."""
    return sorted(x.shape for x in jax.tree.leaves(state.opt) if x.ndim)


def test_the_optimiser_knows_trainables_only():
    state, _ = state_shardings(config(), make_mesh())
    assert set(state.trainable) | set(state.frozen) == set(api.shapes(config().model))
    assert all(path.startswith(("vision/", "lm/embed")) for path in state.frozen)
    assert not any(path.startswith(("vision/", "lm/embed")) for path in state.trainable)
    assert moments(state) == sorted([x.shape for x in state.trainable.values() if x.ndim] * 2)


def test_dtypes_follow_the_policy():
    state, _ = state_shardings(config(compute="bfloat16"), make_mesh())
    assert {x.dtype for x in state.trainable.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in state.frozen.values()} == {jnp.dtype("bfloat16")}
    state, _ = state_shardings(config(), make_mesh())
    assert {x.dtype for x in state.params.values()} == {jnp.dtype("float32")}


def test_moments_are_sharded_like_their_parameters():
    _, shardings = state_shardings(config(), make_mesh(MeshConfig(data=1, fsdp=8)))
    kernel = "lm/blocks/mlp/up/kernel"
    assert shardings.trainable[kernel].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    found = [
        s.spec
        for path, s in jax.tree_util.tree_leaves_with_path(shardings.opt)
        if any(getattr(key, "key", None) == kernel for key in path)
    ]
    assert found == [shardings.trainable[kernel].spec] * 2


def test_given_parameters_are_placed_as_they_are():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    params = jax.device_put(support.params(config().model), jax.devices()[0])  # as a checkpoint gives them
    with jax.set_mesh(mesh):
        state, _ = create(config(), mesh, params)
    for path, x in state.params.items():
        np.testing.assert_array_equal(x, params[path], err_msg=path)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in params.values())
    assert bytes_per_device(state.params) < 0.5 * whole


def test_random_parameters_do_not_depend_on_the_mesh():
    one, _ = create(config(), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    many, _ = create(config(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert int(one.step) == 0
    for path, x in one.params.items():
        np.testing.assert_allclose(x, many.params[path], atol=1e-6, err_msg=path)
    other, _ = create(dataclasses.replace(config(), seed=1), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    name = "projector/fc1/kernel"
    assert np.abs(np.asarray(other.params[name]) - np.asarray(one.params[name])).max() > 0


def test_random_parameters_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    whole, _ = create(config(), make_mesh())
    monkeypatch.setattr(state_module, "BORN", 8000)
    parts, _ = create(config(), make_mesh())
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
