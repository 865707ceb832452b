"""Samples to an endless, resumable stream of batches (grain).

Everything drawn at random (order, sensor dropout, the turns that are kept) follows from the seed and the position in
the global stream, so the same seed gives the same batches, on any number of processes. Where batches are sorted by size
or processes must agree on a shape, :mod:`earthmind_jax.data.windows` plans them without reading a pixel. The state of
the stream is the number of batches it has given: ``batches.get_state()`` goes into the checkpoint,
``batches.set_state(state)`` continues there exactly, also with another number of processes or workers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, RunConfig, require
from earthmind_jax.data.batches import Batches
from earthmind_jax.data.buckets import Buckets, Shape
from earthmind_jax.data.collate import stack
from earthmind_jax.data.encode import Example, encode_sample
from earthmind_jax.data.layout import MOST_DATES, measure
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import SENSORS, Record, Sample
from earthmind_jax.data.sources import Lazy, Mixture, Source, is_steered, most_dates, place
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.data.windows import Windows
from earthmind_jax.errors import UserError
from earthmind_jax.types import Batch


def training_buckets(data: DataConfig, dates: int = 1) -> Buckets:
    """The shapes that a run is compiled for: those of its configuration, and stacks where samples have ``dates``."""
    text = data.text_buckets or (data.text_length,)
    require(
        text[-1] == data.text_length,
        f"data.text_buckets must end with data.text_length {data.text_length}, not {list(text)}; set both.",
    )
    return Buckets(
        tiles=data.tile_buckets or Buckets().tiles,
        text=text,
        dates=tuple(sorted({1, min(dates, MOST_DATES)})),
    )


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
      source: samples or records by index, or a mixture of such sources.
      data: ``batch_size`` counts the samples of all processes; ``workers`` processes prepare batches, or where
        there are none ``threads``.
      buckets: shapes; those of ``data`` where None.
      shuffle: a new order each epoch.
      epochs: passes over the source, None for no end. A last incomplete batch is dropped. Of a mixture so many samples
        in all as its sources hold.
      augment: sensor dropout, and a random choice where there are too many turns or masks (off for evaluation).
      process, processes: this process's share of each global batch.
      sensors: those that batches carry, present in a sample or not.

    Raises:
      UserError: for an empty source or a batch size that the processes cannot share; from the iterator, for a sample
        that does not fit, naming it.
    """
    import grain

    if not len(source):
        raise UserError("The data source is empty.")
    buckets = buckets or training_buckets(data, most_dates(source))
    count = (sys.maxsize if epochs is None else len(source) * epochs) // max(1, data.batch_size)
    _check(source, data, process, processes, epochs)
    stream = _Stream(_sources(source, seed, shuffle), source.shares if isinstance(source, Mixture) else (1,))
    encode = _Encode(cfg, data, tokenizer, buckets, seed, augment, tuple(sensors), variant)
    plans = None
    window = data.window if shuffle else 1  # sorting changes the order, too
    if window > 1 or (processes > 1 and buckets.count > 1):
        plans = Windows(_Measure(stream, encode), buckets, data.batch_size, window, count, seed)
    load = _Load(stream, encode, plans, count, process, processes, is_steered(source))
    return Batches(grain.MapDataset.source(load), data.workers, data.threads, getattr(source, "names", ()))


def training_pipeline(run: RunConfig, source: Source, tokenizer: Tokenizer, **options: Any) -> Batches:
    """:func:`pipeline` with a run's model, data and seed."""
    return pipeline(source, run.model, run.data, tokenizer, **{"seed": run.seed, **options})


def _check(source: Source, data: DataConfig, process: int, processes: int, epochs: int | None) -> None:
    if not 0 <= process < processes:
        raise UserError(f"Process {process} of {processes} does not exist.")
    if data.batch_size < 1 or data.batch_size % processes:
        raise UserError(f"data.batch_size {data.batch_size} must be a positive multiple of the {processes} processes.")
    if epochs is not None and len(source) * epochs < data.batch_size:
        raise UserError(
            f"{len(source)} samples and {epochs} epochs do not fill one batch; lower data.batch_size {data.batch_size}."
        )


def _sources(source: Source, seed: int, shuffle: bool) -> tuple[Any, ...]:
    """Endless data sets (grain), each in a new order every epoch."""
    import grain

    parts, made = source.sources if isinstance(source, Mixture) else (source,), []
    for number, part in enumerate(parts):
        own = seed if len(parts) == 1 else int(generator(seed, number).integers(2**32))
        dataset = grain.MapDataset.source(part)
        made.append((dataset.shuffle(seed=own % 2**32) if shuffle else dataset).repeat(None))
    return tuple(made)


