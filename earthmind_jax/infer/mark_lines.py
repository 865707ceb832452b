"""What was pointed at, as lines and points to be drawn over a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.outline import polygons_of

COLOUR = (0, 220, 90)
"""Of marks; masks, sensors, cloud and missing data have others."""


@dataclass(frozen=True, eq=False)
class Lines:
    """A mark over a picture, (column, row) from the picture's outer corner.

    Attributes:
      lines: outlines of boxes, polygons and masks, and scribbles, each [n 2].
      points: clicks [P 2]; ``labels`` [P], 1 object, 0 background.
      corner: where its name stands.
    """

    name: str
    lines: tuple[np.ndarray, ...]
    points: np.ndarray
    labels: np.ndarray
    corner: tuple[float, float]


def lines_of(mark: Mark, shape: tuple[int, int]) -> Lines:
    """A mark over a picture of ``shape`` (rows, columns) of the same ground."""
    scale = shape[1] / mark.shape[1], shape[0] / mark.shape[0]
    found = [] if mark.box is None else [shapely.get_coordinates(shapely.box(*mark.box).exterior)]
    if mark.area is not None:
        for part in shapely.get_parts(mark.area):
            found += [shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)]
    if mark.mask is not None:
        found += [np.asarray(ring) for rings in polygons_of(mark.mask) for ring in rings]
    found += [shapely.get_coordinates(line) for scribble in mark.lines for line in shapely.get_parts(scribble)]
    x0, y0, _, _ = mark.bounds
    corner = x0 * scale[0], y0 * scale[1]
    return Lines(mark.name, tuple(line * scale for line in found), mark.points * scale, mark.labels, corner)


def described(mark: Mark) -> str:
    """What a mark consists of, in words."""
    kinds = (
        ("a box", mark.box is not None),
        ("polygons", mark.area is not None),
        ("a mask", mark.mask is not None),
        ("a scribble", bool(mark.lines)),
        (f"{int((mark.labels == 1).sum())} point(s)", bool((mark.labels == 1).any())),
        (f"{int((mark.labels == 0).sum())} background point(s)", bool((mark.labels == 0).any())),
    )
    return ", ".join(kind for kind, there in kinds if there)
