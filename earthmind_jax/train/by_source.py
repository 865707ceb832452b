"""What each source of a mixture gives to the steps of a run, and how well it is learnt.

A step adds, for every source, its samples and the sums that its losses are means of; :class:`Tally` adds up the steps
from one report to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from earthmind_jax.types import Batch

PREFIX = "by source: "
"""Of the metrics of a step that are arrays [sources 2] (sum, and of how much) instead of numbers."""
SAMPLES = "samples"


def of_samples(batch: Batch, sources: int, sums: jax.Array, counts: jax.Array) -> jax.Array:
    """[sources 2] of a sum [B] and a count [B] for each sample."""
    own = jax.nn.one_hot(batch.source, sources, axis=0)
    return jnp.stack([own @ sums, own @ counts.astype(jnp.float32)], axis=-1)


def of_masks(batch: Batch, sources: int, loss: Callable[[jax.Array], jax.Array], valid: jax.Array) -> jax.Array:
    """[sources 2] of a mean over masks ``loss(valid)``, called with those of ``valid`` [B*masks] of each source."""
    own = jnp.repeat(batch.source, valid.size // len(batch.tokens))

    def one(source: jax.Array) -> jax.Array:
        mine = valid & (own == source)
        count = mine.sum(dtype=jnp.float32)
        return jnp.stack([loss(mine) * count, count])

    return jax.vmap(one)(jnp.arange(sources))


class Tally:
    """Adds up what the steps since the last report had of each source.

    Args:
      names: of the sources; without any there is nothing to count.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = tuple(names)
        self._steps: list[dict[str, jax.Array]] = []
        self._sums: dict[str, np.ndarray] = {}

    def took(self, metrics: Mapping[str, jax.Array]) -> None:
        """One more step; does not wait for it."""
        if self._names:
            self._steps.append({k.removeprefix(PREFIX): x for k, x in metrics.items() if k.startswith(PREFIX)})

    def report(self) -> dict[str, float]:
        """``samples/NAME`` and the losses ``text/NAME``, ``bce/NAME``, ... since the last report; a source without a
        text or mask in these steps has no such loss."""
        self._settle()
        found = {}
        for term, sums in self._sums.items():
            for name, (total, count) in zip(self._names, sums.tolist(), strict=True):
                if term == SAMPLES:
                    found[f"{term}/{name}"] = int(total)
                elif count > 0:
                    found[f"{term}/{name}"] = total / count
        self._sums = {}
        return found

    def get_state(self) -> dict[str, Any]:
        """The sums since the last report, as plain values that give the same report after an interruption."""
        self._settle()
        return {term: sums.tolist() for term, sums in self._sums.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`get_state` gave."""
        self._steps, self._sums = [], {term: np.array(sums, np.float64) for term, sums in state.items()}

    def _settle(self) -> None:
        for step in self._steps:
            for term, x in step.items():
                self._sums[term] = self._sums.get(term, 0) + np.asarray(x, np.float64)
        self._steps = []
