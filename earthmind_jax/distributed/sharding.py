"""Logical axis -> mesh axis rules, in one strict table.

Logical names are declared where a parameter is created (:mod:`earthmind_jax.nn.param`). A name that is not in the table
is an error, so that a renamed axis cannot silently become replicated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from earthmind_jax.types import Batch, Params

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "embed_out": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head": None,
    "mlp": "tensor",
    "vocab": "tensor",
    # The feature dimension of the table stays whole: sharded over fsdp, XLA rematerialises the whole gather.
    "vocab_embed": None,
    "patch": None,
    "position": None,
    "layers": None,
    "rank": None,
    "win": None,
    "channel": None,
    "hidden": None,
}


def partition_spec(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of one array: a logical axis takes its mesh axis if that divides the dimension and is still free.

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
    shapes: Mapping[str, jax.ShapeDtypeStruct | jax.Array], axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Sharding of every parameter path from its logical axes."""
    return {path: NamedSharding(mesh, partition_spec(x.shape, axes[path], mesh)) for path, x in shapes.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over both the data and the fsdp axis."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Place a host batch on the mesh, split over its leading axis."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def bytes_per_device(params: Params) -> int:
    """Bytes that one device holds of these parameters."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in params.values())
