"""Connected regions of a mask, and their outlines in pixel coordinates: at once, or strip by strip for large scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import shapely
from rasterio.features import shapes

from earthmind_jax.geo.burn import burn

Ring = np.ndarray  # [n 2] closed


@dataclass(eq=False)
class Region:
    """An 8-connected region.

    Attributes:
      parts: its polygons (outer ring, holes), each ring [n 2] of pixel corners (column, row), closed. Its 4-connected
        parts touch in points only: a valid MultiPolygon, never a ring through itself.
      pixels: how many it has.
      sums: of each layer, over its pixels.
    """

    parts: list[list[Ring]] = field(default_factory=list)
    pixels: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    strips: int = 0  # that its parts come from

    def mean(self, layer: str) -> float:
        """Mean of a layer over the region."""
        return self.sums[layer] / self.pixels

    def add(self, other: Region) -> None:
        """Takes in what belongs to it, too."""
        self.parts += other.parts
        self.pixels += other.pixels
        self.strips += other.strips
        for layer, value in other.sums.items():
            self.sums[layer] = self.sums.get(layer, 0.0) + value

    def join(self) -> None:
        """Makes its parts whole across the seams between strips."""
        if self.strips > 1:
            whole = shapely.union_all([shapely.Polygon(rings[0], rings[1:]) for rings in self.parts])
            self.parts = [
                [np.asarray(ring.coords) for ring in (part.exterior, *part.interiors)]
                for part in shapely.get_parts(whole)
            ]
            self.strips = 1
        self.parts = [[_corners(ring) for ring in rings] for rings in self.parts]


def label_regions(mask: np.ndarray) -> np.ndarray:
    """int32 [H W]: 0 outside of ``mask``, else 1, 2, ... the number of the 8-connected region."""
    regions = [shape for shape, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=8)]
    if not regions:
        return np.zeros(mask.shape, np.int32)
    return burn(((shape, i) for i, shape in enumerate(regions, 1)), mask.shape, "int32")


def trace(mask: np.ndarray, layers: Mapping[str, np.ndarray] | None = None, min_pixels: int = 1) -> list[Region]:
    """The regions of a mask, bool [H W], of at least ``min_pixels``, with the sums of ``layers`` [H W] over each."""
    return list(trace_strips([(mask, layers or {})], min_pixels))


def trace_strips(
    strips: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]], min_pixels: int = 1
) -> Iterator[Region]:
    """The regions of a mask that comes in strips (mask bool [h W], layers [h W]), top to bottom.

    A region is handed out as soon as no later strip can add to it: memory holds one strip and the open outlines.
    """
    open_regions: list[Region] = []
    border, top = None, 0  # the last row: 0, or 1 + the number of an open region
    for mask, layers in strips:
        label = label_regions(mask)
        new = _regions(label, layers, top)
        merged, number = _merge(open_regions, new, _touching(border, label[0]) if border is not None else ())
        last = number[len(open_regions) :][label[-1] - 1] + 1
        last[label[-1] == 0] = 0
        alive = np.unique(last[last > 0])
        reaches_on = set(alive.tolist())
        for i, region in enumerate(merged, 1):
            if i not in reaches_on and region.pixels >= min_pixels:
                region.join()
                yield region
        border = np.searchsorted(alive, last) + 1
        border[last == 0] = 0
        open_regions = [merged[i - 1] for i in alive]
        top += len(mask)
    for region in open_regions:
        if region.pixels >= min_pixels:
            region.join()
            yield region


def _regions(label: np.ndarray, layers: Mapping[str, np.ndarray], top: int) -> list[Region]:
    count = np.bincount(label.ravel())
    sums = {name: np.bincount(label.ravel(), np.asarray(layer, float).ravel()) for name, layer in layers.items()}
    regions = [
        Region(pixels=int(count[i]), sums={name: float(values[i]) for name, values in sums.items()}, strips=1)
        for i in range(1, len(count))
    ]
    for shape, value in shapes(label, mask=label > 0, connectivity=4):
        rings = [np.asarray(ring, float) + np.array([0, top]) for ring in shape["coordinates"]]
        regions[int(value) - 1].parts.append(rings)
    return regions


def _touching(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Distinct pairs (number above, number below) of 8-connected neighbours in two rows."""
    width = len(above)
    pairs = []
    for shift in (-1, 0, 1):
        a, b = above[max(0, -shift) : width - max(0, shift)], below[max(0, shift) : width - max(0, -shift)]
        both = (a > 0) & (b > 0)
        pairs.append(np.stack([a[both], b[both]], -1))
    return np.unique(np.concatenate(pairs), axis=0)


def _merge(old: list[Region], new: list[Region], pairs: Iterable[tuple[int, int]]) -> tuple[list[Region], np.ndarray]:
    """(regions, for each of ``old`` and then ``new`` the index among them)."""
    parent = list(range(len(old) + len(new)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for above, below in pairs:
        parent[root(len(old) + int(below) - 1)] = root(int(above) - 1)
    found: dict[int, int] = {}
    merged: list[Region] = []
    number = np.zeros(len(parent) + 1, np.int64)
    for i, region in enumerate([*old, *new]):
        at = found.setdefault(root(i), len(merged))
        if at == len(merged):
            merged.append(region)
        else:
            merged[at].add(region)
        number[i] = at
    return merged, number


def _corners(ring: Ring) -> Ring:
    """The closed ring without points in the middle of straight edges."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    kept = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([kept, kept[:1]])
