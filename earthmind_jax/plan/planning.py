"""A plan: everything about one run on one mesh, put together."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from earthmind_jax.config import MeshConfig, RunConfig, require
from earthmind_jax.distributed.mesh import AXES, mesh_shape
from earthmind_jax.plan import activations, roofline
from earthmind_jax.plan.activations import Activations
from earthmind_jax.plan.compile import Compiled, compile_apart
from earthmind_jax.plan.flops import Flops, step_flops
from earthmind_jax.plan.hardware import Hardware
from earthmind_jax.plan.ledger import Ledger
from earthmind_jax.plan.memory import Held, abstract_mesh, held_per_device, smallest_per_device
from earthmind_jax.plan.roofline import Estimate
from earthmind_jax.plan.shapes import most_tiles

USABLE = 0.92
"""Share of a device's memory that a program gets: the rest is the runtime's, its communication buffers and gaps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs on each device and how fast it can be.

    Attributes:
      sizes: of the mesh (data, fsdp, tensor).
      tiles: a sample in the batch that is planned for.
      smallest: bytes of parameters, optimiser and gradients if divided evenly over fsdp x tensor.
      ideal: of a program that divides its work evenly and sends only what it must; ``partitioned`` as XLA cut it.
      seconds: that planning took.
    """

    config: RunConfig
    hardware: Hardware
    sizes: tuple[int, int, int]
    tiles: int
    held: Held
    smallest: float
    activations: Activations
    flops: Flops
    ideal: Estimate
    compiled: Compiled | None
    partitioned: Estimate | None
    seconds: float

    @property
    def devices(self) -> int:
        return self.sizes[0] * self.sizes[1] * self.sizes[2]

    @property
    def total(self) -> float:
        """Estimated bytes on each device while a step runs."""
        return total_bytes(self.held, self.activations)

    @property
    def fits(self) -> bool:
        return self.total <= USABLE * self.hardware.memory

    @property
    def repeated(self) -> float | None:
        """Products that the compiled program computes, over those that the step needs; above 1, devices repeat work."""
        return None if self.compiled is None else self.compiled.products * self.devices / self.flops.executed


def total_bytes(held: Held, values: Activations) -> float:
    return held.divisible + held.batch + values.total


def make_plan(
    config: RunConfig,
    hardware: Hardware,
    *,
    devices: int | None = None,
    tiles: int | None = None,
    price: float | None = None,
    compiles: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Plan ``config`` on its mesh.

    Args:
      devices: how many there are; the product of the mesh's sizes where None.
      tiles: a sample; those of the largest batch that the run can meet where None.
      price: of a device and hour; the hardware's where None.
      compiles: compile the step too (minutes at published sizes), in a child process.
      announce: told what begins when it takes minutes.

    Raises:
      UserError: a mesh that does not match the devices, a batch that does not divide over it, or a broken freeze table.
      WorkError: the compilation failed.
    """
    start = time.perf_counter()
    sizes = planned_mesh(config.mesh, devices)
    config = dataclasses.replace(config, mesh=with_sizes(config.mesh, sizes))
    check_batch(config, sizes)
    tiles = most_tiles(config) if tiles is None else tiles
    require(tiles > 0, f"A sample has at least one tile, not {tiles}.")
    mesh, ledger = abstract_mesh(sizes), Ledger(config, flash_used(config, hardware))
    held, flops = (
        held_per_device(config, mesh, tiles),
        step_flops(config, tiles, flash=ledger.flash, shards=sizes[0] * sizes[1]),
    )
    values = activations.estimate(config, sizes, tiles, ledger)
    cost = hardware.price if price is None else price
    count = sizes[0] * sizes[1] * sizes[2]
    load = roofline.ideal_load(config, sizes, flops, held, values, ledger, hardware)
    compiled = partitioned = None
    if compiles:
        announce(f"compiling the step for {count} devices; --no-compile gives the arithmetic alone")
        compiled = compile_apart(config, count, tiles, hardware.host)
        real = roofline.compiled_load(compiled, load.moved)
        partitioned = roofline.estimate(config, flops, real, count, hardware, cost)
    return Plan(
        config=config,
        hardware=hardware,
        sizes=sizes,
        tiles=tiles,
        held=held,
        smallest=smallest_per_device(config, mesh),
        activations=values,
        flops=flops,
        ideal=roofline.estimate(config, flops, load, count, hardware, cost),
        compiled=compiled,
        partitioned=partitioned,
        seconds=time.perf_counter() - start,
    )


