"""Large parameters over the mesh axes that the rules left unused.

Most weights take fsdp and tensor by the rules. The rest are few but heavy: vocabularies are odd numbers, SAM2's early
stages are narrower than a large mesh, two key-value heads do not divide over eight devices. Their shards are cut where
they divide: the unused axis goes to another dimension, or, where none takes it whole, its factors go to several. A
factor is an axis of a finer view of the same mesh (the same devices in the same order), which programs may mix with the
mesh itself.
"""

from __future__ import annotations

import functools
import math

from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

SMALLEST = 2**14
"""Elements from which a parameter is worth it; smaller ones (norms, biases) cost more in messages than in memory."""

WEIGHT_AXES = ("fsdp", "tensor")


def spread(
    shape: tuple[int, ...], axes: tuple[str | None, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> NamedSharding:
    """``spec`` of an array and, if the array is large, the weight axes that it leaves unused.

    The stacked axis of scanned layers stays whole, since every step of the scan reads one layer from all devices.

    Args:
      axes: logical names of the array's axes.
      spec: its partition by the rules, one entry for each axis.
    """
    parts = [[entry] if isinstance(entry, str) else list(entry or ()) for entry in spec]
    unused = [a for a in WEIGHT_AXES if mesh.shape[a] > 1 and not any(a in part for part in parts)]
    if not unused or math.prod(shape) < SMALLEST:
        return NamedSharding(mesh, spec)
    cuts = {}
    for axis in unused:
        rooms = [
            1 if name == "layers" else size // math.prod(_ways(p, mesh, cuts) for p in part)
            for size, name, part in zip(shape, axes, parts, strict=True)
        ]
        # A dimension that is cut already comes first: what is gathered there is gathered along with it.
        order = sorted(range(len(shape)), key=lambda d: (not parts[d], -rooms[d]))
        cuts[axis] = _factors(mesh.shape[axis], rooms, order)
        for i, (dim, _) in enumerate(cuts[axis]):
            parts[dim].append(axis if _whole(cuts[axis], mesh.shape[axis]) else f"{axis}.{i}")
    split = {a: tuple(n for _, n in pieces) for a, pieces in cuts.items() if not _whole(pieces, mesh.shape[a])}
    view = _finer(mesh, tuple(sorted(split.items()))) if any(split.values()) else mesh
    entries = [part[0] if len(part) == 1 else tuple(part) or None for part in parts]
    return NamedSharding(view, PartitionSpec(*entries))


def _factors(size: int, rooms: list[int], order: list[int]) -> list[tuple[int, int]]:
    """(dimension, factor of ``size``) pairs, the largest factors first; together they are ``size`` if that can be."""
    rooms, pieces = list(rooms), []
    while size > 1:
        best = max(order, key=lambda d: math.gcd(rooms[d], size))  # the first of equals
        factor = math.gcd(rooms[best], size)
        if factor == 1:
            break
        pieces.append((best, factor))
        rooms[best], size = rooms[best] // factor, size // factor
    return pieces


def _whole(pieces: list[tuple[int, int]], size: int) -> bool:
    return len(pieces) == 1 and pieces[0][1] == size


def _ways(name: str, mesh: Mesh | AbstractMesh, cuts: dict[str, list[tuple[int, int]]]) -> int:
    axis, _, piece = name.partition(".")
    return cuts[axis][int(piece)][1] if piece else mesh.shape[axis]


@functools.lru_cache(maxsize=256)
def _finer(mesh: Mesh | AbstractMesh, split: tuple[tuple[str, tuple[int, ...]], ...]) -> Mesh | AbstractMesh:
    """``mesh`` with some axes as several, ``name.0``, ``name.1`` ...: the given factors, and what remains."""
    factors = dict(split)
    names: list[str] = []
    sizes: list[int] = []
    for name, size in mesh.shape.items():
        pieces = factors.get(name, ())
        pieces = (*pieces, size // math.prod(pieces)) if pieces else (size,)
        names += [f"{name}.{i}" for i in range(len(pieces))] if len(pieces) > 1 else [name]
        sizes += pieces
    types = (AxisType.Auto,) * len(names)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(tuple(sizes), tuple(names), axis_types=types)
    return Mesh(mesh.devices.reshape(sizes), tuple(names), axis_types=types)
