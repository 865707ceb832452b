"""Adapters on a frozen base: of the base there is one copy, and no gradient, master or moment of it ever exists."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
import support

from earthmind_jax.config import Group, LoraConfig, MeshConfig, Precision
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.train.state import state_shardings
from earthmind_jax.train.step import compile_ahead

GROUPS = (Group(pattern="lora/", learning_rate=1.0), Group(pattern=".*"))


def run_config(**precision):
    """A base of 50 MB in float32 under adapters of rank 2, so that a second copy would stand out."""
    model = support.model("average", None)
    lm = dataclasses.replace(model.lm, width=512, mlp=2048, depth=4, lora=LoraConfig(rank=2))
    return support.run_config(dataclasses.replace(model, lm=lm, precision=Precision(**precision)), GROUPS)


def size(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_state_of_a_frozen_base(compute):
    state, _ = state_shardings(run_config(compute=compute), make_mesh())
    assert all(path.startswith("lora/") for path in state.trainable)
    assert not any(path.startswith("lora/") for path in state.frozen)
    assert {x.dtype for x in state.frozen.values()} == {jnp.dtype(compute)}
    assert {x.dtype for x in state.trainable.values()} == {jnp.dtype("float32")}
    # Two moments of each adapter and some counters.
    assert 2 * size(state.trainable) <= size(state.opt) < 2 * size(state.trainable) + 100
    assert size(state.frozen) > 50 * size(state.trainable)


@pytest.mark.parametrize(("remat", "limit"), [("full", 0.8), ("none", 1.2)])
def test_the_step_makes_no_second_copy_of_the_base(remat, limit):
    run, mesh = run_config(), make_mesh(MeshConfig(data=1, fsdp=4, tensor=1), jax.devices()[:4])
    lm = dataclasses.replace(run.model.lm, remat=remat)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, lm=lm))
    batch = support.scenes(run.model, count=4)
    memory = compile_ahead(run, mesh, batch).memory_analysis()
    state, shardings = state_shardings(run, mesh)
    held = sum(
        math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    assert held < 1.1 * size(state) / 4
    # The whole state goes in and comes out in the same memory: what is frozen is passed through.
    assert memory.alias_size_in_bytes == pytest.approx(held, rel=0.01)
    assert memory.argument_size_in_bytes == pytest.approx(held + size(batch) / 4, rel=0.05)
    # Gradients of the base would add a quarter of it; its layers, brought together and kept, all of it.
    assert memory.temp_size_in_bytes < limit * size(state.frozen)
