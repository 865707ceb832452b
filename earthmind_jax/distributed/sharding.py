"""Logical axis -> mesh axis rules, in one strict table.

Logical names are declared where a parameter is created (:mod:`earthmind_jax.nn.param`). A name that is not in the table
is an error, so that a renamed axis cannot silently become replicated. Where the rules leave a mesh axis of a large
parameter unused, :mod:`earthmind_jax.distributed.spread` finds it another place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from earthmind_jax.config import RunConfig
from earthmind_jax.distributed.spread import spread
from earthmind_jax.errors import UserError
from earthmind_jax.types import Batch, Params

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "replica": "data",  # samples of one copy of the weights, while each device looks up its part of every row
    "embed": "fsdp",
    "embed_out": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "vocab_embed": "fsdp",
    "patch": None,
    "position": None,
    "layers": None,
    "rank": None,
    "win": None,
    "channel": None,
    "hidden": None,
}


def partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """What the rules say of one array: a logical axis takes its mesh axis if that divides the dimension and is free.

    Raises:
      KeyError: a logical name without a rule.
    """
    used: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for size, name in zip(shape, axes, strict=True):
        target = None if name is None else RULES[name]
        names = (target,) if isinstance(target, str) else (target or ())
        ways = 1
        for axis in names:
            ways *= mesh.shape[axis]
        if not names or used & set(names) or size % ways:
            spec.append(None)
            continue
        used |= set(names)
        spec.append(target)
    return PartitionSpec(*spec)


def param_shardings(
    shapes: Mapping[str, jax.ShapeDtypeStruct | jax.Array],
    axes: Mapping[str, tuple[str | None, ...]],
    mesh: Mesh | AbstractMesh,
) -> dict[str, NamedSharding]:
    """Sharding of every parameter path from its logical axes.

    A large parameter for which the rules leave fsdp or tensor unused (no dimension has the name, or the size does not
    divide, as that of the odd published vocabularies) is split further, see :func:`spread`.
    """
    return {
        path: spread(x.shape, axes[path], partition_spec(x.shape, axes[path], mesh), mesh) for path, x in shapes.items()
    }


def step_rules() -> AbstractContextManager[None]:
    """The table by which :func:`earthmind_jax.nn.param.constrain` pins arrays inside a step that is being traced.

    Weights are brought together over fsdp where they are used, so that samples stay on their devices; left free, XLA
    splits features and replicates samples instead, which costs memory and repeats work.
    """
    return nn.logical_axis_rules(tuple({**RULES, "embed": None}.items()))


def batch_shards() -> int:
    """Devices that the batch of the step being traced is split over; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in RULES["batch"])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over both the data and the fsdp axis."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Raise a UserError unless the batch divides over the mesh, and each process has samples of its own to feed.

    Every process reads another part of the batch, so no two may hold the same samples.
    """
    size = config.data.batch_size
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = config.optim.accumulate
    if size < 1 or size % (ways * parts):
        by = f" times optim.accumulate {parts}" if parts > 1 else ""
        raise UserError(f"data.batch_size {size} does not divide over {ways} batch shards (data x fsdp){by}.")
    feeders = [{device.process_index for device in row} for row in mesh.devices.reshape(ways, -1)]
    processes = len(set().union(*feeders))
    if size % processes:
        raise UserError(f"data.batch_size {size} does not divide over {processes} processes.")
    if any(len(row) > 1 for row in feeders):
        raise UserError(
            f"The mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']} tensor={mesh.shape['tensor']} splits layers "
            f"between processes; choose a tensor axis that divides their {mesh.size // processes} devices each."
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Place a host batch on the mesh, split over its leading axis."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def bytes_per_device(params: Params) -> int:
    """Bytes that one device holds of these parameters."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in params.values())
