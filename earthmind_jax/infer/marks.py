"""What a request points at, in the forms that the language model and the mask decoder take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import EarthMindConfig, GroundingConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.layout import View, frames_of, tiling
from earthmind_jax.data.read import RASTERS, Images, picture_shape
from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.marks import Mark, place
from earthmind_jax.geo.marks_file import GEOJSON, OTHER_FILES, parse_prompts, read_prompts
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.types import VisualPrompts

Given = Prompt | np.ndarray | str | Path
Marks = Given | Mapping[str, Any] | Sequence[Given]
"""Prompts, masks [H W] on the image's own pixels, vector or mask files, several of these, or GeoJSON."""

POINTS = (2, 4, 8, 16, 34)  # of one object, box corners included
CERTAIN = 10.0  # logit of a mask prompt's pixels, as SAM2 makes logits of given masks
LARGEST = 2048  # pixels on a side that regions are drawn with: tokens and decoder see less


def gather(
    marks: Marks | None, region: np.ndarray | None, images: Images, before: int = 0
) -> tuple[tuple[Mark, ...], tuple[str, ...]]:
    """The objects that ``marks`` point at, after the mask ``region``, on the reference image; and what to say of them.
    ``before`` objects have been pointed at already.

    Raises:
      UserError: naming the prompt that is wrong or lies outside the image.
    """
    prompts = [] if region is None else [Prompt.from_mask(region, where="the region")]
    prompts += [] if marks is None else _prompts(marks, images)
    if not prompts:
        return (), ()
    return place(prompts, grid_of(images), before)


def grid_of(images: Images) -> Grid:
    """The reference image's grid; without a georeference in pixels."""
    from affine import Affine

    return Grid(images.transform or Affine.identity(), images.crs, *images.shape)


def _prompts(marks: Marks, images: Images) -> list[Prompt]:
    if isinstance(marks, Mapping):
        return list(parse_prompts(marks))
    prompts: list[Prompt] = []
    for mark in [marks] if isinstance(marks, Prompt | np.ndarray | str | Path) else list(marks):
        if isinstance(mark, Prompt):
            prompts.append(mark)
        elif isinstance(mark, np.ndarray):
            prompts.append(Prompt.from_mask(mark))
        elif not isinstance(mark, str | Path):
            raise UserError(f"Point with prompts, masks or files, not with {mark!r}: see earthmind_jax.geo.prompts.")
        elif Path(mark).suffix.lower() in (*GEOJSON, *OTHER_FILES):
            prompts += read_prompts(mark)
        else:
            prompts.append(read_mask(Path(mark), images))
    return prompts


def read_mask(path: Path, images: Images) -> Prompt:
    """The nonzero pixels of a mask file (picture, ``.npy`` or GeoTIFF) on the reference image's grid."""
    from earthmind_jax.data.masks import decode

    where = f"the mask '{path}'"
    mask = decode(str(path), images.shape, where=where)
    if mask.shape != images.shape:
        raise UserError(f"{where} has {mask.shape} pixels (rows, columns) but the image has {images.shape}.")
    if path.suffix.lower() in RASTERS and images.crs is not None:
        from earthmind_jax.geo.raster import open_raster

        with open_raster(path, True) as dataset:
            own, bands = Grid(dataset.transform, dataset.crs, dataset.height, dataset.width), dataset.count
        if own.crs is not None and not own.matches(grid_of(images)):
            raise UserError(f"{where} lies on another grid than the image: it covers {own.extent()}; warp it first.")
        if bands > 1:
            raise UserError(f"{where} has {bands} bands; a mask has one.")
    return Prompt.from_mask(mask, where=where)


def regions(marks: Sequence[Mark], images: Images, config: EarthMindConfig) -> tuple[np.ndarray, ...]:
    """For each object the part of the image that its name stands for, bool [h w] (see :meth:`Mark.region`); cells are
    the visual tokens of the view in which regions are marked."""
    views = {}
    for name, (picture, _) in images.pictures.items():
        views[name] = View(picture_shape(picture), frames_of(picture, name, config.sensors))
    _, _, grid, _ = tiling(views, config)
    columns, rows = (1, 1) if tiles.has_thumbnail(grid, config.sensors.thumbnail) else grid
    cells = (rows * config.vision.grid, columns * config.vision.grid)
    return tuple(mark.region(cells) for mark in _small(marks, images.shape))


