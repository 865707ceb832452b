"""One sample to tiles, tokens and targets: numpy work without padding, so that samples can be encoded in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, SensorConfig
from earthmind_jax.data import prompts, tiles
from earthmind_jax.data.buckets import DEFAULT, Buckets, Shape
from earthmind_jax.data.frames import optical_frames, sar_frames
from earthmind_jax.data.layout import Layout, View, arrange, frames_of
from earthmind_jax.data.read import picture_shape
from earthmind_jax.data.records import SENSORS, Dated, Picture, Sample, Turn
from earthmind_jax.data.tokenizer import SEG, Tokenizer
from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark

Frames = tuple[np.ndarray, np.ndarray]
"""8-bit frames [F H W 3] of one image, and its pixel validity [H W]."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, encoded: tiles stay 8-bit until they are stacked. A missing sensor has no entry in the mappings.

    Arrays for the mask decoder lead with the dates F of the sample's images, 1 for most.
    """

    id: str
    prompt: prompts.Prompt
    pixels: dict[str, np.ndarray]  # uint8 [I S S 3]
    valid: dict[str, np.ndarray]  # bool [I N]
    ground: dict[str, np.ndarray]  # uint8 [F G G 3]
    seg: tuple[int, ...]
    masks: tuple[np.ndarray, ...]  # float32 [F h w], one for each of ``seg``
    marked: tuple[np.ndarray, ...]  # bool [F], the dates on which each mask is known
    marks: tuple[Mark | None, ...] = ()  # what points the mask decoder at each of ``seg``
    grid: tiles.Grid = (1, 1)
    dates: int = 1

    @property
    def tiles(self) -> int:
        return max((len(p) for p in self.pixels.values()), default=0)

    @property
    def followed(self) -> int:
        """Dates that the mask decoder sees: ``dates``, or more where they were asked for."""
        return max(self.dates, *(len(g) for g in self.ground.values()), 1)

    @property
    def shape(self) -> Shape:
        return Shape(self.tiles, len(self.prompt), self.dates)


def sensor_frames(image: Picture, valid: np.ndarray | None, sensor: str, config: SensorConfig) -> Frames:
    """8-bit frames [F H W 3] of one sensor's image, and its pixel validity [H W]."""
    if not isinstance(image, np.ndarray):
        frames, valid = (optical_frames if sensor == "optical" else sar_frames)(image, config, valid)
        return tiles.to_uint8(frames), valid
    picture = tiles.as_picture(image)
    if valid is None:
        return picture[None], np.ones(picture.shape[:2], bool)
    if valid.shape != picture.shape[:2]:
        raise UserError(f"The {sensor} validity mask is {valid.shape} but its image is {picture.shape[:2]}.")
    mean = tiles.to_uint8(tiles.MEAN)
    return np.where(valid[..., None], picture, mean)[None], valid.astype(bool)


def encode_sample(
    sample: Sample,
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    buckets: Buckets = DEFAULT,
    *,
    rng: np.random.Generator | None = None,
    sensors: Sequence[str] = SENSORS,
    variant: str = "hf",
    tiny_regions: bool = True,
    follow: bool = False,
) -> Example:
    """One sample as tiles, tokens and targets.

    Where the pair's frame counts differ (several band triplets, one SAR frame) the single frame stands beside each of
    the others, and likewise a single date beside several; the optical image follows the SAR image's tile grid, so that
    tokens meet over the same ground. Modes of 2N tokens name the rows of the sensors that are there, SAR before optical
    within a tile. Of several dates the first five are used, each one tile and an image block of its own.

    Args:
      rng: draws sensor dropout (``data.drop_*``), the turns kept where there are more than ``data.turns``, and the
        masks kept where there are more than ``data.masks_per_sample``. None drops nothing and keeps the first.
      sensors: those to use.
      variant: of the chat template (see :func:`prompts.build`).
      tiny_regions: give a region that falls between the token centres one token (the published code gives none).
      follow: the mask decoder also gets the dates beyond the first five, in order to follow objects through them.

    Raises:
      UserError: naming the sample and what does not fit.
    """
    options = {"rng": rng, "sensors": sensors, "variant": variant, "tiny_regions": tiny_regions}
    try:
        images = {name: found for name in SENSORS if (found := sample.images(name))}
        views = {
            name: View(picture_shape(found[0][0]), frames_of(found[0][0], name, cfg.sensors), len(found))
            for name, found in images.items()
        }
        layout = arrange(sample.turns, views, cfg, data, tokenizer, buckets, **options)
        frames = {name: _read(images[name], name, layout.dates, cfg.sensors) for name in layout.sensors}
        pixels, valid = tile_frames(frames, layout, cfg)
        seg, masks, marked, marks = _targets(layout, cfg, data, rng)
    except UserError as error:
        raise UserError(f"Sample '{sample.id}': {error}") from error
    ground = {}
    if cfg.grounding is not None:
        side = cfg.grounding.image_size
        if follow and any(len(images[name]) > layout.dates for name in layout.sensors):
            frames = {name: _read(images[name], name, len(images[name]), cfg.sensors) for name in layout.sensors}
        ground = {name: np.stack([tiles.direct_resize(f[0], side) for f, _ in made]) for name, made in frames.items()}
    return Example(
        sample.id, layout.prompt, pixels, valid, ground, seg, masks, marked, marks, layout.grid, layout.dates
    )


