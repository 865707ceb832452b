"""Procedural land cover: what lies where, before any sensor looks at it.

A layout is painted from back to front: natural areas (a warped Voronoi partition), parcels, water with its shore,
pavement, roads with bridges, buildings, ships. Lengths are drawn in metres (so that a road is a road at any pixel size)
and areas as fractions of the image (so that every pixel size shows a few of them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from earthmind_jax.config import one_of
from earthmind_jax.data.simulate.layout import Canvas, Layout
from earthmind_jax.data.simulate.materials import STUFF, Cover, draw_materials
from earthmind_jax.data.simulate.noise import dilate, fractal_noise, product, smooth_noise
from earthmind_jax.errors import UserError

FOREST, FIELD, GRASSLAND, BARE, ASPHALT = STUFF[1:]


@dataclass(frozen=True)
class Theme:
    """Odds of a kind of place: weights of its areas (forest, field, grassland, bare), chances of what lies on them."""

    areas: tuple[float, float, float, float]
    water: tuple[float, float, float, float]  # none, river, lake, coast
    pavement: float  # chance of car parks and yards
    runway: float
    village: float
    road: float
    ships: float
    dominant: float = 0.0  # least share of the heaviest area


THEMES: dict[str, Theme] = {
    "farmland": Theme((0.25, 0.55, 0.10, 0.10), (0.45, 0.30, 0.25, 0.0), 0.15, 0.0, 0.5, 0.8, 0.2, 0.35),
    "forest": Theme((0.50, 0.30, 0.10, 0.10), (0.40, 0.30, 0.30, 0.0), 0.10, 0.0, 0.2, 0.5, 0.2, 0.40),
    "coast": Theme((0.25, 0.30, 0.20, 0.25), (0.0, 0.10, 0.15, 0.75), 0.25, 0.0, 0.5, 0.5, 0.7),
    "town": Theme((0.25, 0.35, 0.20, 0.20), (0.35, 0.35, 0.15, 0.15), 0.60, 0.0, 1.0, 0.95, 0.5),
    "airport": Theme((0.20, 0.40, 0.22, 0.18), (0.40, 0.20, 0.25, 0.15), 0.5, 1.0, 0.5, 0.8, 0.4),
    "arid": Theme((0.10, 0.20, 0.25, 0.45), (0.35, 0.30, 0.35, 0.0), 0.25, 0.0, 0.4, 0.6, 0.3, 0.30),
    "rangeland": Theme((0.20, 0.25, 0.40, 0.15), (0.45, 0.25, 0.30, 0.0), 0.15, 0.0, 0.4, 0.6, 0.2, 0.35),
}


def paint_areas(canvas: Canvas, theme: Theme) -> None:
    """Forest, fields, grassland, bare ground: a warped Voronoi diagram, whose field cells share one set of parcels."""
    rng = canvas.rng
    count = int(np.clip(rng.integers(4, 9) * (canvas.side / 64.0) ** 1.2, 4, 60))
    at = rng.random((count, 2)) * canvas.whole
    warp = 0.07 * canvas.side
    y = canvas.y + np.float32(warp) * fractal_noise(rng, canvas.shape, 0.18 * canvas.side)
    x = canvas.x + np.float32(warp) * fractal_noise(rng, canvas.shape, 0.18 * canvas.side)
    # squared distance up to |p|^2, which does not change which seed is nearest
    seeds = at.astype(np.float32)
    distance = (seeds**2).sum(1)[:, None] - 2.0 * product(seeds, np.stack([y.ravel(), x.ravel()]))
    cell = distance.argmin(0).reshape(canvas.shape)

    weights = np.array(theme.areas)
    kinds = rng.choice(4, count, p=weights / weights.sum())
    heavy = int(weights.argmax())
    kinds[: int(np.ceil(theme.dominant * count))] = heavy
    materials = np.zeros(count, np.int64)
    for kind, cover in enumerate((FOREST, FIELD, GRASSLAND, BARE)):
        chosen = kinds == kind
        if chosen.any():
            # two materials of a class at most in one landscape: neighbouring woods are of the same kind
            palette = draw_materials(rng, cover, 2)
            materials[chosen] = palette[rng.integers(2, size=int(chosen.sum()))]
    canvas.region[:] = canvas.add(materials) + cell
    fields = (kinds == 1)[cell]
    if fields.any():
        parcels = parcel_grid(canvas)
        palette = draw_materials(rng, FIELD, 4)
        first = canvas.add(palette[rng.integers(4, size=int(parcels.max()) + 1)])
        canvas.region[fields] = first + parcels[fields]


def parcel_grid(canvas: Canvas) -> np.ndarray:
    """Parcel number int [H W]: strips of irregular width in a rotated frame, cut across at irregular lengths."""
    rng = canvas.rng
    along, across = canvas.rotated(rng.random() * np.pi)
    reach = 0.75 * float(np.hypot(*canvas.whole))
    width = canvas.pixels(float(rng.uniform(60, 300)), 5.0)
    length = width * float(rng.uniform(1.0, 5.0))
    widths = width * np.exp(0.35 * rng.standard_normal(int(2 * reach / width) + 8))
    edges = np.cumsum(widths) - reach
    strip = np.searchsorted(edges, across.ravel()).reshape(canvas.shape)
    strip = np.minimum(strip, len(edges) - 1)
    lengths = (length * np.exp(0.3 * rng.standard_normal(len(edges)))).astype(np.float32)
    phases = rng.random(len(edges)).astype(np.float32)
    cut = np.floor((along + np.float32(reach)) / lengths[strip] + phases[strip]).astype(np.int64)
    return (strip % 24) * 24 + cut % 24


def paint_water(canvas: Canvas, theme: Theme) -> None:
    """A river, a lake or a sea with its shore; two kinds of water may share it (a plume)."""
    rng, side = canvas.rng, canvas.side
    kind = int(rng.choice(4, p=theme.water))
    if kind == 0:
        return
    rough = fractal_noise(rng, canvas.shape, 0.25 * side, 4)
    if kind == 1:
        along, across = canvas.rotated(rng.random() * np.pi, canvas.place(0.25))
        wave = 2 * np.pi / (side * rng.uniform(0.5, 1.6))
        bend = side * rng.uniform(0.02, 0.12) * np.sin(wave * along + rng.random() * 2 * np.pi)
        shore = np.abs(across - bend) - 0.5 * side * rng.uniform(0.05, 0.20) + 0.012 * side * rough
    elif kind == 2:
        shore = np.full(canvas.shape, np.inf, np.float32)
        for _ in range(int(rng.integers(1, 4))):
            along, across = canvas.rotated(rng.random() * np.pi, canvas.place(0.15))
            radius, flat = side * rng.uniform(0.10, 0.30), rng.uniform(1.0, 2.2)
            shore = np.minimum(shore, np.hypot(along / flat, across) - radius)
        shore = shore + 0.05 * side * rough
    else:
        along, _ = canvas.rotated(rng.random() * 2 * np.pi)
        shore = along - side * rng.uniform(-0.25, 0.25) + 0.06 * side * rough
    shore = shore.astype(np.float32)
    if rng.random() < (0.7 if kind == 3 else 0.35):  # beach, sand bars, tidal flats
        bank = ("sand", "tidal_flat", "tidal_flat", "dry_soil")[int(rng.integers(4))]
        canvas.paint(shore < side * rng.uniform(0.02, 0.16), bank)
    water = shore < 0
    canvas.paint(water, Cover.WATER)
    if kind == 3 and rng.random() < 0.5:  # suspended sediment near the shore
        canvas.paint(water & (shore > -side * rng.uniform(0.05, 0.3) * (1 + 0.4 * rough)), "turbid_water")
    elif rng.random() < 0.3:
        canvas.paint(water & (smooth_noise(rng, canvas.shape, 0.3 * side) > 0.4), Cover.WATER)


def paint_pavement(canvas: Canvas, theme: Theme) -> None:
    """Runways with aprons, car parks and yards: rectangles on dry land."""
    rng, side = canvas.rng, canvas.side
    land = canvas.cover() != Cover.WATER
    angle = rng.random() * np.pi
    paved = np.zeros(canvas.shape, bool)
    if rng.random() < theme.runway:
        along, across = canvas.rotated(angle, canvas.place(0.3))
        half = 0.5 * canvas.pixels(rng.uniform(45, 90), 5.0)
        paved |= (np.abs(across) < half) & (np.abs(along) < side * rng.uniform(0.4, 0.9))
        near = canvas.rotated(angle)
        centre = across - side * rng.uniform(0.12, 0.25) * rng.choice([-1, 1])
        paved |= (np.abs(centre) < side * rng.uniform(0.06, 0.14)) & (np.abs(near[0]) < side * rng.uniform(0.10, 0.25))
    if rng.random() < theme.pavement:
        for _ in range(int(rng.integers(1, 4))):
            along, across = canvas.rotated(angle, canvas.place())
            half = side * rng.uniform((0.11, 0.09), (0.26, 0.18))
            paved |= (np.abs(along) < half[0]) & (np.abs(across) < half[1])
    if (paved & land).any():
        canvas.paint(paved & land, ASPHALT)


def paint_roads(canvas: Canvas, theme: Theme) -> None:
    """One or two roads across the scene; a bridge where one crosses water from bank to bank, else it ends."""
    rng, side = canvas.rng, canvas.side
    if rng.random() >= theme.road:
        return
    cover = canvas.cover()
    water = (cover == Cover.WATER) & (canvas.objects == 0)
    for _ in range(int(rng.integers(1, 3))):
        angle, centre = rng.random() * np.pi, canvas.place(0.2)
        along, across = canvas.rotated(angle, centre)
        bend = rng.normal(0, 0.15) / side
        across = across - np.float32(bend) * along**2
        band = np.abs(across) < 0.5 * canvas.pixels(rng.uniform(8, 25), 1.1)
        paved = band & ~water & (cover != ASPHALT)
        canvas.paint(paved & (canvas.objects == 0), Cover.ROAD)
        if not (band & water).any():
            continue
        c, s = np.cos(angle), np.sin(angle)
        t = np.arange(-1.5 * side, 1.5 * side, 0.5)
        u = bend * t**2
        rows = np.round(centre[0] + s * t + c * u).astype(int) - canvas.origin[0]
        columns = np.round(centre[1] + c * t - s * u).astype(int) - canvas.origin[1]
        inside = (rows >= 0) & (rows < canvas.shape[0]) & (columns >= 0) & (columns < canvas.shape[1])
        t, rows, columns = t[inside], rows[inside], columns[inside]
        wet = np.concatenate([[False], water[rows, columns], [False]])
        starts = np.flatnonzero(wet[1:] & ~wet[:-1])
        ends = np.flatnonzero(~wet[1:] & wet[:-1])
        for start, end in zip(starts, ends, strict=True):
            banks = start > 0 and end < len(t)
            if banks and 4 <= end - start <= 0.8 * side:
                span = band & water & (along >= t[start] - 0.75) & (along <= t[end - 1] + 0.75) & (canvas.objects == 0)
                if span.sum() >= 2:
                    canvas.paint_object(span, Cover.BRIDGE)


def paint_buildings(canvas: Canvas, theme: Theme) -> None:
    """Clusters of roofs in rotated blocks, or a few farmsteads; never on water, roads or bridges."""
    rng, side = canvas.rng, canvas.side
    if rng.random() >= theme.village:
        return
    cover = canvas.cover()
    blocked = (cover == Cover.WATER) | (cover == Cover.ROAD) | (cover == Cover.BRIDGE)
    sparse = rng.random() < 0.45
    palette = draw_materials(rng, Cover.BUILDING, 2)
    for _ in range(1 if sparse else int(rng.integers(1, 4))):
        along, across = canvas.rotated(rng.random() * np.pi, canvas.place(0.15))
        pitch = canvas.pixels(rng.uniform(60, 180), 8.0)
        step = np.array([pitch * rng.uniform(1.0, 1.8), pitch], np.float32)
        radius = side * rng.uniform(0.15, 0.32)
        inside = along**2 / 1.6 + across**2 < radius**2
        i = np.floor(along / step[0]).astype(np.int64)
        j = np.floor(across / step[1]).astype(np.int64)
        reach = int(max(np.abs(i).max(), np.abs(j).max())) + 1
        number = (i + reach) * (2 * reach + 1) + (j + reach)
        cells = (2 * reach + 1) ** 2
        # half sizes as a fraction of the block: at most 0.5 less half a pixel of gap on each side
        half = 0.5 * rng.uniform(0.7, 0.95, (2, cells)).astype(np.float32)
        half = np.minimum(half, (0.5 - 0.71 / step)[:, None])
        fu = np.abs(along / step[0] - i - 0.5)
        fv = np.abs(across / step[1] - j - 0.5)
        roof = (fu < half[0][number]) & (fv < half[1][number]) & inside
        touched = np.bincount(number[roof], weights=blocked[roof] + (canvas.objects[roof] > 0), minlength=cells) > 0
        size = np.bincount(number[roof], minlength=cells)
        candidates = np.flatnonzero(~touched & (size >= 2))
        if sparse:
            kept = rng.permutation(candidates)[: int(rng.integers(1, 7))]
        else:
            kept = candidates[rng.random(len(candidates)) < rng.uniform(0.6, 0.95)]
        if not len(kept):
            continue
        order = np.full(cells, -1)
        order[kept] = np.arange(len(kept))
        index = np.where(roof, order[number], -1)
        mask = index >= 0
        first = canvas.add(palette[rng.integers(2, size=len(kept))])
        canvas.region[mask] = first + index[mask]
        canvas.objects[mask] = len(canvas.object_cover) + index[mask]
        canvas.object_cover += [int(Cover.BUILDING)] * len(kept)
        blocked = blocked | dilate(mask)  # the next cluster keeps a gap


def paint_ships(canvas: Canvas, theme: Theme) -> None:
    """One to six ships on open water, apart from each other and from the shore."""
    rng = canvas.rng
    if rng.random() >= theme.ships:
        return
    free = ~dilate(canvas.cover() != Cover.WATER)
    free[:, [0, -1]] = free[[0, -1]] = False
    for _ in range(int(rng.integers(1, 7))):
        rows, columns = np.nonzero(free)
        if not rows.size:
            return
        pick = int(rng.integers(rows.size))
        along, across = canvas.rotated(rng.random() * np.pi, (float(rows[pick]), float(columns[pick])))
        along, across = np.abs(along), np.abs(across)
        length, slender = canvas.pixels(rng.uniform(25, 250), 2.0), rng.uniform(0.15, 0.25)
        while True:  # a ship that does not fit here is a smaller one; one pixel always fits
            hull = (along <= 0.5 * length) & (across <= 0.5 * max(1.0, length * slender))
            if length < 1.0 or free[hull].all():
                break
            length *= 0.6
        canvas.paint_object(hull, Cover.SHIP)
        free &= ~dilate(hull, 2)


def make_layout(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    gsd: float = 10.0,
    theme: str | None = None,
    whole: tuple[int, int] | None = None,
) -> Layout:
    """Paint a scene of ``shape`` pixels of ``gsd`` metres.

    Args:
      theme: one of ``THEMES``, or None for a random one.
      whole: rows and columns of a scene of which a part of ``shape``, anywhere in it, is painted; None: all of it.

    Raises:
      UserError: for an unknown theme, or a part larger than the whole.
    """
    if whole is not None and (whole[0] < shape[0] or whole[1] < shape[1]):
        raise UserError(f"A scene of {whole[0]} x {whole[1]} pixels has no part of {shape[0]} x {shape[1]}.")
    if theme is None:
        theme = tuple(THEMES)[int(rng.integers(len(THEMES)))]
    one_of("theme", theme, tuple(THEMES))
    canvas = Canvas(rng, shape, gsd, whole)
    for paint in (paint_areas, paint_water, paint_pavement, paint_roads, paint_buildings, paint_ships):
        paint(canvas, THEMES[theme])
    return Layout(
        class_map=canvas.cover(), region=canvas.region, material=canvas.material, objects=canvas.objects,
        object_cover=np.array(canvas.object_cover, np.uint8), gsd=gsd, theme=theme,
    )  # fmt: skip
