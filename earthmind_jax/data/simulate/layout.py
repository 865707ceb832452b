"""The ground as painted: regions of materials, numbered objects, and the class map that follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, UInt8

from earthmind_jax.data.simulate.materials import COVER, INDEX, OBJECTS, Cover, draw_materials
from earthmind_jax.data.simulate.noise import components


@dataclass(frozen=True)
class Instance:
    """One object (count 1), or all areas of one class (count = connected components of at least 4 pixels).

    ``bbox`` is (left, top, right, bottom) in pixels, the last two exclusive; ``mask`` is bool [H W].
    """

    cover: Cover
    bbox: tuple[int, int, int, int]
    count: int
    area: int
    _map: np.ndarray = field(repr=False)
    _value: int

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        return self._map == self._value


@dataclass(frozen=True)
class Layout:
    """What lies where.

    Attributes:
      class_map: uint8 [H W] of ``Cover`` values.
      region: int32 [H W], which piece of ground a pixel belongs to (a parcel, a lake, one roof).
      material: int [R], the material of each region.
      objects: int32 [H W], number of the object (building, ship, bridge) at a pixel, from 1; 0 where there is none.
      object_cover: uint8 [K + 1], class of each object number.
      gsd: metres per pixel.
      theme: which of ``THEMES`` it was drawn from (what it came out as is ``questions.scene_kind``).
    """

    class_map: UInt8[np.ndarray, "H W"]
    region: Int[np.ndarray, "H W"]
    material: Int[np.ndarray, " R"]
    objects: Int[np.ndarray, "H W"]
    object_cover: UInt8[np.ndarray, " K"]
    gsd: float
    theme: str

    @cached_property
    def things(self) -> tuple[Instance, ...]:
        """All objects."""
        return tuple(
            Instance(Cover(int(self.object_cover[number])), box, 1, area, self.objects, number)
            for number, (box, area) in boxes(self.objects).items()
        )

    @cached_property
    def counts(self) -> dict[Cover, int]:
        """Number of objects of each countable class."""
        number = np.bincount(self.object_cover, minlength=len(Cover) + 1)
        return {cover: int(number[cover]) for cover in OBJECTS}

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """All objects, then one entry per class of area that is present (roads included)."""
        found = list(self.things)
        labels = components(self.class_map)
        roots, sizes = np.unique(labels, return_counts=True)
        covers = self.class_map.ravel()[roots]
        for value, (box, area) in boxes(self.class_map).items():
            if value not in OBJECTS:
                count = int(((covers == value) & (sizes >= 4)).sum())
                found.append(Instance(Cover(value), box, max(count, 1), area, self.class_map, value))
        return tuple(found)


def boxes(labels: Int[np.ndarray, "H W"]) -> dict[int, tuple[tuple[int, int, int, int], int]]:
    """Bounding box and area of every positive label."""
    rows, columns = np.nonzero(labels)
    if not rows.size:
        return {}
    values = labels[rows, columns].astype(np.int64)
    area = np.bincount(values)
    low = np.full((2, area.size), max(labels.shape))
    high = np.zeros((2, area.size), np.int64)
    for axis, position in enumerate((columns, rows)):
        np.minimum.at(low[axis], values, position)
        np.maximum.at(high[axis], values, position + 1)
    return {
        int(v): ((int(low[0, v]), int(low[1, v]), int(high[0, v]), int(high[1, v])), int(area[v]))
        for v in np.flatnonzero(area)
    }


class Canvas:
    """The scene being painted: regions with materials, and numbered objects.

    Attributes:
      shape: rows and columns that are painted.
      whole: rows and columns of the scene that these are a part of; places and sizes of what lies there follow from it.
      origin: row and column of the scene where the part begins.
    """

    def __init__(
        self, rng: np.random.Generator, shape: tuple[int, int], gsd: float, whole: tuple[int, int] | None = None
    ) -> None:
        self.rng, self.shape, self.gsd = rng, shape, gsd
        self.whole, self.origin = shape, (0, 0)
        if whole is not None:
            self.whole = whole
            self.origin = tuple(int(rng.integers(w - n + 1)) for w, n in zip(whole, shape, strict=True))
        self.region = np.zeros(shape, np.int32)
        self.objects = np.zeros(shape, np.int32)
        self.object_cover = [0]
        self.material = np.zeros(0, np.int64)
        self.y, self.x = np.meshgrid(
            *(np.arange(first, first + n, dtype=np.float32) for first, n in zip(self.origin, shape, strict=True)),
            indexing="ij",
        )
        self.side = float(np.sqrt(self.whole[0] * self.whole[1]))

    def add(self, materials: np.ndarray) -> int:
        """Register new regions; returns the number of the first."""
        first = self.material.size
        self.material = np.concatenate([self.material, np.asarray(materials, np.int64)])
        return first

    def paint(self, mask: np.ndarray, material: int | str | Cover) -> None:
        """Cover ``mask`` with one region of a material, or of a random material of a class."""
        if isinstance(material, Cover):
            material = int(draw_materials(self.rng, material, 1)[0])
        elif isinstance(material, str):
            material = INDEX[material]
        self.region[mask] = self.add(np.array([material]))

    def paint_object(self, mask: np.ndarray, cover: Cover, material: int | None = None) -> None:
        self.paint(mask, cover if material is None else material)
        self.object_cover.append(int(cover))
        self.objects[mask] = len(self.object_cover) - 1

    def cover(self) -> np.ndarray:
        """uint8 [H W] class of each pixel as painted so far."""
        return COVER[self.material][self.region]

    def pixels(self, metres: float, least: float = 1.0) -> float:
        return max(least, metres / self.gsd)

    def rotated(self, angle: float, centre: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (along, across) in pixels of axes turned by ``angle``, about ``centre`` (row, column)."""
        cy, cx = centre or (self.whole[0] / 2, self.whole[1] / 2)
        dy, dx = self.y - np.float32(cy), self.x - np.float32(cx)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return c * dx + s * dy, c * dy - s * dx

    def place(self, margin: float = 0.1) -> tuple[float, float]:
        """A random position, ``margin`` of the scene away from its edges."""
        at = margin + (1 - 2 * margin) * self.rng.random(2)
        return float(at[0] * self.whole[0]), float(at[1] * self.whole[1])