def name_marks(question: str, marks: Sequence[Mark], before: int = 0) -> str:
    """The question with each ``{name}`` of an object replaced by what the model calls it: region1, region2, ..., after
    ``before`` regions of earlier turns.

    Raises:
      UserError: the question has a ``{name}`` that nothing is pointed at by.
    """
    for i, mark in enumerate(marks, before + 1):
        if mark.name != "region":
            question = question.replace(f"{{{mark.name}}}", f"region{i}")
    unknown = [name for name in re.findall(r"{([^\W\d]\w*)}", question) if name != "region"]
    if marks and unknown:
        names = ", ".join(mark.name for mark in marks)
        raise UserError(f"The question speaks of {{{unknown[0]}}}, but what is pointed at is called {names}.")
    return question


def visual_prompts(marks: Sequence[Mark], config: GroundingConfig) -> VisualPrompts:
    """Marks on one image as prompts of the mask decoder, numpy [1 M ...].

    Coordinates are scaled to the grounding image as SAM2's own processor scales them. A box goes as its two corners; a
    polygon or mask as the corners of its bounds and as a mask prompt; a scribble as points along it.
    """
    made = [_points(mark) for mark in marks]
    most = max(len(labels) for _, labels in made)
    count = next((size for size in POINTS if size >= most), most)
    points, labels = np.zeros((len(marks), count, 2), np.float32), np.full((len(marks), count), -1, np.int32)
    valid = np.zeros((len(marks), count), bool)
    for i, (xy, kinds) in enumerate(made):
        points[i, : len(kinds)] = xy * config.image_size / np.array(marks[i].shape[::-1])
        labels[i, : len(kinds)], valid[i, : len(kinds)] = kinds, True
    drawn = [mark.drawn() for mark in _small(marks, marks[0].shape)]
    side, masks, masked = config.mask_size, None, None
    if any(d is not None for d in drawn):
        none = np.zeros((side, side), np.float32)
        shares = np.stack([none if d is None else tiles.valid_share(d, (side, side)) for d in drawn])
        masks = (shares * 2 - 1)[None] * np.float32(CERTAIN)
        masked = np.array([[d is not None for d in drawn]])
    return VisualPrompts(points[None], labels[None], valid[None], masks, masked)


def _points(mark: Mark) -> tuple[np.ndarray, np.ndarray]:
    box = mark.box
    if box is None and (mark.area is not None or mark.mask is not None):
        box = mark.bounds
    points, labels = mark.clicks
    if box is None:
        return points, labels
    return np.concatenate([np.reshape(box, (2, 2)), points]), np.concatenate([[2, 3], labels])


def _small(marks: Sequence[Mark], shape: tuple[int, int]) -> list[Mark]:
    scale = min(1.0, LARGEST / max(shape))
    if scale == 1.0:
        return list(marks)
    return [mark.resized((max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))) for mark in marks]


def paired(prompts: VisualPrompts, count: int) -> VisualPrompts:
    """The marks that go with ``count`` ``[SEG]``: a single one with each of them, else the first with the first, and so
    on; those beyond go with words alone."""
    have = prompts.points.shape[1]
    if have == 1:
        return VisualPrompts(**{k: None if v is None else np.repeat(v, count, 1) for k, v in vars(prompts).items()})
    return padded(VisualPrompts(**{k: None if v is None else v[:, :count] for k, v in vars(prompts).items()}), count)


def padded(prompts: VisualPrompts, count: int) -> VisualPrompts:
    """Prompts of ``count`` objects, those that are added with "no point at all", as the decoder has it for words
    alone."""
    more = count - prompts.points.shape[1]
    if more <= 0:
        return prompts

    def pad(x: np.ndarray | None, value: float) -> np.ndarray | None:
        return None if x is None else np.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    valid = pad(prompts.valid, False)
    assert valid is not None
    valid[:, -more:, 0] = True
    return VisualPrompts(
        pad(prompts.points, 0), pad(prompts.labels, -1), valid, pad(prompts.masks, 0), pad(prompts.masked, False)
    )