def _read(images: Sequence[tuple[Picture, np.ndarray | None]], name: str, dates: int, config: SensorConfig) -> list:
    """The frames of the dates used; all of one size."""
    made = [sensor_frames(picture, valid, name, config) for picture, valid in images[:dates]]
    sizes = {frames.shape for frames, _ in made}
    if len(sizes) > 1:
        shown = ", ".join(f"{n} x {h} x {w}" for n, h, w, _ in sorted(sizes))
        raise UserError(f"the {name} images of all dates must have one size, not {shown}; bring them onto one grid.")
    return made


def tile_frames(
    frames: dict[str, list[Frames]], layout: Layout, cfg: EarthMindConfig
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tiles [I S S 3] and token validity [I N] of each sensor, date after date and frame after frame."""
    size, thumbnail = cfg.vision.image_size, cfg.sensors.thumbnail
    pixels, valid = {}, {}
    for name, dates in frames.items():
        tiled, marks = [], []
        for images, mask in dates:
            made = [tiles.dynamic_tiles(f, size, thumbnail=thumbnail, grid=layout.grid) for f in images]
            tiled += made * (layout.frames // len(images))
            marks += [tiles.token_validity(mask, cfg.vision.grid, layout.grid, thumbnail)] * layout.frames
        again = layout.dates // len(dates)
        pixels[name], valid[name] = np.concatenate(tiled * again), np.concatenate(marks * again)
    return pixels, valid


def _targets(
    layout: Layout, cfg: EarthMindConfig, data: DataConfig, rng: np.random.Generator | None
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[Mark | None, ...]]:
    """Positions of ``[SEG]``, their masks [F h w], the dates on which these are known [F], and the marks of each."""
    turns, prompt = layout.turns, layout.prompt
    for turn in turns:
        count = (turn.answer or "").count(SEG)
        if count != len(turn.masks):
            raise UserError(f"the answer '{turn.answer}' has {count} {SEG} but there are {len(turn.masks)} masks.")
    if cfg.grounding is None:
        return (), (), (), ()
    masks = [mask for turn in turns for mask in turn.masks]
    if masks and not layout.sensors:
        raise UserError("a mask needs an image, but the sample has none of the sensors asked for.")
    if len(prompt.seg) != len(masks):
        raise UserError(f"the tokenizer must have the single token {SEG} to learn masks.")
    chosen = range(len(masks))
    if len(masks) > data.masks_per_sample:
        most = data.masks_per_sample
        chosen = range(most) if rng is None else sorted(rng.choice(len(masks), most, replace=False))
    made = [_mask(masks[i], layout.dates, cfg.grounding.mask_size) for i in chosen]
    small, marked = tuple(m for m, _ in made), tuple(k for _, k in made)
    marks = [mark for turn in turns for mark in _marks(turn, data.prompt_points)]
    return tuple(prompt.seg[i] for i in chosen), small, marked, tuple(marks[i] for i in chosen)


def _marks(turn: Turn, room: int) -> tuple[Mark | None, ...]:
    """For each mask of a turn what points at it."""
    masks = len(turn.masks)
    if not turn.marks:
        return (None,) * masks
    from earthmind_jax.data.pointed import check_room

    if len(turn.marks) not in (1, masks):
        raise UserError(f"{len(turn.marks)} marks steer {masks} masks; give one for all of them, or one for each.")
    check_room(turn.marks, room)
    return turn.marks * masks if len(turn.marks) == 1 else turn.marks


def _mask(mask: np.ndarray | Dated, dates: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask on every date [F h w], and where it is known [F]. One mask for all dates holds on each of them."""
    if isinstance(mask, Dated):
        if len(mask.masks) < dates:
            raise UserError(f"a mask is given for {len(mask.masks)} dates but the sample has {dates}.")
        each = mask.masks[:dates]
    else:
        each = (mask,) * dates
    small = np.zeros((dates, side, side), np.float32)
    for i, one in enumerate(each):
        if one is not None:
            small[i] = tiles.nearest_resize(np.asarray(one), (side, side)) != 0
    return small, np.array([one is not None for one in each])
