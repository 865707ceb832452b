"""Does every device hold its part of the weights, and no more? What a mesh does not divide is held again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from earthmind_jax.distributed.sharding import RULES, param_shardings
from earthmind_jax.errors import UserError
from earthmind_jax.nn.param import Axes

NOTICEABLE = 64 * 2**20
"""Bytes below which a surplus does no harm: toy models, and a large model's norms on very many devices."""
NAMED = 3  # parameters that the message names

Shapes = Mapping[str, jax.ShapeDtypeStruct | jax.Array]


def weight_ways(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the weights are cut: fsdp x tensor."""
    return mesh.shape["fsdp"] * mesh.shape["tensor"]


def surplus(shapes: Shapes, shardings: Mapping[str, NamedSharding], ways: int) -> dict[str, float]:
    """Bytes of each parameter that a device holds beyond one of ``ways`` equal parts."""
    return {
        path: (math.prod(shardings[path].shard_shape(x.shape)) - math.prod(x.shape) / ways) * x.dtype.itemsize
        for path, x in shapes.items()
    }


def check_balance(shapes: Shapes, axes: Mapping[str, Axes], mesh: Mesh | AbstractMesh, allowed: float) -> None:
    """Raise a UserError where the devices of ``mesh`` hold noticeably more than their part of the parameters.

    Args:
      shapes: of the parameters, as they are stored.
      allowed: surplus over a device's part, relative to the part (``MeshConfig.surplus``).
    """
    over = _surplus_on(shapes, axes, mesh)
    if _fits(shapes, mesh, over, allowed):
        return
    worst = sorted(over, key=lambda path: -over[path])[:NAMED]
    shardings = param_shardings({path: shapes[path] for path in worst}, axes, mesh)
    lines = []
    for path in worst:
        shape = shapes[path].shape
        cut = math.prod(shape) // math.prod(shardings[path].shard_shape(shape))
        rules = ", ".join(f"{name}: {RULES[name] or 'whole'}" for name in axes[path] if name is not None)
        lines.append(f"{path} {tuple(shape)} ({rules}) divides into {cut}")
    part = _bytes(shapes) / weight_ways(mesh)
    raise UserError(
        f"On the mesh {_sizes(mesh)} each device would hold {sum(over.values()) / part:.0%} more than its part of the "
        f"weights ({sum(over.values()) / 2**20:,.0f} MiB), because not all of them divide by {weight_ways(mesh)}: "
        f"{'; '.join(lines)}. {_advice(shapes, axes, mesh, allowed)}"
    )


def _advice(shapes: Shapes, axes: Mapping[str, Axes], mesh: Mesh | AbstractMesh, allowed: float) -> str:
    """The mesh of the same devices that fits and cuts the weights finest, the tensor axis as near as possible."""
    devices = math.prod(mesh.shape.values())
    sizes = [
        (devices // (fsdp * tensor), fsdp, tensor)
        for fsdp in _divisors(devices)
        for tensor in _divisors(devices // fsdp)
        if fsdp * tensor <= weight_ways(mesh)
    ]
    for data, fsdp, tensor in sorted(sizes, key=lambda s: (-s[1] * s[2], abs(s[2] - mesh.shape["tensor"]))):
        other = AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        if _fits(shapes, other, _surplus_on(shapes, axes, other), allowed):
            return f"The mesh {_sizes(other)} fits; or raise mesh.surplus."
    raise AssertionError("A mesh of data alone has no surplus.")


def _surplus_on(shapes: Shapes, axes: Mapping[str, Axes], mesh: Mesh | AbstractMesh) -> dict[str, float]:
    return surplus(shapes, param_shardings(shapes, axes, mesh), weight_ways(mesh))


def _fits(shapes: Shapes, mesh: Mesh | AbstractMesh, over: Mapping[str, float], allowed: float) -> bool:
    return sum(over.values()) <= max(NOTICEABLE, allowed * _bytes(shapes) / weight_ways(mesh))


def _bytes(shapes: Shapes) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())


def _sizes(mesh: Mesh | AbstractMesh) -> str:
    return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
