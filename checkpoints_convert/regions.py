"""Which part of a source tensor holds a part of a parameter, so that no more than that is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints_convert.transforms import Sizes, Transform, rearrange

Range = tuple[int, int]
"""First entry and the one after the last."""


@dataclass(frozen=True)
class Region:
    """``source``: the slices of the source tensor to read; :meth:`forward` makes the wanted part of them.

    ``exact``: the slices hold the wanted part and nothing else.
    """

    how: Transform
    piece: int
    source: tuple[slice, ...]
    sizes: Sizes  # of the axes as far as they are read
    cut: tuple[slice, ...]
    exact: bool

    def forward(self, block: np.ndarray) -> np.ndarray:
        """The wanted part of target ``piece``, from the block that ``source`` names."""
        if self.how.axis >= 0 and self.how.before:  # the parts alternate: the block holds all of them
            return self.how.forward(block, self.sizes)[self.piece][self.cut]
        ours, theirs = self.how.sources[self.piece], self.how.targets[self.piece]
        return rearrange(block, ours, theirs, self.sizes)[self.cut]

    def inverse(self, part: np.ndarray) -> np.ndarray:
        """The block from the wanted part of target ``piece``; only where the region is ``exact``."""
        return rearrange(part, self.how.targets[self.piece], self.how.sources[self.piece], self.sizes)


def region(how: Transform, sizes: Sizes, piece: int, wanted: Sequence[Range]) -> Region:
    """The region of the source that holds the ranges ``wanted`` of the axes of target ``piece``.

    Source ranges are contiguous along each axis; where the wanted numbers are scattered, the range spans them.
    """
    # A range of an axis is one of its slowest factor; what the faster ones add is cut off afterwards.
    ranges: dict[str, Range] = {}
    for names, (start, stop) in zip(how.targets[piece], wanted, strict=True):
        if names and (start, stop) != (0, _size(names, sizes)):
            step = _size(names[1:], sizes)
            ranges[names[0]] = start // step, -(-stop // step)
    leads = {_lead(how, piece, number) for number in range(len(how.sources[piece]))}
    ranges = {name: span for name, span in ranges.items() if name in leads}
    kept = dict(sizes) | {name: stop - start for name, (start, stop) in ranges.items()}
    slices = []
    for number, names in enumerate(how.sources[piece]):
        lead, length, offset = _lead(how, piece, number), _size(names, sizes), 0
        if number == how.axis:
            parts = [_size(part, sizes) for part in how.parts]
            around = _size(how.before, sizes) * _size(how.after, sizes)
            length, offset = (around * sum(parts), 0) if how.before else (length, around * sum(parts[:piece]))
        start, stop = ranges.get(lead, (0, sizes.get(lead, 1)))
        step = length // max(sizes.get(lead, 1), 1)
        slices.append(slice(offset + start * step, offset + stop * step))
    cut = []
    for names, (start, stop) in zip(how.targets[piece], wanted, strict=True):
        first = ranges.get(names[0], (0, 0))[0] * _size(names[1:], sizes) if names else 0
        cut.append(slice(start - first, stop - first))
    block = [_size(names, kept) for names in how.targets[piece]]
    whole = all((c.start, c.stop) == (0, size) for c, size in zip(cut, block, strict=True))
    alone = how.axis < 0 or not how.before
    return Region(how, piece, tuple(slices), kept, tuple(cut), whole and alone)


def _lead(how: Transform, piece: int, number: int) -> str:
    """The slowest name of a source axis, "" if it has none: a range of it is contiguous."""
    names = how.sources[piece][number]
    return names[0] if names else ""


def _size(names: Sequence[str], sizes: Sizes) -> int:
    return math.prod(sizes[name] for name in names)
