"""The device mesh: axes ``data`` (replicated weights), ``fsdp`` (sharded weights) and ``tensor`` (sharded layers)."""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
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
    """A mesh over ``devices`` (default: all). Axis types are Auto: the compiler propagates shardings, as with pjit.

    Devices that talk fast to each other (one host, one TPU slice) come together along tensor first, then fsdp; data
    goes between hosts first, since its replicas exchange gradients alone.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    shape = mesh_shape(config or MeshConfig(), len(devices))
    types = (AxisType.Auto,) * 3
    near, by_process = _neighbours(devices)
    if near == len(devices):  # jax orders the devices of one TPU slice by its wires
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    inner = inner_shape(shape, near)
    outer = tuple(size // part for size, part in zip(shape, inner, strict=True))
    order = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, process_is_granule=by_process)
    return Mesh(order, AXES, axis_types=types)


def inner_shape(shape: tuple[int, int, int], near: int) -> tuple[int, int, int]:
    """The part of a mesh (data, fsdp, tensor) that each group of ``near`` devices holds, a divisor of its size."""
    tensor = math.gcd(shape[2], near)
    fsdp = math.gcd(shape[1], near // tensor)
    return near // (tensor * fsdp), fsdp, tensor


def _neighbours(devices: list[jax.Device]) -> tuple[int, bool]:
    """(devices in each group that talks fast, whether the groups are the processes); all of them where there is one."""
    slices = {getattr(device, "slice_index", 0) for device in devices}
    by_process = len(slices) == 1 and devices[0].platform != "tpu"
    groups = [device.process_index if by_process else getattr(device, "slice_index", 0) for device in devices]
    sizes = np.unique(groups, return_counts=True)[1]
    # Unequal groups (a test's choice of devices) have no order to speak of.
    return (int(sizes[0]) if len(set(sizes)) == 1 else len(devices)), by_process
