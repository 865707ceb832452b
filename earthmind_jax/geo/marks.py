"""What a user points at, brought onto the pixels of an image.

:func:`place` makes of prompts (:class:`~earthmind_jax.geo.prompts.Prompt`) the objects that they mean, each a
:class:`Mark` in pixels (column, row) of the reference image, (0, 0) being the outer corner of its first pixel. Parts of
one name are one object. A part without a name is an object of its own, except that a background
point or line belongs to the object before it. Straight edges are straight in the CRS that they were given in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from affine import Affine
from shapely.geometry.base import BaseGeometry

from earthmind_jax.errors import UserError
from earthmind_jax.geo.bend import Misplaced, check_valid, to_pixels
from earthmind_jax.geo.burn import burn, covered
from earthmind_jax.geo.grid import Grid, known_crs, require_map
from earthmind_jax.geo.prompts import Prompt

MOST_OBJECTS = 64
MOST_POINTS = 32  # of one object
LINE_POINTS, LINE_STEP = 8, 16  # a scribble is so many points at most, and no more than one in so many pixels


@dataclass(frozen=True, eq=False)
class Mark:
    """One object that is pointed at, in pixels (column, row) of an image of ``shape`` (rows, columns).

    Attributes:
      points: clicks, and points along scribbles on the background [P 2]; ``labels`` [P], 1 object, 0 background.
      lines: the object's scribbles.
      box: x0, y0, x1, y1, where one was given.
      area: its polygons; ``mask`` bool [H W], its pixels; None where there are none.
    """

    name: str
    shape: tuple[int, int]
    points: np.ndarray
    labels: np.ndarray
    lines: tuple[BaseGeometry, ...] = ()
    box: tuple[float, float, float, float] | None = None
    area: BaseGeometry | None = None
    mask: np.ndarray | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of everything that is meant."""
        found = [self.box] if self.box else []
        found += [g.bounds for g in (*self.lines, *([self.area] if self.area is not None else []))]
        found += [(x, y, x, y) for x, y in self.points[self.labels == 1]]
        if self.mask is not None:
            rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
            found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        low, high = np.min(found, axis=0)[:2], np.max(found, axis=0)[2:]
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def clicks(self) -> tuple[np.ndarray, np.ndarray]:
        """All points [P 2], those along the object's scribbles too, and their labels [P]."""
        along = [_along(line) for scribble in self.lines for line in shapely.get_parts(scribble)]
        points = np.concatenate([self.points, *along])
        return points, np.pad(self.labels, (0, len(points) - len(self.labels)), constant_values=1)

    def drawn(self) -> np.ndarray | None:
        """bool [H W], the pixels of polygons and mask (of a polygon thinner than a pixel those that it touches); None
        where there are neither."""
        inside = None if self.mask is None else self.mask.copy()
        if self.area is not None:
            drawn = covered([self.area], self.shape)
            inside = drawn if inside is None else inside | drawn
        return inside

    def region(self, cells: tuple[int, int]) -> np.ndarray:
        """bool [H W], what the object's name stands for: its polygons, masks and box, and of the ``cells`` (rows,
        columns) laid over the image those that its points and scribbles touch."""
        drawn = self.drawn()
        inside = np.zeros(self.shape, bool) if drawn is None else drawn
        if self.box is not None:
            inside |= covered([shapely.box(*self.box)], self.shape)
        own = [*map(shapely.Point, self.points[self.labels == 1]), *self.lines]
        return inside | touched(own, self.shape, cells) if own else inside

    def resized(self, shape: tuple[int, int]) -> Mark:
        """The mark on the same image with another number of pixels."""
        y, x = shape[0] / self.shape[0], shape[1] / self.shape[1]
        mask = self.mask
        if mask is not None:
            index = [(np.arange(n) * old // n) for n, old in zip(shape, mask.shape, strict=True)]
            mask = mask[np.ix_(*index)]
        return Mark(
            self.name, shape, self.points * (x, y), self.labels,
            tuple(_scaled(line, x, y) for line in self.lines),
            None if self.box is None else tuple(np.multiply(self.box, (x, y, x, y)).tolist()),
            None if self.area is None else _scaled(self.area, x, y),
            mask if mask is None or mask.any() else None,
        )  # fmt: skip

    def window(self, top: int, left: int, shape: tuple[int, int]) -> Mark | None:
        """The mark on a part of the image; None where nothing of what is meant lies there."""
        frame = shapely.box(left, top, left + shape[1], top + shape[0])
        inside = (self.points >= (left, top)).all(-1) & (self.points < (left + shape[1], top + shape[0])).all(-1)
        box, area, mask = self.box, self.area, self.mask
        if box is not None:
            cut = frame.intersection(shapely.box(*box))
            box = tuple(np.subtract(cut.bounds, (left, top, left, top)).tolist()) if cut.area else None
        if area is not None:
            area = _shifted(_polygonal(frame.intersection(area)), left, top)
        if mask is not None:
            mask = mask[top : top + shape[0], left : left + shape[1]]
            mask = mask if mask.any() else None
        cut_lines = (_shifted(frame.intersection(line), left, top) for line in self.lines)
        lines = tuple(line for line in cut_lines if line is not None and line.length)
        there = any(part is not None for part in (box, area, mask)) or lines or (self.labels[inside] == 1).any()
        points = self.points[inside] - (left, top)
        return Mark(self.name, shape, points, self.labels[inside], lines, box, area, mask) if there else None


def touched(geometries: Iterable[BaseGeometry], shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """bool [H W]: of ``cells`` (rows, columns) laid over the pixels, those that points or lines touch."""
    scale = Affine.scale(shape[1] / cells[1], shape[0] / cells[0])
    burnt = [(g, 1) for g in geometries]
    grid = burn(burnt, cells, transform=scale, all_touched=True).astype(bool)
    rows, columns = (_pixels_of(n, count) for n, count in zip(shape, cells, strict=True))
    return (rows.T.astype(np.int32) @ grid @ columns) > 0


def _pixels_of(pixels: int, cells: int) -> np.ndarray:
    """bool [cells pixels]: the pixels of each cell. Its first is the one at which a mask is sampled for the cell
    (``nearest_resize``), so that the cells found again are these and no others."""
    first = (np.arange(cells, dtype=np.float32) * (np.float32(pixels) / np.float32(cells))).astype(int)
    last = np.maximum(np.append(first[1:], pixels), first + 1)
    return (np.arange(pixels) >= first[:, None]) & (np.arange(pixels) < last[:, None])


def place(prompts: Sequence[Prompt], grid: Grid, before: int = 0) -> tuple[tuple[Mark, ...], tuple[str, ...]]:
    """The objects that prompts point at on a grid, named region1, region2, ... (counted on from ``before``) where they
    have no name, and what to say about them: what lies partly outside the image is cut off.

    Raises:
      UserError: naming the prompt that lies outside the image, cannot be placed, or is none.
    """
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        key = prompt.name
        if not key:
            key = next(reversed(groups)) if groups and not prompt.label else f"\0{len(groups)}"
        groups.setdefault(key, []).append(prompt)
    if not groups:
        raise UserError("There is nothing to point at: the prompts are empty.")
    if len(groups) > MOST_OBJECTS:
        raise UserError(f"There are {len(groups)} objects to point at but {MOST_OBJECTS} is the most; ask in parts.")
    marks, notes = [], []
    for number, (key, parts) in enumerate(groups.items(), before + 1):
        name = f"region{number}" if key.startswith("\0") else key
        mark, said = _mark(name, parts, grid)
        marks.append(mark)
        notes += said
    return tuple(marks), tuple(notes)


def _mark(name: str, parts: Sequence[Prompt], grid: Grid) -> tuple[Mark, list[str]]:
    mark = Mark(name, grid.shape, np.zeros((0, 2)), np.zeros(0, np.int32))
    notes: list[str] = []
    for part in sorted(parts, key=lambda p: -p.label):  # background takes away from what is there
        if part.mask is not None:
            if part.mask.shape != grid.shape:
                raise UserError(
                    f"{part.where} has {part.mask.shape} pixels (rows, columns) but {grid.name} has {grid.shape}."
                )
            mask = part.mask if mark.mask is None else mark.mask | part.mask
            mark = replace(mark, mask=mask if part.label else _without(mark.mask, part.mask))
            continue
        geometry, cut = _on_image(part, grid)
        if cut:
            notes.append(f"{part.where} lies partly outside {grid.name} and is cut off at its edge.")
        mark = _with_geometry(mark, part, geometry)
    points, labels = mark.clicks
    if not (labels == 1).any() and all(part is None for part in (mark.box, mark.area, mark.mask)):
        raise UserError(f"{parts[0].where} is background only; point at the object, too.")
    if len(points) > MOST_POINTS:
        raise UserError(f"{parts[0].where} has {len(points)} points but {MOST_POINTS} is the most for one object.")
    return mark, notes


def _with_geometry(mark: Mark, part: Prompt, geometry: BaseGeometry) -> Mark:
    kind = geometry.geom_type
    if part.box:
        if not part.label:
            raise UserError(f"{part.where} is a box with the label background; point at background with points.")
        if mark.box is not None:
            raise UserError(f"{part.where} is a second box of one object; give it a name of its own.")
        return replace(mark, box=tuple(float(v) for v in geometry.bounds))
    if "Polygon" in kind:
        if part.label:
            return replace(mark, area=geometry if mark.area is None else mark.area.union(geometry))
        if mark.area is None:
            raise UserError(f"{part.where} takes a polygon away from an object that has none.")
        return replace(mark, area=_polygonal(mark.area.difference(geometry)))
    if "Point" in kind:
        new = shapely.get_coordinates(geometry)
    elif part.label:
        return replace(mark, lines=(*mark.lines, geometry))
    else:
        new = np.concatenate([_along(line) for line in shapely.get_parts(geometry)])
    labels = np.full(len(new), part.label, np.int32)
    return replace(mark, points=np.concatenate([mark.points, new]), labels=np.concatenate([mark.labels, labels]))


def _along(line: BaseGeometry) -> np.ndarray:
    count = int(np.clip(np.ceil(line.length / LINE_STEP), 1, LINE_POINTS))
    return shapely.get_coordinates(line.interpolate((np.arange(count) + 0.5) / count, normalized=True))


def _on_image(part: Prompt, grid: Grid) -> tuple[BaseGeometry, bool]:
    """A prompt's geometry in pixels, cut to the image, and whether anything was cut off."""
    assert part.geometry is not None
    try:
        kept, cut = _located(part, part.geometry, grid)
    except Misplaced as error:
        raise UserError(f"{part.where} {error}{_exchanged(part, grid)}") from error
    if kept is None:
        x, y = shapely.get_coordinates(part.geometry)[0]
        at = f"at {x:.6g}, {y:.6g} in {'pixels' if part.crs is None else part.crs}"
        covers = f"0 to {grid.width}, 0 to {grid.height} (columns, rows)" if part.crs is None else grid.extent()
        raise UserError(f"{part.where} ({at}) lies outside {grid.name}, which covers {covers}.{_exchanged(part, grid)}")
    return kept, cut


def _located(part: Prompt, geometry: BaseGeometry, grid: Grid) -> tuple[BaseGeometry | None, bool]:
    """:func:`_on_image`, None where nothing lies on it."""
    whole = True
    if part.crs is not None:
        crs = known_crs(part.crs, part.where)
        require_map(grid.transform, grid.crs, grid.name, "a prompt in map coordinates")
        geometry, whole = to_pixels(geometry, crs, grid)
    else:
        check_valid(geometry)
    if geometry.is_empty:
        return None, True
    if "Point" in geometry.geom_type:
        positions = shapely.get_coordinates(geometry)
        inside = ((positions >= 0) & (positions < (grid.width, grid.height))).all(-1)
        return shapely.MultiPoint(positions[inside]) if inside.any() else None, not (whole and inside.all())
    kept = shapely.box(0, 0, grid.width, grid.height).intersection(geometry)
    if "Polygon" in geometry.geom_type:
        found = _polygonal(kept)
        return found, found is None or not whole or found.area < 0.999 * geometry.area
    lines = [line for line in shapely.get_parts(kept) if line.length]
    found = shapely.MultiLineString(lines) if lines else None
    return found, found is None or not whole or found.length < 0.999 * geometry.length


def _exchanged(part: Prompt, grid: Grid) -> str:
    """Whether the prompt would lie on the image if x and y were exchanged."""
    turned = shapely.transform(part.geometry, lambda positions: positions[:, ::-1])
    try:
        found, _ = _located(part, turned, grid)
    except Misplaced:
        return ""
    order = "column, then row" if part.crs is None else "longitude or easting first, then latitude or northing"
    return "" if found is None else f" With its two numbers exchanged it would lie there: write {order}."


def _without(mask: np.ndarray | None, other: np.ndarray) -> np.ndarray | None:
    left = None if mask is None else mask & ~other
    return left if left is not None and left.any() else None


def _polygonal(geometry: BaseGeometry) -> BaseGeometry | None:
    """The polygons of a geometry; None where there are none."""
    parts = [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and p.area > 0]
    parts += [q for p in shapely.get_parts(geometry) if p.geom_type == "MultiPolygon" for q in p.geoms]
    return shapely.union_all(parts) if parts else None


def _scaled(geometry: BaseGeometry, x: float, y: float) -> BaseGeometry:
    return shapely.transform(geometry, lambda positions: positions * (x, y))


def _shifted(geometry: BaseGeometry | None, left: float, top: float) -> BaseGeometry | None:
    if geometry is None or geometry.is_empty:
        return None
    return shapely.transform(geometry, lambda positions: positions - (left, top))
