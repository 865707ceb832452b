"""What a request points at, in the forms that the language model and the mask decoder take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.layout import View, frames_of, tiling
from earthmind_jax.data.pointed import padded, small
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
    return tuple(mark.region(cells) for mark in small(marks, images.shape))


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


def paired(prompts: VisualPrompts, count: int) -> VisualPrompts:
    """The marks that go with ``count`` ``[SEG]``: a single one with each of them, else the first with the first, and so
    on; those beyond go with words alone."""
    have = prompts.points.shape[1]
    if have == 1:
        return VisualPrompts(**{k: None if v is None else np.repeat(v, count, 1) for k, v in vars(prompts).items()})
    return padded(VisualPrompts(**{k: None if v is None else v[:, :count] for k, v in vars(prompts).items()}), count)
