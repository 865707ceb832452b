"""Training state: gradients, optimiser moments and masters exist for the trainable parameters only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.balance import check_balance
from earthmind_jax.distributed.sharding import param_shardings, replicated
from earthmind_jax.models import api
from earthmind_jax.train.groups import Assignment, assign, optimiser, split
from earthmind_jax.types import Params

RUN_ONCE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options for programs that run once: on a CPU, compiling takes most of their time."""


BORN = 2**28
"""Random numbers drawn at once for each device: 1 GiB in float32."""


@struct.dataclass
class TrainState:
    """``trainable`` in the parameter dtype, ``frozen`` in the compute dtype, both flat path-keyed dicts
    (:func:`~earthmind_jax.train.groups.split`)."""

    step: jax.Array
    trainable: Params
    frozen: Params
    opt: optax.OptState
    rng: jax.Array

    @property
    def params(self) -> Params:
        return api.combine(self.frozen, self.trainable)


def assignment(config: RunConfig) -> Assignment:
    """The freeze table of a run: every parameter of the model has exactly one group."""
    return assign(sorted(api.shapes(config.model)), config.optim.groups)


def make_optimiser(config: RunConfig) -> optax.GradientTransformation:
    """The optimiser of a run; the same every time it is made."""
    axes = api.param_axes(config.model) if config.optim.method == "muon" else None
    return optimiser(config.optim, assignment(config), config.steps, axes)


def build(config: RunConfig, params: Params) -> TrainState:
    """State at step 0 from initialised or converted parameters (traceable)."""
    table = assignment(config)
    dtype, axes = jnp.dtype(config.model.precision.compute), api.param_axes(config.model)
    trainable, frozen = split(params, table, dtype, axes)
    tx = make_optimiser(config)
    rng = jax.random.key_data(jax.random.key(config.seed + 1))
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), rng)


def state_shardings(config: RunConfig, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(abstract state, sharding of every leaf): optimiser moments are sharded as the parameters they belong to.

    Raises:
      UserError: the mesh does not divide the weights (:func:`check_balance`), or the freeze table does not fit them.
    """
    abstract = jax.eval_shape(lambda params: build(config, params), api.shapes(config.model))
    axes = api.param_axes(config.model)
    # Of a vocabulary whose last rows learn alone, the whole counts.
    check_balance({**abstract.trainable, **abstract.frozen}, axes, mesh, config.mesh.surplus)
    whole = replicated(mesh)

    def of(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for key in reversed(path):
            name = getattr(key, "key", None)
            if name in axes:
                return param_shardings({name: leaf}, axes, mesh)[name]
        return whole

    return abstract, jax.tree_util.tree_map_with_path(of, abstract)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that this process holds whole, on the devices of all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _born(config: RunConfig, abstract: TrainState, shardings: TrainState) -> TrainState:
    """Random weights, some leaves at a time: a program that draws them all holds several times their size."""
    leaves, tree = jax.tree.flatten(abstract)
    places = jax.tree.leaves(shardings)
    groups: list[list[int]] = [[]]
    room = BORN * len(places[0].device_set)
    for i, leaf in enumerate(leaves):
        if groups[-1] and sum(leaves[j].size for j in groups[-1]) + leaf.size > room:
            groups.append([])
        groups[-1].append(i)
    made: list[Any] = []
    for group in groups:

        def draw(seed: jax.Array, group: list[int] = group) -> list[jax.Array]:
            # What a group does not return is not computed.
            whole = jax.tree.leaves(build(config, api.init(config.model, jax.random.key(seed))))
            return [whole[i] for i in group]

        made += jax.jit(draw, out_shardings=[places[i] for i in group], compiler_options=RUN_ONCE)(config.seed)
    return jax.tree.unflatten(tree, made)


def create(config: RunConfig, mesh: Mesh, params: Params | None = None) -> tuple[TrainState, TrainState]:
    """(state placed on the mesh, its shardings). Random weights are born sharded: no host ever holds them whole.

    Args:
      params: weights to start from (flat); random ones from ``config.seed`` where None.
    """
    abstract, shardings = state_shardings(config, mesh)
    if params is None:
        return _born(config, abstract, shardings), shardings
    # Loaded weights may be committed to one device, which a program over the mesh would refuse.
    where = {**shardings.trainable, **shardings.frozen}
    placed = {path: _place(x, where[path]) for path, x in params.items()}
    wanted = api.shapes(config.model)

    def typed(params: Params) -> TrainState:
        """Masters have the parameters' dtype, whatever the checkpoint was stored in."""
        return build(config, {path: x.astype(wanted[path].dtype) for path, x in params.items()})

    return jax.jit(typed, out_shardings=shardings, compiler_options=RUN_ONCE)(placed), shardings
