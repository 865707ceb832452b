"""Reshape, permute, split and join in one invertible notation.

A pattern names the axes of a source tensor and of what becomes of it, ``"source axes -> target axes"``::

    "O I -> I O"                                            transpose of a dense kernel
    "(N h) D -> D N h"                                      split of heads
    "1 S D -> S D"        "D -> 1 D"                        squeeze and unsqueeze
    "{N h|N h|N h} D -> D N h"                              thirds of a fused qkv, three targets
    "{N h|K h|K h} D -> D N h | D K h | D K h"              contiguous q, k, v of different sizes
    "(K {g|1|1} h) D -> D (K g) h | D K h | D K h"          g queries, one key, one value in each of K groups
    "R D -> D R | D R | D R"                                no parts: every target is the whole, and they must agree

Parentheses hold the factors of one axis, the slowest first; braces hold the parts that lie one after the other along
an axis, one part for each target. Sizes are never written down: they follow from the shapes of the targets. The
inverse is the same pattern read from right to left, so every transform is exact in both directions.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from earthmind_jax.errors import UserError

Product = tuple[str, ...]  # the names multiplied in one axis; () is an axis of size 1
Shape = tuple[int, ...]
Sizes = dict[str, int]

_AXIS = re.compile(r"\s*(?:\(([^()]*)\)|(\{[^{}]*\})|([^\s(){}|]+))")


class ShapeMismatch(ValueError):
    """The shapes at hand cannot satisfy the pattern; the message says why."""


def _product(text: str) -> Product:
    return tuple(name for name in text.split() if name != "1")


def _axes(text: str) -> tuple[str, ...]:
    """The axes of one side, each as its inner text."""
    axes, position, text = [], 0, text.strip()
    while position < len(text):
        match = _AXIS.match(text, position)
        if match is None:
            raise ValueError(f"cannot read '{text[position:]}' in the axes '{text}'")
        axes.append(next(group for group in match.groups() if group is not None))
        position = match.end()
    return tuple(axes)


@dataclass(frozen=True)
class Transform:
    """One source tensor to ``pieces`` target tensors; build with :func:`transform`.

    ``sources[p]`` are the axes of the source as target p sees it; ``axis`` is where the parts lie one after the
    other (its factors before and after the braces in ``before`` and ``after``), or -1 when the source is not split.
    """

    pattern: str
    sources: tuple[tuple[Product, ...], ...]
    targets: tuple[tuple[Product, ...], ...]
    axis: int = -1
    before: Product = ()
    after: Product = ()
    parts: tuple[Product, ...] = ((),)

    @property
    def pieces(self) -> int:
        """Number of target tensors."""
        return len(self.targets)

    def solve(self, shapes: Sequence[Shape]) -> Sizes:
        """Sizes of all named axes from the target shapes; raises :class:`ShapeMismatch` when there are none."""
        sizes: Sizes = {}
        pending: list[tuple[Product, int]] = []
        for axes, shape in zip(self.targets, shapes, strict=True):
            if len(axes) != len(shape):
                raise ShapeMismatch(f"'{self.pattern}' makes {len(axes)} axes, not the shape {shape}")
            pending += zip(axes, shape, strict=True)
        while pending:
            waiting = []
            for axis, size in pending:
                known = math.prod(sizes[name] for name in axis if name in sizes)
                unknown = [name for name in axis if name not in sizes]
                if len(unknown) > 1:
                    waiting.append((axis, size))
                elif unknown and known and size % known == 0:
                    sizes[unknown[0]] = size // known
                elif unknown or known != size:
                    raise ShapeMismatch(f"'{self.pattern}' cannot make the shapes {', '.join(map(str, shapes))}")
            if len(waiting) == len(pending):
                raise ShapeMismatch(f"'{self.pattern}' does not determine the sizes of {waiting[0][0]}")
            pending = waiting
        return sizes

    def source_shape(self, sizes: Sizes) -> Shape:
        """Shape of the source tensor."""
        shape = [_size(axis, sizes) for axis in self.sources[0]]
        if self.axis >= 0:
            around = _size(self.before, sizes) * _size(self.after, sizes)
            shape[self.axis] = around * sum(_size(part, sizes) for part in self.parts)
        return tuple(shape)

    def forward(self, array: np.ndarray, sizes: Sizes) -> list[np.ndarray]:
        """The target tensors (views of ``array`` where numpy can)."""
        slices = [array] * self.pieces
        if self.axis >= 0:
            bounds = np.cumsum([_size(part, sizes) for part in self.parts])
            array = array.reshape(self._apart(array.shape, sizes, int(bounds[-1])))
            slices = np.split(array, bounds[:-1], axis=self.axis + 1)
        pairs = zip(slices, self.sources, self.targets, strict=True)
        return [rearrange(piece, source, target, sizes) for piece, source, target in pairs]

    def inverse(self, arrays: Sequence[np.ndarray], sizes: Sizes) -> np.ndarray:
        """The source tensor from its targets: ``inverse(forward(x)) == x``, bit for bit."""
        pairs = zip(arrays, self.targets, self.sources, strict=True)
        slices = [rearrange(piece, target, source, sizes) for piece, target, source in pairs]
        if self.axis < 0:
            if any(not np.array_equal(slices[0], other) for other in slices[1:]):
                raise UserError(
                    f"{self.pieces} parameters share one tensor in this layout and have since become different, so "
                    "they cannot be written as one: merge them into their kernels first."
                )
            return slices[0]
        whole = self.source_shape(sizes)
        apart = [
            piece.reshape(self._apart(whole, sizes, _size(part, sizes)))
            for piece, part in zip(slices, self.parts, strict=True)
        ]
        return np.concatenate(apart, axis=self.axis + 1).reshape(whole)

    def _apart(self, shape: Shape, sizes: Sizes, size: int) -> Shape:
        """``shape`` with the joined axis as three: the factors before, ``size`` entries of parts, the factors after."""
        around = (_size(self.before, sizes), size, _size(self.after, sizes))
        return (*shape[: self.axis], *around, *shape[self.axis + 1 :])


@functools.cache
def transform(pattern: str) -> Transform:
    """Parse ``pattern`` (see the module); raises ``ValueError`` for one that is not a bijection."""
    left, arrow, right = pattern.partition("->")
    if not arrow:
        raise ValueError(f"'{pattern}' has no '->'")
    axis, before, after, parts = -1, (), (), ((),)
    source: list[Product] = []
    for number, text in enumerate(_axes(left)):
        head, brace, rest = text.partition("{")
        if not brace:
            source.append(_product(text))
            continue
        if axis >= 0:
            raise ValueError(f"'{pattern}' splits two axes")
        inner, _, tail = rest.partition("}")
        axis, before, after = number, _product(head), _product(tail)
        parts = tuple(_product(part) for part in inner.split("|"))
        source.append(())
    sources = tuple(
        tuple(before + part + after if number == axis else names for number, names in enumerate(source))
        for part in parts
    )
    targets = tuple(tuple(_product(text) for text in _axes(side)) for side in right.split("|"))
    if len(targets) == 1:
        targets *= len(parts)
    if axis < 0:
        sources *= len(targets)
    if len(targets) != len(sources):
        raise ValueError(f"'{pattern}' has {len(parts)} parts and {len(targets)} targets")
    for ours, theirs in zip(sources, targets, strict=True):
        names, other = sum(ours, ()), sum(theirs, ())
        if sorted(names) != sorted(other) or len(set(names)) != len(names):
            raise ValueError(f"'{pattern}' does not name the same axes, once each, on both sides")
    return Transform(pattern, sources, targets, axis, before, after, parts)


def _size(axis: Product, sizes: Sizes) -> int:
    return math.prod(sizes[name] for name in axis)


def rearrange(array: np.ndarray, ours: tuple[Product, ...], theirs: tuple[Product, ...], sizes: Sizes) -> np.ndarray:
    """``array`` with the axes ``ours`` as one with the axes ``theirs`` (a view of it where numpy can)."""
    names, wanted = sum(ours, ()), sum(theirs, ())
    apart = array.reshape([sizes[name] for name in names])
    return apart.transpose([names.index(name) for name in wanted]).reshape([_size(axis, sizes) for axis in theirs])
