"""Where samples come from: lists, scenes made on demand, and mixtures of these."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from earthmind_jax.config import SourceConfig
from earthmind_jax.data.records import Record, RecordTurn, Sample, parse_record, record_values
from earthmind_jax.errors import UserError


class Source(Protocol):
    """Anything with a length that gives samples, or records of files, by index: a list, or scenes made on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | Record: ...


@dataclass(frozen=True)
class Lazy:
    """A source whose samples are made when they are asked for: ``make(index)`` for each index below ``count``.

    ``dates`` is the most that one of them has, ``steered`` whether marks steer the masks of any.
    """

    make: Callable[[int], Sample | Record]
    count: int
    dates: int = 1
    steered: bool = False

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample | Record:
        return self.make(int(index))


class Packed:
    """Records held as compressed text, a few hundred bytes each: data sets have half a million.

    ``dates`` is the most that one of them has, ``steered`` whether marks steer the masks of any.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._texts: list[bytes] = []
        self.dates, self.steered = 1, False
        for record in records:
            told = [str(record.root), record.where, record_values(record)]
            self._texts.append(zlib.compress(json.dumps(told).encode(), 1))
            self.dates = max(self.dates, record.dates)
            self.steered |= _steered(record)

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Record:
        root, where, values = json.loads(zlib.decompress(self._texts[int(index)]))
        return parse_record(values, where, Path(root))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several sources, of which the stream takes fixed shares; each is shuffled, and begun again, by itself.

    Which source a position belongs to is arithmetic on the position (:func:`place`) rather than grain's ``mix``, whose
    weights are rounded to hundredths of the smallest: a stream of any length has every share to within one sample for
    each source, and can be entered anywhere. The length is that of one pass over everything.
    """

    sources: tuple[Source, ...]
    shares: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, sources: Sequence[Source], configs: Sequence[SourceConfig]) -> Mixture:
        """The mixture that a run's ``data.sources`` describe, of the sources read for them."""
        for source, config in zip(sources, configs, strict=True):
            if not len(source):
                raise UserError(f"The data source '{config.title}' is empty.")
        if all(config.weight is None for config in configs):
            shares = [len(source) * config.repeat for source, config in zip(sources, configs, strict=True)]
        else:
            weights = [Fraction(str(config.weight)) for config in configs]
            denominator = int(np.lcm.reduce([w.denominator for w in weights]))
            shares = [int(w * denominator) for w in weights]
        return cls(tuple(sources), tuple(shares), _distinct([config.title for config in configs]))

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Sample | Record:
        """In the order of the mixture, unshuffled: what a new tokenizer is trained on."""
        number, key = place(index, self.shares)
        return self.sources[number][key % len(self.sources[number])]


def _distinct(titles: Sequence[str]) -> tuple[str, ...]:
    """Titles that several sources have get a number, those of the second and later ones."""
    names: list[str] = []
    for title in titles:
        name, number = title, 1
        while name in names:
            number += 1
            name = f"{title} {number}"
        names.append(name)
    return tuple(names)


def place(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """(source, index within its own stream) of a position of a stream that takes ``shares`` of the sources.

    The first source gets every position at which its due share of the stream reaches the next whole number; the
    positions that are left are dealt out to the others in the same way.
    """
    rest = sum(shares)
    for number, share in enumerate(shares):
        taken = position * share // rest
        if (position + 1) * share // rest > taken:
            return number, taken
        position -= taken
        rest -= share
    raise AssertionError("the last source takes every position that is left")


def most_dates(source: Any) -> int:
    """Images that one sample has of one sensor, at most; of samples made on demand what their source says (``dates``,
    1 where it says nothing)."""
    if isinstance(source, Mixture):
        return max(most_dates(part) for part in source.sources)
    if isinstance(source, list | tuple):
        return max(map(_dates, source), default=1)
    return getattr(source, "dates", 1)


def is_steered(source: Any) -> bool:
    """Whether marks steer the masks of any sample; of samples made on demand what their source says (``steered``)."""
    if isinstance(source, Mixture):
        return any(is_steered(part) for part in source.sources)
    if isinstance(source, list | tuple):
        return any(map(_steered, source))
    return getattr(source, "steered", False)


def _steered(item: Sample | Record) -> bool:
    return any(turn.steer if isinstance(turn, RecordTurn) else turn.marks for turn in item.turns)


def _dates(item: Sample | Record) -> int:
    if isinstance(item, Record):
        return max(1, item.dates)
    return max(1, len(item.images("optical")), len(item.images("sar")))
