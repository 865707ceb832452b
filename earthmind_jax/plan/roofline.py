"""How fast a step can be at best: the roofline of arithmetic, memory and links.

Each of the three takes at least its amount over its rate. A step that overlaps them perfectly takes the longest of the
three (``best``), one that overlaps nothing takes their sum (``worst``); real steps lie between, and above, since no
kernel reaches the peak. Source: Williams et al. 2009, "Roofline"; the third roof is that of the links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp

from earthmind_jax.config import RunConfig
from earthmind_jax.plan.activations import Activations
from earthmind_jax.plan.compile import Compiled
from earthmind_jax.plan.flops import Flops
from earthmind_jax.plan.hardware import Hardware
from earthmind_jax.plan.hlo import sent_bytes, share_across
from earthmind_jax.plan.ledger import Ledger
from earthmind_jax.plan.memory import Held


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one step, and what follows from them; pairs are (best, worst).

    Attributes:
      compute, memory, links: seconds at the peak rates.
      mfu: model operations (without recomputation) over what the devices could do in the time.
      tokens: positions of text and image that the language model reads, each second.
      price_step, price_million: currency units for a step, and for a million tokens.
    """

    compute: float
    memory: float
    links: float
    mfu: tuple[float, float]
    tokens: tuple[float, float]
    price_step: tuple[float, float]
    price_million: tuple[float, float]

    @property
    def seconds(self) -> tuple[float, float]:
        return max(self.compute, self.memory, self.links), self.compute + self.memory + self.links


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one device does in a step: operations, bytes of its memory moved, bytes sent to its host and beyond."""

    flops: float
    moved: float
    linked: float
    networked: float


def estimate(config: RunConfig, flops: Flops, load: Load, devices: int, hardware: Hardware, price: float) -> Estimate:
    """The roofline of ``load`` on ``hardware`` at ``price`` for a device and hour."""
    compute, memory = load.flops / hardware.flops, load.moved / hardware.bandwidth
    links = load.linked / hardware.link + load.networked / hardware.network
    times = max(compute, memory, links), compute + memory + links
    tokens = config.data.batch_size * config.data.text_length
    step = tuple(devices * price * t / 3600 for t in times)
    return Estimate(
        compute=compute,
        memory=memory,
        links=links,
        mfu=tuple(flops.model / (devices * hardware.flops * t) for t in times),  # type: ignore[arg-type]
        tokens=tuple(tokens / t for t in times),  # type: ignore[arg-type]
        price_step=step,  # type: ignore[arg-type]
        price_million=tuple(cost / tokens * 1e6 for cost in step),  # type: ignore[arg-type]
    )


def ideal_load(
    config: RunConfig, sizes: tuple[int, int, int], flops: Flops, held: Held, saved: Activations, ledger: Ledger,
    hardware: Hardware,
) -> Load:  # fmt: skip
    """The load of a program that splits its work evenly and sends only what it must.

    Over ``fsdp``, weights are gathered forwards and backwards and gradients scattered; over ``data``, each device's
    share of the gradients is summed; over ``tensor``, each block's two sums of activations, in both directions and for
    each recomputation (Rajbhandari et al. 2020, ZeRO, section 7; Shoeybi et al. 2019, Megatron-LM, section 3).
    """
    near, far = _traffic(config, sizes, ledger, hardware.host)
    return Load(
        flops=flops.executed / math.prod(sizes),
        moved=moved_bytes(config, sizes, held, saved, ledger),
        linked=near,
        networked=far,
    )


def compiled_load(compiled: Compiled, moved: float) -> Load:
    """The load of the program as XLA partitioned it; bytes moved are the ideal's (a CPU's fusions differ)."""
    return Load(flops=compiled.products, moved=moved, linked=compiled.sent - compiled.across, networked=compiled.across)


def moved_bytes(
    config: RunConfig, sizes: tuple[int, int, int], held: Held, saved: Activations, ledger: Ledger
) -> float:
    """Least bytes of its own memory that a device reads and writes.

    Weights once for each pass of each part of the batch; gradients, masters and optimiser read and written once; what
    the forward pass saves written and read once; logits written and read in both passes.
    """
    lm, parts = config.model.lm, config.optim.accumulate
    rows = config.data.batch_size * config.data.text_length / (sizes[0] * sizes[1])
    again = weight_bytes(config, ledger, backward=True)
    weights = parts * (weight_bytes(config, ledger) + (1 + (lm.remat == "full")) * again) / sizes[2]
    update = 2 * (held.trainable + held.optimiser + held.gradients)
    logits = 4 * 4 * rows * lm.vocab / sizes[2] if config.loss.text else 0.0
    return weights + update + 2 * parts * saved.saved + logits


def weight_bytes(config: RunConfig, ledger: Ledger, *, backward: bool = False) -> float:
    """Weights in the compute dtype, as the layers of one pass read them; the token table is looked up, not read.

    ``backward``: without the encoders that lie below everything that learns.
    """
    skipped = ["lm/embed/embedding"]
    if backward:
        skipped += [p for p in ("vision/", "grounding/trunk", "grounding/neck") if not ledger.learns(p)]
    read = [math.prod(shape) for path, shape in ledger.shapes.items() if not path.startswith(tuple(skipped))]
    return jnp.dtype(config.model.precision.compute).itemsize * sum(read)


def _traffic(config: RunConfig, sizes: tuple[int, int, int], ledger: Ledger, host: int) -> tuple[float, float]:
    """(bytes to devices of the same host, bytes to others) that each device sends."""
    data, fsdp, tensor = sizes
    lm, size, parts = config.model.lm, jnp.dtype(config.model.precision.compute).itemsize, config.optim.accumulate
    master = jnp.dtype(config.model.precision.param).itemsize
    near = far = 0.0

    def send(kind: str, payload: float, ways: int, stride: int) -> None:
        """A collective of ``ways`` devices that lie ``stride`` apart."""
        nonlocal near, far
        sent = sent_bytes(kind, payload, ways)
        hosts = -(-ways * stride // host) if host and ways * stride > host else 1
        across = sent * share_across(kind, ways, min(hosts, ways))
        near, far = near + sent - across, far + across

    weights = (weight_bytes(config, ledger) + weight_bytes(config, ledger, backward=True)) / tensor
    gradients = master * sum(math.prod(ledger.shapes[path]) for path in ledger.trainable) / tensor
    send("all-gather", parts * weights, fsdp, tensor)
    send("reduce-scatter", parts * gradients, fsdp, tensor)
    send("all-reduce", gradients / fsdp, data, fsdp * tensor)
    rows = config.data.batch_size * config.data.text_length / (data * fsdp)
    send("all-reduce", lm.depth * 2 * (2 + (lm.remat == "full")) * rows * lm.width * size, tensor, 1)
    return near, far
