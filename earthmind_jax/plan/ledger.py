"""A ledger of matrix products: how often each runs, forwards, backwards and again.

A product of [n, k] and [k, m] is 2 n k m operations (a multiplication and an addition each). Backwards it costs as much
once for its weight if that learns, and once for its input if a gradient is wanted there. So a frozen layer above
something that learns costs two of the three, a frozen layer below everything that learns one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from earthmind_jax.config import RunConfig
from earthmind_jax.models import api
from earthmind_jax.ops.attention import DENSE_LIMIT
from earthmind_jax.train.state import assignment


@dataclass(frozen=True)
class Entry:
    """Operations of some products of one component: ``forward``, ``backward``, and ``again`` (recomputation)."""

    component: str
    forward: float
    backward: float
    again: float = 0.0


class Ledger:
    """Products of one training step, named by the parameters they use.

    Args:
      flash: attention runs in a kernel that recomputes its scores backwards.
    """

    def __init__(self, config: RunConfig, flash: bool) -> None:
        self.flash = flash
        self.shapes = {path: x.shape for path, x in api.shapes(config.model).items()}
        table = assignment(config)
        self.trainable = {path for path in self.shapes if table.trainable(path)}
        self.entries: list[Entry] = []

    def learns(self, *prefixes: str) -> bool:
        """Whether any parameter, or adapter, below one of the prefixes is trained."""
        both = tuple(p for prefix in prefixes for p in (prefix, f"lora/{prefix}"))
        return any(path.startswith(both) for path in self.trainable)

    def below(self, prefix: str) -> list[str]:
        """Layers (paths without ``/kernel``) below ``prefix``."""
        return [p.removesuffix("/kernel") for p in self.shapes if p.startswith(prefix) and p.endswith("/kernel")]

    def layers(
        self, component: str, paths: Iterable[str], rows: float, *, active: bool, again: bool = False, last: str = ""
    ) -> None:
        """Linear layers, stacked or not, and their adapters on ``rows`` rows.

        Args:
          active: a gradient is wanted at their inputs.
          again: rematerialised; all but the output of ``last``, which no gradient asks for.
        """
        for path in paths:
            self._weight(component, f"{path}/kernel", rows, active, again and path != last)
            if f"lora/{path}/a" in self.shapes:
                self._weight(component, f"lora/{path}/a", rows, active, again)
                self._weight(component, f"lora/{path}/b", rows, True, again and path != last)

    def weight(self, component: str, path: str, rows: float, *, active: bool) -> None:
        """One parameter that is multiplied as a matrix, whatever its name."""
        self._weight(component, path, rows, active, False)

    def attention(
        self, component: str, batch: float, queries: int, keys: int, width: int, heads: int, *, active: bool,
        layers: int = 1, again: bool = False,
    ) -> None:  # fmt: skip
        """Scores and weighted values of ``heads`` heads, ``width`` wide together; every key counts, masked or not.

        The flash and the blockwise kernel form their scores a second time backwards.
        """
        forward = 4.0 * layers * batch * queries * keys * width
        blocks = self.flash or batch * heads * queries * keys > DENSE_LIMIT
        repeated = (forward if again else 0.0) + (forward / 2 if blocks else 0.0)
        self.add(component, forward, 2 * forward if active else 0.0, repeated if active else 0.0)

    def add(self, component: str, forward: float, backward: float = 0.0, again: float = 0.0) -> None:
        """Anything else."""
        self.entries.append(Entry(component, forward, backward, again))

    def _weight(self, component: str, path: str, rows: float, active: bool, again: bool) -> None:
        forward = 2.0 * rows * math.prod(self.shapes[path])
        learns = path in self.trainable
        self.add(component, forward, forward * (learns + active), forward if again and (learns or active) else 0.0)
