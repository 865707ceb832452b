"""The device mesh: axes ``data`` (replicated weights), ``fsdp`` (sharded weights) and ``tensor`` (sharded layers)."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, Mesh

from earthmind_jax.config import MeshConfig
from earthmind_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Sizes of (data, fsdp, tensor) for ``devices`` devices; the one -1 takes what is left.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
        raise UserError(
            f"Mesh sizes must be positive, with at most one -1, not data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}."
        )
    fixed = 1
    for size in sizes:
        fixed *= size if size > 0 else 1
    if -1 in sizes:
        if devices % fixed:
            raise UserError(f"A mesh with {fixed} devices on its fixed axes does not divide the {devices} devices.")
        sizes[sizes.index(-1)] = devices // fixed
    elif fixed != devices:
        raise UserError(
            f"Mesh data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} needs {fixed} devices, "
            f"but there are {devices}; set one axis to -1."
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig | None = None, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all). Axis types are Auto: the compiler propagates shardings, as with pjit."""
    devices = devices if devices is not None else jax.devices()
    shape = mesh_shape(config or MeshConfig(), len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
