"""What a user points at, as given: points, boxes, polygons, scribbles and masks, in pixels or in a CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS
from shapely.geometry.base import BaseGeometry

from earthmind_jax.errors import UserError

KINDS = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon")


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A part of what is pointed at, as given.

    Attributes:
      geometry: points, lines or polygons; of a ``box`` the polygon whose bounds it is.
      mask: bool [H W] on the image's own pixels, instead of a geometry.
      label: 1 for the object, 0 for background, which is not meant.
      name: of the object; "" for one of its own.
      crs: of the coordinates; None: pixels (column, row).
      where: what messages call it.
    """

    geometry: BaseGeometry | None = None
    mask: np.ndarray | None = None
    label: int = 1
    box: bool = False
    name: str = ""
    crs: CRS | str | None = None
    where: str = "the prompt"

    def __post_init__(self) -> None:
        if self.label not in (0, 1) or isinstance(self.label, bool):
            raise UserError(f"{self.where} has the label {self.label!r}; give 1 (object) or 0 (background).")
        if (self.geometry is None) == (self.mask is None):
            raise UserError(f"{self.where} must be a geometry or a mask, one of the two.")
        if self.mask is not None:
            if np.ndim(self.mask) != 2 or not np.any(self.mask):
                shape = np.shape(self.mask)
                raise UserError(f"{self.where} must be a mask [rows columns] with at least one pixel set, not {shape}.")
        else:
            self._check_geometry()

    def _check_geometry(self) -> None:
        geometry, kind = self.geometry, getattr(self.geometry, "geom_type", type(self.geometry).__name__)
        if kind not in KINDS:
            raise UserError(f"{self.where} is a {kind}; point with {', '.join(KINDS)}.")
        assert geometry is not None
        if geometry.is_empty:
            raise UserError(f"{self.where} is empty; give it coordinates.")
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            raise UserError(f"{self.where} has a coordinate that is not a finite number.")
        if "Line" in kind and geometry.length == 0:
            raise UserError(f"{self.where} is a line without length; give a point instead.")

    @classmethod
    def point(cls, x: float, y: float, label: int = 1, **options: Any) -> Prompt:
        """A click; ``label`` 0 for background."""
        return cls.points([(x, y)], label, **options)

    @classmethod
    def points(cls, positions: Sequence[Sequence[float]], label: int = 1, **options: Any) -> Prompt:
        """Several clicks (x, y) on one object."""
        where = options.setdefault("where", "the point prompt")
        return cls(geometry=shapely.MultiPoint(_pairs(positions, 1, where)), label=label, **options)

    @classmethod
    def from_box(cls, x0: float, y0: float, x1: float, y1: float, **options: Any) -> Prompt:
        """A box; x0 < x1 and y0 < y1."""
        where = options.setdefault("where", "the box prompt")
        (x0, y0), (x1, y1) = _pairs([(x0, y0), (x1, y1)], 2, where)
        if not (x0 < x1 and y0 < y1):
            raise UserError(f"{where} is x0,y0,x1,y1 with x0 < x1 and y0 < y1, not {x0:g},{y0:g},{x1:g},{y1:g}.")
        return cls(geometry=shapely.box(x0, y0, x1, y1), box=True, **options)

    @classmethod
    def line(cls, positions: Sequence[Sequence[float]], label: int = 1, **options: Any) -> Prompt:
        """A scribble along (x, y)."""
        where = options.setdefault("where", "the line prompt")
        return cls(geometry=shapely.LineString(_pairs(positions, 2, where)), label=label, **options)

    @classmethod
    def polygon(cls, positions: Sequence[Sequence[float]], **options: Any) -> Prompt:
        """The inside of a ring (x, y), which need not be closed."""
        where = options.setdefault("where", "the polygon prompt")
        return cls(geometry=shapely.Polygon(_pairs(positions, 3, where)), **options)

    @classmethod
    def from_mask(cls, mask: np.ndarray, **options: Any) -> Prompt:
        """The nonzero pixels of a mask [H W]."""
        return cls(mask=np.asarray(mask) != 0, **{"where": "the mask prompt", **options})


def _pairs(positions: Any, least: int, where: str) -> np.ndarray:
    try:
        pairs = np.asarray(positions, float)
    except (TypeError, ValueError):
        pairs = np.zeros(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) < least:
        count = "a position" if least == 1 else f"at least {least} positions"
        raise UserError(f"{where} needs {count} x, y in numbers, not {positions!r}.")
    if not np.isfinite(pairs).all():
        raise UserError(f"{where} has a coordinate that is not a finite number.")
    return pairs
