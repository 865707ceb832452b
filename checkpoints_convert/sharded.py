"""A published checkpoint straight onto the devices of a mesh.

Each process reads only the bytes of its own shards, and a stacked parameter is put together on the devices, layer by
layer, so that the host never holds more than one shard of one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from checkpoints_convert.assemble import assemble
from checkpoints_convert.convert import AnyConfig, configure, conversion_plan, whole
from checkpoints_convert.plan import Plan, Step
from checkpoints_convert.reader import Source
from checkpoints_convert.regions import Range, region
from earthmind_jax.distributed.sharding import param_shardings
from earthmind_jax.models import earthmind
from earthmind_jax.types import Params


def convert_sharded(
    source: Any, mesh: Mesh, *, dtype: Any = None, parts: Mapping[str, Any] | None = None, **options: Any
) -> tuple[AnyConfig, Params]:
    """As :func:`checkpoints_convert.convert.convert`, with the parameters sharded over ``mesh`` by the usual rules.

    Args:
      source: a file, a directory, or an open :class:`Source`, readable in every process.
      dtype, options: as there (``config``, ``grounding``, ``fusion``).
      parts: what else belongs to the checkpoint: keyword arguments of :func:`~checkpoints_convert.assemble.assemble`.
    """
    assembled = assemble(source, **(parts or {}))
    layout, config = configure(assembled, options.pop("config", None), **options)
    source = assembled.source
    plan = conversion_plan(source, layout, config, dtype=dtype)
    axes = earthmind.param_axes(whole(config))
    shapes = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype) in plan.targets.items()}
    return config, place_on_mesh(plan, source, param_shardings(shapes, axes, mesh))


def place_on_mesh(plan: Plan, source: Source, shardings: Mapping[str, NamedSharding]) -> Params:
    """The parameters of ``plan``, each with its sharding."""
    makers: dict[str, list[tuple[tuple[int, ...], Step, int]]] = {path: [] for path in plan.targets}
    for step in plan.steps:
        for piece, (path, index) in enumerate(step.places):
            makers[path].append((index, step, piece))
    return {
        path: _assembled(makers[path], source, shape, dtype, shardings[path])
        for path, (shape, dtype) in plan.targets.items()
    }


def _assembled(
    makers: list[tuple[tuple[int, ...], Step, int]],
    source: Source,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding,
) -> jax.Array:
    stacked = len(makers[0][0])
    if not stacked:
        ((_, step, piece),) = makers
        return _layer(step, piece, source, shape, dtype, sharding)
    spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    inner = NamedSharding(sharding.mesh, PartitionSpec(*spec[stacked:]))
    array = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    put = _put(sharding)
    for index, step, piece in makers:
        layer = _layer(step, piece, source, shape[stacked:], dtype, inner)
        array = put(array, layer, np.array(index, np.int32))
    return array


def _put(sharding: NamedSharding) -> Any:
    @partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def put(array: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
        start = (*index, *(0,) * layer.ndim)
        return jax.lax.dynamic_update_slice(array, layer[(None,) * len(index)], start)

    return put


def _layer(
    step: Step, piece: int, source: Source, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding
) -> jax.Array:
    """One target of ``step`` without its stacked axes."""
    sizes, read = dict(step.sizes), {}

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        wanted: tuple[Range, ...] = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        if wanted not in read:  # the same for every device along an axis of the mesh that is not sharded
            part = region(step.how, sizes, piece, wanted)
            block = source.read(step.source, part.source)
            read[wanted] = np.ascontiguousarray(part.forward(block).astype(dtype, copy=False))
        return read[wanted]

    return jax.make_array_from_callback(shape, sharding, shard)