# Classes rather than closures: worker processes receive them by pickling.


@dataclass(frozen=True)
class _Stream:
    """Position in the global stream -> (number of the source, item)."""

    sources: tuple[Any, ...]
    shares: tuple[int, ...]

    def __getitem__(self, position: int) -> tuple[int, Sample | Record]:
        number, key = place(position, self.shares)
        return number, self.sources[number][key]


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

    def __call__(self, position: int, item: Sample | Record) -> Example:
        sample = load_record(item, self.cfg.sensors) if isinstance(item, Record) else item
        return encode_sample(sample, self.cfg, self.data, self.tokenizer, self.buckets, **self.options(position))

    def options(self, position: int) -> dict[str, Any]:
        """Draws belong to the global position, whichever process and batch it falls to."""
        rng = generator(self.seed, position) if self.augment else None
        return {"rng": rng, "sensors": self.sensors, "variant": self.variant}


@dataclass(frozen=True)
class _Measure:
    stream: _Stream
    encode: _Encode

    def __call__(self, position: int) -> Shape:
        e = self.encode
        return measure(self.stream[position][1], e.cfg, e.data, e.tokenizer, e.buckets, **e.options(position)).shape


@dataclass(frozen=True)
class _Load:
    """This process's part of each global batch and the ids of its samples, by the batch's number."""

    stream: _Stream
    encode: _Encode
    plans: Windows | None
    count: int
    process: int
    processes: int
    steered: bool  # whether batches have room for marks

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, batch: int) -> tuple[Batch, tuple[str, ...]]:
        size, buckets = self.encode.data.batch_size, self.encode.buckets
        # Neighbours, so that the batch of all processes has the order that it has in one.
        own = size // self.processes
        part = slice(self.process * own, (self.process + 1) * own)
        positions: Sequence[int] = range(batch * size, (batch + 1) * size)
        measured: Sequence[Shape | None] = (None,) * size
        if self.plans is not None:
            plan = self.plans[batch]
            positions, measured, buckets = plan.positions, plan.measured, buckets.only(plan.shape)
        examples, sources = [], []
        for position, shape in zip(positions[part], measured[part], strict=True):
            number, item = self.stream[position]
            example = self.encode(position, item)
            if shape is not None and example.shape != shape:
                raise UserError(
                    f"{getattr(item, 'where', '') or f'Sample {item.id!r}'}: measured as {shape} but read as "
                    f"{example.shape}; did its files change during the run?"
                )
            examples.append(example)
            sources.append(number)
        options = {"sensors": self.encode.sensors, "steered": self.steered}
        made = stack(examples, self.encode.cfg, self.encode.data, buckets, **options)
        if len(self.stream.shares) > 1:
            made = made.replace(source=np.array(sources, np.int32))
        return made, tuple(example.id for example in examples)


@dataclass(frozen=True)
class _Simulated:
    seed: int
    tasks: tuple[str, ...] | None
    lettered: bool
    views: tuple[tuple[int, int], ...]
    options: dict[str, Any]

    def __call__(self, index: int) -> Sample:
        from earthmind_jax.data.simulate import make_questions, make_scene, to_sample

        rng = generator(self.seed, index)
        options = dict(self.options)
        if self.views:
            options["whole"], options["size"] = self.views[int(rng.integers(len(self.views)))]
        scene = make_scene(rng, **options)
        # In any order: a question must not be known by its place in the conversation.
        tasks = [self.tasks[i] for i in rng.permutation(len(self.tasks))] if self.tasks else None
        return to_sample(scene, make_questions(scene, rng, tasks, lettered=self.lettered), f"scene-{self.seed}-{index}")


def simulated(
    count: int,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    *,
    lettered: bool = True,
    views: Sequence[tuple[int, int]] = (),
    **options: Any,
) -> Lazy:
    """Scenes made on demand, with questions about them: scene ``i`` follows from the seed and ``i`` alone.

    Args:
      views: as ``DataConfig.views``; empty: whole scenes.
      tasks, lettered, options: for ``make_questions`` and ``make_scene`` of :mod:`earthmind_jax.data.simulate`.
    """
    return Lazy(_Simulated(seed, None if tasks is None else tuple(tasks), lettered, tuple(views), options), count)
