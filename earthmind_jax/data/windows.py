"""Which samples make up which batch, and the shape it is padded to: the same plan on every process.

The stream of samples is cut into windows of some batches. The samples of a window are measured
(:func:`earthmind_jax.data.layout.measure`: no pixel is read), sorted by size, and cut into batches, which then come in
an order of their own; so samples of a like size share a batch and little of it is padding. Everything follows from the
seed and the position, so every process, worker and resumed run finds the same plan by itself, and a batch can be asked
for by its number. Measuring a record takes about a millisecond; a scene made on demand is made once more for it, on
every process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from earthmind_jax.data.buckets import Buckets, Shape

KEPT = 3  # plans of windows that are remembered


@dataclass(frozen=True)
class Plan:
    """One batch: positions of its samples in the stream, what each was measured to be, and the shape for all."""

    positions: tuple[int, ...]
    measured: tuple[Shape, ...]
    shape: Shape


@dataclass
class Windows:
    """The plans of all batches, by number.

    Attributes:
      measure: position in the stream -> the sample's size.
      batch_size: samples of all processes.
      window: batches that are sorted together; 1 leaves every sample where it is.
      count: batches of the stream.
    """

    measure: Callable[[int], Shape]
    buckets: Buckets
    batch_size: int
    window: int
    count: int
    seed: int
    _plans: dict[int, Future[tuple[Plan, ...]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[object, ...]:
        return self.measure, self.buckets, self.batch_size, self.window, self.count, self.seed

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __getitem__(self, batch: int) -> Plan:
        number, place = divmod(batch, self.window)
        with self._lock:
            # The next window is measured while batches of this one are in use.
            for wanted in (number, number + 1):
                if wanted not in self._plans and wanted * self.window < self.count:
                    self._plans[wanted] = self._start(wanted)
            plans = self._plans[number]
            for old in sorted(self._plans)[:-KEPT]:
                del self._plans[old]
        return plans.result()[place]

    def _start(self, number: int) -> Future[tuple[Plan, ...]]:
        future: Future[tuple[Plan, ...]] = Future()

        def work() -> None:
            try:
                future.set_result(self._make(number))
            except BaseException as error:
                future.set_exception(error)

        # A daemon rather than an executor, which would hold up the end of the program until the plan is made.
        threading.Thread(target=work, name=f"plan of window {number}", daemon=True).start()
        return future

    def _make(self, number: int) -> tuple[Plan, ...]:
        first, size = number * self.window, self.batch_size
        batches = min(self.window, self.count - first)
        positions = range(first * size, (first + batches) * size)
        measured = {position: self.measure(position) for position in positions}
        order, turn = list(positions), range(batches)
        if self.window > 1:
            order.sort(key=lambda position: (*self._key(measured[position]), position))
            turn = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(number, 0))).permutation(batches)
        return tuple(self._plan(order[i * size : (i + 1) * size], measured) for i in turn)

    def _key(self, shape: Shape) -> tuple[int, int, int]:
        """Stacks, then tiles, each as their bucket, then length. Every other group runs from long to short, so that a
        batch with samples of two groups has neighbours in length."""
        tiles = self.buckets.tiles.index(self.buckets.fit_tiles(max(1, shape.tiles)))
        return self.buckets.fit_dates(shape.dates), tiles, -shape.text if tiles % 2 else shape.text

    def _plan(self, positions: list[int], measured: dict[int, Shape]) -> Plan:
        shapes = tuple(measured[p] for p in positions)
        largest = Shape(*(max(getattr(s, name) for s in shapes) for name in ("tiles", "text", "dates")))
        return Plan(tuple(positions), shapes, self.buckets.fit(largest))


def padding_share(shapes: Sequence[Shape], buckets: Buckets, batch_size: int, window: int, seed: int = 0) -> float:
    """Share of padding among the text positions of one pass over samples of these sizes, in random order.

    The samples are begun again where they do not fill the last window.
    """
    order = np.random.default_rng(seed).permutation(len(shapes))
    count = -(-len(shapes) // (batch_size * window)) * window
    plans = Windows(lambda p: shapes[order[p % len(order)]], buckets, batch_size, window, count, seed)
    used = room = 0
    for batch in range(count):
        plan = plans[batch]
        used += sum(shape.text for shape in plan.measured)
        room += plan.shape.text * batch_size
    return 1 - used / room
