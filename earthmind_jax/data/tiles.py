"""Pictures to model inputs: the published dynamic tiling, the grounding image, and the same geometry for validity.

Every picture is 8-bit when it is resized, as in the published model: PIL's bicubic filter works on bytes there, and
weights trained on those bytes see the same values here. Rasters arrive as float frames in 0..1 and are rounded to the
nearest of 256 levels first (:func:`to_uint8`), a step of 1/255 of the sensor's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from earthmind_jax.errors import UserError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB
STD = np.array([0.229, 0.224, 0.225], np.float32)
MEAN_BF16 = np.array([0.484375, 0.455078125, 0.40625], np.float32)  # the same, rounded to bfloat16
STD_BF16 = np.array([0.228515625, 0.2236328125, 0.224609375], np.float32)

Picture = UInt8[np.ndarray, "H W 3"]
Grid = tuple[int, int]  # (columns, rows) of tiles


@lru_cache(maxsize=64)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """All (columns, rows) of ``min_tiles`` to ``max_tiles`` tiles, smallest first.

    The published code sorts a Python set by area alone, so grids of equal area keep the set's order. That order (fixed
    by CPython's hash of integer tuples) decides exact ties, which is why a set is built here in the published way.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise UserError(f"The tile counts must satisfy 1 <= min <= max, not min {min_tiles} and max {max_tiles}.")
    grids = {
        (i, j)
        for n in range(min_tiles, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_tiles <= i * j <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


@lru_cache(maxsize=4096)
def closest_grid(wh: tuple[int, int], min_tiles: int = 1, max_tiles: int = 12, size: int = 448) -> Grid:
    """The tile grid whose aspect ratio is closest to that of a picture (``find_closest_aspect_ratio``).

    Args:
      wh: width and height of the picture, pixels.
      size: side of a tile, pixels.

    Returns:
      (columns, rows). Of two equally close grids the larger wins if the picture has more than half of its pixels.

    Raises:
      UserError: for an empty picture.
    """
    width, height = wh
    if width < 1 or height < 1:
        raise UserError(f"A picture of {width} x {height} pixels cannot be tiled.")
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in candidate_grids(min_tiles, max_tiles):
        difference = abs(ratio - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and area > 0.5 * size * size * columns * rows:
            best = (columns, rows)
    return best


def to_uint8(frame: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in 0..1 to the nearest of 256 levels; 8-bit input is returned as it is."""
    if frame.dtype == np.uint8:
        return frame
    return np.clip(np.rint(frame * np.float32(255)), 0, 255).astype(np.uint8)


def as_picture(image: np.ndarray) -> Picture:
    """An 8-bit RGB picture from [H W], [H W 1] or [H W 3] bytes; grey is replicated, as the published code does."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] not in (1, 3)):
        raise UserError(f"A picture must be 8-bit with one or three channels, not {image.dtype} {image.shape}.")
    if image.ndim == 2:
        image = image[..., None]
    return np.broadcast_to(image, (*image.shape[:2], 3))


def resize_uint8(image: Picture, wh: tuple[int, int]) -> Picture:
    """PIL bicubic resize to (width, height), not preserving the aspect ratio."""
    if (image.shape[1], image.shape[0]) == tuple(wh):
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(wh, Image.Resampling.BICUBIC))


def direct_resize(image: np.ndarray, size: int) -> Picture:
    """The picture squashed to ``size`` x ``size``: what the mask decoder sees (published ``DirectResize``)."""
    return resize_uint8(as_picture(image), (size, size))


def has_thumbnail(grid: Grid, thumbnail: bool) -> bool:
    """Whether a view of the whole picture follows the tiles of ``grid`` (never after a single tile)."""
    return thumbnail and grid[0] * grid[1] > 1


def tile_count(grid: Grid, thumbnail: bool) -> int:
    """Tiles of ``grid``, thumbnail included."""
    return grid[0] * grid[1] + has_thumbnail(grid, thumbnail)


def tile_places(grid: Grid, thumbnail: bool) -> np.ndarray:
    """int32 [I 4]: (row, column, rows, columns) of each tile of ``grid``, then of the thumbnail: (0, 0, 1, 1)."""
    columns, rows = grid
    places = [(row, column, rows, columns) for row in range(rows) for column in range(columns)]
    places += [(0, 0, 1, 1)] * has_thumbnail(grid, thumbnail)
    return np.array(places, np.int32)


def split_tiles(mosaic: np.ndarray, grid: Grid) -> np.ndarray:
    """[rows*h, columns*w, ...] -> [I h w ...], row-major."""
    columns, rows = grid
    h, w = mosaic.shape[0] // rows, mosaic.shape[1] // columns
    tiles = mosaic.reshape(rows, h, columns, w, *mosaic.shape[2:]).swapaxes(1, 2)
    return tiles.reshape(rows * columns, h, w, *mosaic.shape[2:])


def dynamic_tiles(
    image: np.ndarray,
    size: int = 448,
    min_tiles: int = 1,
    max_tiles: int = 12,
    thumbnail: bool = True,
    *,
    grid: Grid | None = None,
) -> UInt8[np.ndarray, "I S S 3"]:
    """InternVL's dynamic tiling (``dynamic_preprocess``): the tiles of the closest grid, then the thumbnail.

    Args:
      image: 8-bit [H W 3] or [H W], or float 0..1 [H W 3] (rounded to 8 bits).
      size: side of a tile, pixels.
      grid: (columns, rows) to use instead of the closest one (the second sensor of a pair follows the first).
    """
    picture = as_picture(to_uint8(image))
    grid = grid or closest_grid((picture.shape[1], picture.shape[0]), min_tiles, max_tiles, size)
    tiles = split_tiles(resize_uint8(picture, (grid[0] * size, grid[1] * size)), grid)
    if has_thumbnail(grid, thumbnail):
        tiles = np.concatenate([tiles, resize_uint8(picture, (size, size))[None]])
    return tiles


def normalise(image: np.ndarray, mean: np.ndarray = MEAN, std: np.ndarray = STD) -> Float[np.ndarray, "*shape W 3"]:
    """ImageNet normalisation in float32: bytes are divided by 255 first; floats count as 0..1 already."""
    # Whole rows at once: numpy's loops are slow over a last axis of three.
    row = image.shape[-2]
    x = image.reshape(*image.shape[:-2], row * 3).astype(np.float32)
    if image.dtype == np.uint8:
        x /= np.float32(255)
    x -= np.tile(mean, row)
    x /= np.tile(std, row)
    return x.reshape(image.shape)


def sam_preprocess_image(image: Picture, *, mirror_bf16: bool = False) -> Float[np.ndarray, "H W 3"]:
    """Normalisation of the grounding image, float32.

    ``mirror_bf16`` uses the constants as the published inference code holds them, rounded to bfloat16; the published
    training code, and the default here, keep them in float32.
    """
    return normalise(image, MEAN_BF16, STD_BF16) if mirror_bf16 else normalise(image)


def _overlaps(cells: int, pixels: int) -> Float[np.ndarray, "cells pixels"]:
    """Share of each of ``cells`` equal intervals that each of ``pixels`` equal intervals covers (rows sum to 1)."""
    edges = np.arange(cells + 1) * (pixels / cells)
    pixel = np.arange(pixels)
    upper = np.minimum(edges[1:, None], pixel + 1)
    lower = np.maximum(edges[:-1, None], pixel)
    return (np.maximum(upper - lower, 0) * (cells / pixels)).astype(np.float32)


def valid_share(valid: Bool[np.ndarray, "H W"], shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Exact share of valid area in each cell of an ``h`` x ``w`` grid laid over the mask."""
    h, w = shape
    return _overlaps(h, valid.shape[0]) @ valid.astype(np.float32) @ _overlaps(w, valid.shape[1]).T


def token_validity(
    valid: Bool[np.ndarray, "H W"], tokens: int, grid: Grid, thumbnail: bool = True
) -> Bool[np.ndarray, "I N"]:
    """Which visual tokens have at least half of their pixels valid, in the geometry of :func:`dynamic_tiles`.

    Args:
      valid: the sensor's validity mask.
      tokens: visual tokens along one side of a tile (N is its square).
      grid: (columns, rows) that the picture was tiled with.
    """
    columns, rows = grid
    count = tile_count(grid, thumbnail)
    if valid.all():
        return np.ones((count, tokens * tokens), bool)
    half = 0.5 - 1e-5  # float32 sums of exact halves
    cells = split_tiles(valid_share(valid, (rows * tokens, columns * tokens)) >= half, grid)
    if has_thumbnail(grid, thumbnail):
        cells = np.concatenate([cells, (valid_share(valid, (tokens, tokens)) >= half)[None]])
    return cells.reshape(count, tokens * tokens)


def nearest_resize(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """[H W] -> [h w], each output pixel the input at floor(i * H / h) (``torch`` nearest, float32 ratios as there)."""
    index = []
    for old, new in zip(mask.shape, shape, strict=True):
        scale = np.float32(old) / np.float32(new)
        index.append(np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1))
    return mask[np.ix_(*index)]


def region_cells(
    mask: np.ndarray, tokens: int, grid: Grid, thumbnail: bool = True, *, at_least_one: bool = True
) -> list[tuple[int, int]]:
    """(tile, token) of every visual token that a region covers, tile-major.

    The tile is the one that shows the whole picture (thumbnail or sole tile), as published; without a thumbnail the
    region is found in the tiles themselves. ``at_least_one`` keeps the cell of the region's centre where the nearest
    resize misses a tiny region altogether; the published code then gives the region no token.

    Raises:
      UserError: if the mask is not two-dimensional or empty.
    """
    mask = np.asarray(mask) != 0
    if mask.ndim != 2 or not mask.any():
        raise UserError(f"A region must be a mask [height width] with at least one pixel set, not {mask.shape}.")
    columns, rows = (1, 1) if has_thumbnail(grid, thumbnail) else grid
    cells = nearest_resize(mask, (rows * tokens, columns * tokens))
    if at_least_one and not cells.any():
        y, x = (np.argwhere(mask).mean(0) + 0.5) / mask.shape
        cells[int(y * rows * tokens), int(x * columns * tokens)] = True
    first = tile_count(grid, thumbnail) - 1 if has_thumbnail(grid, thumbnail) else 0
    tiles = split_tiles(cells, (columns, rows)).reshape(rows * columns, -1)
    return [(first + int(tile), int(token)) for tile, token in np.argwhere(tiles)]
