"""How fast a run goes: steps, samples, tokens, waiting for input, memory, and the share of the devices that is used."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from earthmind_jax.types import Batch

CLOCKED = ("samples_per_s", "tokens_per_s", "step_s", "input_wait", "mfu", "memory_gb")
"""Values of a report that depend on the machine and not on the run."""


@dataclass(frozen=True)
class Costs:
    """What MFU is measured by.

    Attributes:
      flops: tiles of a sample -> operations that one step cannot do without: products of the forward pass, and of the
        backward pass to what learns; recomputation is left out.
      peak: operations / s of all devices together, dense, in the compute dtype.
    """

    flops: Callable[[int], float]
    peak: float


class Watch:
    """Counts what goes through since the last report.

    ``mfu`` (model FLOPs utilisation; Chowdhery et al. 2022, appendix B) is ``flops / (time x peak)`` of :class:`Costs`:
    time is the wall clock, waiting for input and saving included, and work done twice to save memory does not count.

    Args:
      samples: of a step, in all processes.
      processes: that each feed as many of them.
    """

    def __init__(self, samples: int, processes: int = 1, costs: Costs | None = None) -> None:
        self._samples, self._processes, self._costs = samples, processes, costs
        self._reset()

    def took(self, batch: Batch, waited: float) -> None:
        """One more step starts, on this process's part ``batch`` (on the host), ``waited`` for so many seconds."""
        self._steps += 1
        self._waited += waited
        self._tokens += int(np.sum(batch.lengths)) * self._processes
        if self._costs is not None:
            images = [x.shape[1] for x in (batch.optical, batch.sar) if x is not None]
            self._flops += self._costs.flops(max(images, default=0))

    def report(self) -> dict[str, float]:
        """Rates since the last report; :data:`CLOCKED` are the names, ``mfu`` only where ``costs`` are known.

        ``input_wait`` is the share of the time in which no batch was ready; ``memory_gb`` the most that the first local
        device has held (on a CPU: the process), in 1e9 bytes.
        """
        seconds, steps = max(time.perf_counter() - self._clock, 1e-9), max(self._steps, 1)
        found = {
            "samples_per_s": steps * self._samples / seconds,
            "tokens_per_s": self._tokens / seconds,
            "step_s": seconds / steps,
            "input_wait": self._waited / seconds,
            "memory_gb": memory() / 1e9,
        }
        if self._costs is not None:
            found["mfu"] = self._flops / (seconds * self._costs.peak)
        self._reset()
        return {name: float(f"{value:.4g}") for name, value in found.items()}

    def _reset(self) -> None:
        self._clock, self._steps, self._waited, self._tokens, self._flops = time.perf_counter(), 0, 0.0, 0, 0.0


def memory() -> int:
    """Bytes that the first local device has held at most; on a CPU those of the process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