def planned_mesh(mesh: MeshConfig, devices: int | None) -> tuple[int, int, int]:
    """Sizes of the mesh on ``devices``, or on as many as it names.

    Raises:
      UserError: it does not match the devices, or leaves an axis open and no number of devices is given.
    """
    if devices is None:
        sizes = (mesh.data, mesh.fsdp, mesh.tensor)
        require(-1 not in sizes, "The mesh leaves an axis open (-1); say how many devices there are with --devices.")
        devices = max(sizes[0] * sizes[1] * sizes[2], 1)
    require(devices > 0, f"A mesh has at least one device, not {devices}.")
    return mesh_shape(mesh, devices)


def with_sizes(mesh: MeshConfig, sizes: Sequence[int]) -> MeshConfig:
    """``mesh`` with other sizes (data, fsdp, tensor)."""
    return dataclasses.replace(mesh, **dict(zip(AXES, sizes, strict=True)))


def parse_mesh(text: str) -> tuple[int, ...]:
    """``data=1,fsdp=8,tensor=1`` as sizes; an axis that is not named is 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        require(name in AXES, f"A mesh is written data=1,fsdp=8,tensor=1; there is no axis '{name}'.")
        valid = bool(equals) and value.removeprefix("-").isdigit()
        require(valid, f"The mesh axis '{name}' needs a number, as in {name}=8, not '{value}'.")
        sizes[name] = int(value)
    return tuple(sizes[name] for name in AXES)


def check_batch(config: RunConfig, sizes: tuple[int, int, int]) -> None:
    """Raise a UserError unless the batch (each part of it) divides over the mesh."""
    ways, parts = sizes[0] * sizes[1], config.optim.accumulate
    require(
        config.data.batch_size > 0 and config.data.batch_size % (ways * parts) == 0,
        f"data.batch_size {config.data.batch_size} does not divide over {ways} batch shards (data x fsdp)"
        + (f" in {parts} parts." if parts > 1 else "."),
    )


def flash_used(config: RunConfig, hardware: Hardware) -> bool:
    """Whether attention takes a kernel that keeps no scores: on GPUs, in half precision."""
    return hardware.flash and config.model.precision.compute != "float32"


def facts(plan: Plan) -> dict[str, Any]:
    """Everything as plain values; bytes, seconds and operations of one device unless named otherwise."""
    compiled = plan.compiled

    def pace(estimate: Estimate) -> dict[str, Any]:
        return {**dataclasses.asdict(estimate), "seconds": estimate.seconds}

    return {
        "name": plan.config.name,
        "hardware": dataclasses.asdict(plan.hardware),
        "mesh": dict(zip(AXES, plan.sizes, strict=True)),
        "devices": plan.devices,
        "batch_size": plan.config.data.batch_size,
        "tiles": plan.tiles,
        "memory": {
            **dataclasses.asdict(plan.held),
            "activations": dataclasses.asdict(plan.activations),
            "total": plan.total,
            "smallest": plan.smallest,
            "over_smallest": plan.held.divisible / plan.smallest - 1,
            "fits": plan.fits,
        },
        "flops": {
            "model": plan.flops.model,
            "executed": plan.flops.executed,
            "components": {
                name: {"forward": e.forward, "backward": e.backward, "again": e.again}
                for name, e in plan.flops.by_component().items()
            },
        },
        "ideal": pace(plan.ideal),
        "compiled": None if compiled is None else {**dataclasses.asdict(compiled), "peak": compiled.peak},
        "partitioned": None if plan.partitioned is None else {**pace(plan.partitioned), "repeated": plan.repeated},
        "seconds": plan.seconds,
    }
