"""Samples to an endless, resumable stream of batches (grain).

Everything drawn at random (order, sensor dropout, the turns that are kept) follows from the seed and the position in
the global stream, so the same seed gives the same batches, on any number of processes. The state of the stream is the
number of batches it has given: ``batches.get_state()`` goes into the checkpoint, ``batches.set_state(state)``
continues there exactly, also with another number of processes or workers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, RunConfig
from earthmind_jax.data.collate import SENSORS, Buckets, encode_sample, stack
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import Record, Sample
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.types import Batch

THREADS = 2  # that prepare batches beside the training step
AHEAD = 4  # batches prepared in advance


class Source(Protocol):
    """Anything with a length that gives samples, or records of files, by index: a list, or scenes made on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | Record: ...


@dataclass(frozen=True)
class Lazy:
    """A source whose samples are made when they are asked for: ``make(index)`` for each index below ``count``."""

    make: Callable[[int], Sample | Record]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample | Record:
        return self.make(int(index))


class Batches:
    """An iterator over a grain data set of (batch, ids of its samples), with the position as its whole state.

    Attributes:
      last_ids: of the samples of the batch given last, in its order.
    """

    def __init__(self, dataset: Any, workers: int) -> None:
        self.dataset, self.workers, self.position = dataset, workers, 0
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
            return iter(rest.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)))
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags, which nobody parses here
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=AHEAD)
        rest = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return iter(rest.mp_prefetch(options, worker_init_fn=_ignore_ctrl_c))


def training_buckets(data: DataConfig, tiles: Sequence[int] = Buckets().tiles) -> Buckets:
    """Training pads every text to ``data.text_length``."""
    return Buckets(tiles=tuple(tiles), text=(data.text_length,))


def generator(seed: int, position: int) -> np.random.Generator:
    """The random generator of one position of the stream."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(position,)))


def pipeline(
    source: Source,
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    buckets: Buckets | None = None,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    augment: bool = True,
    process: int = 0,
    processes: int = 1,
    sensors: Sequence[str] = SENSORS,
    variant: str = "hf",
) -> Batches:
    """The stream of batches of this process.

    Args:
      source: samples or records by index.
      data: ``batch_size`` counts the samples of all processes; ``workers`` processes prepare batches, 0 uses threads.
      buckets: shapes; text padded to ``data.text_length`` where None.
      shuffle: a new order each epoch.
      epochs: passes over the source, None for no end. A last incomplete batch is dropped.
      augment: sensor dropout, and a random choice where there are too many turns or masks (off for evaluation).
      process, processes: this process's share of each global batch.
      sensors: those that batches carry, present in a sample or not.

    Raises:
      UserError: for an empty source, a batch size that the processes cannot share, or shapes that could differ between
        processes; from the iterator, for a sample that does not fit, naming it.
    """
    import grain

    buckets = buckets or training_buckets(data)
    _check(source, data, buckets, process, processes, epochs)
    stream = grain.MapDataset.source(source)
    if shuffle:
        stream = stream.shuffle(seed=seed % 2**32)
    stream = stream.repeat(epochs)
    # Draws belong to the global position, so they are fixed before the stream is dealt out to processes.
    stream = stream.map_with_index(_Located())[process::processes]
    encode = _Encode(cfg, data, tokenizer, buckets, seed, augment, tuple(sensors), variant)
    stack_up = _Stack(cfg, data, buckets, tuple(sensors))
    stream = stream.map(encode).batch(data.batch_size // processes, drop_remainder=True, batch_fn=stack_up)
    return Batches(stream, data.workers)


def training_pipeline(run: RunConfig, source: Source, tokenizer: Tokenizer, **options: Any) -> Batches:
    """:func:`pipeline` with a run's model, data and seed."""
    return pipeline(source, run.model, run.data, tokenizer, **{"seed": run.seed, **options})


def _check(
    source: Source, data: DataConfig, buckets: Buckets, process: int, processes: int, epochs: int | None
) -> None:
    if not len(source):
        raise UserError("The data source is empty.")
    if not 0 <= process < processes:
        raise UserError(f"Process {process} of {processes} does not exist.")
    if data.batch_size < 1 or data.batch_size % processes:
        raise UserError(f"data.batch_size {data.batch_size} must be a positive multiple of the {processes} processes.")
    if epochs is not None and len(source) * epochs < data.batch_size:
        raise UserError(
            f"{len(source)} samples and {epochs} epochs do not fill one batch; lower data.batch_size {data.batch_size}."
        )
    if processes > 1 and (len(buckets.tiles) > 1 or len(buckets.text) > 1):
        raise UserError(
            "Training on several processes needs one bucket, so that all of them run the same program: give "
            f"Buckets(tiles=(n,), text=(length,)) instead of tiles {buckets.tiles} and text {buckets.text}."
        )


def _ignore_ctrl_c(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the run may still need a batch to end well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# Classes rather than closures: worker processes receive them by pickling.


class _Located:
    def __call__(self, position: int, item: Sample | Record) -> tuple[int, Sample | Record]:
        return position, item


@dataclass(frozen=True)
class _Encode:
    cfg: EarthMindConfig
    data: DataConfig
    tokenizer: Tokenizer
    buckets: Buckets
    seed: int
    augment: bool
    sensors: tuple[str, ...]
    variant: str

    def __call__(self, located: tuple[int, Sample | Record]) -> Any:
        position, item = located
        sample = load_record(item, self.cfg.sensors) if isinstance(item, Record) else item
        return encode_sample(
            sample,
            self.cfg,
            self.data,
            self.tokenizer,
            self.buckets,
            rng=generator(self.seed, position) if self.augment else None,
            sensors=self.sensors,
            variant=self.variant,
        )


@dataclass(frozen=True)
class _Stack:
    cfg: EarthMindConfig
    data: DataConfig
    buckets: Buckets
    sensors: tuple[str, ...]

    def __call__(self, examples: Sequence[Any]) -> tuple[Batch, tuple[str, ...]]:
        batch = stack(examples, self.cfg, self.data, self.buckets, sensors=self.sensors)
        return batch, tuple(example.id for example in examples)


@dataclass(frozen=True)
class _Simulated:
    seed: int
    tasks: tuple[str, ...] | None
    lettered: bool
    options: dict[str, Any]

    def __call__(self, index: int) -> Sample:
        from earthmind_jax.data.simulate import make_questions, make_scene, to_sample

        rng = generator(self.seed, index)
        scene = make_scene(rng, **self.options)
        # In any order: a question must not be known by its place in the conversation.
        tasks = [self.tasks[i] for i in rng.permutation(len(self.tasks))] if self.tasks else None
        return to_sample(scene, make_questions(scene, rng, tasks, lettered=self.lettered), f"scene-{self.seed}-{index}")


def simulated(
    count: int, seed: int = 0, tasks: Sequence[str] | None = None, *, lettered: bool = True, **options: Any
) -> Lazy:
    """Scenes made on demand, with questions about them: scene ``i`` follows from the seed and ``i`` alone.

    Args:
      tasks, lettered, options: for ``make_questions`` and ``make_scene`` of :mod:`earthmind_jax.data.simulate`.
    """
    return Lazy(_Simulated(seed, None if tasks is None else tuple(tasks), lettered, options), count)
