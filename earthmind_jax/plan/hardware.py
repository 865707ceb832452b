"""What accelerators can do at best, by the makers' data sheets, and what an hour of one costs."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from earthmind_jax.config import one_of


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One accelerator.

    Attributes:
      flops: dense bfloat16 operations / s.
      memory: bytes.
      bandwidth: of its memory, bytes / s.
      link: to others of the same host or pod, bytes / s one way (data sheets add both ways up).
      network: to other hosts, bytes / s one way.
      host: devices that ``link`` joins; 0: all of them (a TPU pod).
      price: currency units per device and hour. A round default: replace it by your own.
      flash: attention by a kernel that never writes the scores (cuDNN); elsewhere XLA's products.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    host: int
    price: float
    flash: bool


HARDWARE: dict[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        # NVLink 600 GB/s (A100) and 900 GB/s (H100, H200) both ways; 400 Gbit/s of network for each GPU.
        Hardware(
            name="a100", flops=312e12, memory=80e9, bandwidth=2.0e12, link=300e9, network=50e9, host=8, price=2.0,
            flash=True,
        ),
        Hardware(
            name="h100", flops=989e12, memory=80e9, bandwidth=3.35e12, link=450e9, network=50e9, host=8, price=3.0,
            flash=True,
        ),
        Hardware(
            name="h200", flops=989e12, memory=141e9, bandwidth=4.8e12, link=450e9, network=50e9, host=8, price=3.5,
            flash=True,
        ),
        # Interchip interconnect of 4800 Gbit/s both ways, throughout a pod.
        Hardware(
            name="v5p", flops=459e12, memory=95e9, bandwidth=2.765e12, link=300e9, network=300e9, host=0, price=4.2,
            flash=False,
        ),
    )
}  # fmt: skip
"""By name. Peaks are of the SXM form (A100, H100, H200)."""


def find_hardware(name: str) -> Hardware:
    """The hardware of that name; a UserError names the nearest."""
    one_of("hardware", name, tuple(HARDWARE))
    return HARDWARE[name]


def running_on() -> Hardware | None:
    """The hardware of this process's devices, by the name that their driver gives; None if it is not listed here."""
    kind = jax.devices()[0].device_kind.lower()
    names = {"tpu v5p": "v5p", "tpu v5": "v5p", **{name: name for name in ("a100", "h100", "h200")}}
    return next((HARDWARE[name] for sign, name in names.items() if sign in kind and "lite" not in kind), None)
