"""The stream of batches that a training reads, whose state is the number of those it has given."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

from earthmind_jax.errors import UserError
from earthmind_jax.types import Batch

AHEAD = 4  # batches prepared in advance


class Batches:
    """An iterator over a grain data set of (batch, ids of its samples), with the position as its whole state.

    Attributes:
      last_ids: of the samples of the batch given last, in its order.
      names: of the sources of a mixture, in the order that ``Batch.source`` counts them; else none.
    """

    def __init__(self, dataset: Any, workers: int, threads: int = 2, names: Sequence[str] = ()) -> None:
        self.dataset, self.workers, self.threads, self.names = dataset, workers, threads, tuple(names)
        self.position = 0
        self.last_ids: tuple[str, ...] = ()
        self._inner: Iterator[tuple[Batch, tuple[str, ...]]] | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self._inner is None:
            self._inner = self._start()
        batch, self.last_ids = next(self._inner)
        self.position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"batches": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue after the batches that had been given when ``state`` was taken."""
        if not isinstance(state.get("batches"), int):
            raise UserError(f"The saved position of the data, {state}, is not one of this pipeline.")
        self.position, self._inner = state["batches"], None

    def _start(self) -> Iterator[tuple[Batch, tuple[str, ...]]]:
        import grain

        rest = self.dataset[self.position :]
        if not self.workers:
            return iter(
                rest.to_iter_dataset(grain.ReadOptions(self.threads, prefetch_buffer_size=max(AHEAD, self.threads)))
            )
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which nobody parses here
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=AHEAD)
        rest = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return iter(rest.mp_prefetch(options, worker_init_fn=_ignore_ctrl_c))


def _ignore_ctrl_c(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the run may still need a batch to end well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
