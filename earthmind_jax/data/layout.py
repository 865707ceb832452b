"""What a sample becomes, as far as sizes and words tell: sensors, tile grid, the turns that are kept, token ids.

No pixel is read here, so that a whole window of samples can be measured before one of them is loaded;
:mod:`earthmind_jax.data.encode` fills the same layout with pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, SensorConfig
from earthmind_jax.data import prompts, tiles
from earthmind_jax.data.buckets import Buckets, Shape
from earthmind_jax.data.read import decode_regions, picture_shape, picture_sizes
from earthmind_jax.data.records import SENSORS, Picture, Record, Sample
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError

MOST_DATES = 5
"""Dates of a stack that reach the model: the first ones, as in the published video path."""


@dataclass(frozen=True)
class View:
    """One sensor's images before they are read.

    Attributes:
      shape: rows and columns.
      frames: three-channel frames that each date makes.
      dates: images of the sensor.
    """

    shape: tuple[int, int]
    frames: int = 1
    dates: int = 1


@dataclass(frozen=True, eq=False)
class Layout:
    """How a sample is laid out.

    Attributes:
      sensors: those that are shown.
      dates: images of each, the single one of a sensor standing beside all of the other's.
      frames: frames of each date.
      grid: (columns, rows) of tiles of each frame.
      tiles: in all.
      turns: those that are kept, as they were given.
    """

    sensors: tuple[str, ...]
    dates: int
    frames: int
    grid: tiles.Grid
    tiles: int
    turns: tuple[Any, ...]
    prompt: prompts.Prompt

    @property
    def shape(self) -> Shape:
        return Shape(self.tiles, len(self.prompt), self.dates)


def frames_of(picture: Picture, sensor: str, config: SensorConfig) -> int:
    """Frames that an image of bands, or a finished picture, makes."""
    if isinstance(picture, np.ndarray):
        return 1
    return len(config.optical_bands) // 3 if sensor == "optical" else -(-len(config.sar_bands) // 3)


def record_views(record: Record, config: SensorConfig) -> dict[str, View]:
    """The sensors of a record, from the headers of its files."""
    return {
        name: View(shape, 1 if finished else frames_of({}, name, config), dates)
        for name, (shape, finished, dates) in picture_sizes(record, config).items()
    }


def measure(
    item: Sample | Record,
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    buckets: Buckets,
    *,
    rng: np.random.Generator | None = None,
    sensors: Sequence[str] = SENSORS,
    variant: str = "hf",
) -> Layout:
    """The layout of a sample, or of a record of which only headers and marked regions are read.

    Args: as of :func:`earthmind_jax.data.encode.encode_sample`, with the generator in the same state.

    Raises:
      UserError: naming the sample or the record's line, and what does not fit.
    """
    where = (item.where or f"Record '{item.id}'") if isinstance(item, Record) else f"Sample '{item.id}'"
    try:
        if isinstance(item, Record):
            views = record_views(item, cfg.sensors)
            extent = views["optical" if "optical" in views else "sar"].shape if views else (1, 1)
            region = partial(decode_regions, shape=extent, root=item.root)
        else:
            dated = {name: item.images(name) for name in SENSORS}
            views = {
                name: View(picture_shape(images[0][0]), frames_of(images[0][0], name, cfg.sensors), len(images))
                for name, images in dated.items()
                if images
            }
            region = attrgetter("regions")
        return arrange(
            item.turns, views, cfg, data, tokenizer, buckets, rng=rng, sensors=sensors, variant=variant, region=region
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def arrange(
    turns: Sequence[Any],
    views: Mapping[str, View],
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    buckets: Buckets,
    *,
    rng: np.random.Generator | None = None,
    sensors: Sequence[str] = SENSORS,
    variant: str = "hf",
    tiny_regions: bool = True,
    region: Callable[[Any], Sequence[np.ndarray]] = attrgetter("regions"),
) -> Layout:
    """The layout of turns about images of the sizes ``views``; drawn at random: the sensors kept, then the turns kept.

    Args:
      region: the parts of the image [h w] that a turn asks about.
    """
    kept = keep_sensors(views, data, rng, sensors)
    dates, frames, grid, count = tiling({name: views[name] for name in kept}, cfg)
    buckets.fit_tiles(max(count, 1))
    chosen = _keep_turns(tuple(turns), data, rng)
    limit = min(buckets.text[-1], cfg.max_length)
    regions = [region(turn) for turn in chosen]
    while True:
        layout = Layout(tuple(kept), dates, frames, grid, count, chosen, _NOTHING)
        prompt = _prompt(layout, regions, cfg, tokenizer, variant, tiny_regions)
        if len(prompt) <= limit:
            break
        if len(chosen) == 1 or chosen[-1].answer is None:
            raise UserError(f"the conversation has {len(prompt)} tokens but {limit} is the most; shorten it.")
        chosen, regions = chosen[:-1], regions[:-1]
    return Layout(tuple(kept), dates, frames, grid, count, chosen, prompt)


def tiling(views: Mapping[str, View], cfg: EarthMindConfig) -> tuple[int, int, tiles.Grid, int]:
    """(dates, frames of a date, tile grid of a frame, tiles in all) of the sensors that are shown."""
    dates, frames = min(_common(views, "dates"), MOST_DATES), _common(views, "frames")
    grid = _grid(views, dates, cfg)
    return dates, frames, grid, dates * frames * tiles.tile_count(grid, cfg.sensors.thumbnail) if views else 0


def keep_sensors(
    there: Mapping[str, Any], data: DataConfig, rng: np.random.Generator | None, sensors: Sequence[str]
) -> list[str]:
    """Of the sensors of a sample those that are asked for, less what dropout draws."""
    names = [name for name in SENSORS if name in sensors and name in there]
    if rng is None or len(names) < 2:
        return names
    draw = rng.random()
    if draw < data.drop_optical:
        return ["sar"]
    return ["optical"] if draw < data.drop_optical + data.drop_sar else names


def _keep_turns(turns: tuple[Any, ...], data: DataConfig, rng: np.random.Generator | None) -> tuple[Any, ...]:
    if len(turns) <= data.turns:
        return turns
    if rng is None:
        return turns[: data.turns]
    kept = sorted(rng.choice(len(turns), data.turns, replace=False))
    return tuple(turns[i] for i in kept)


def _common(views: Mapping[str, View], what: str) -> int:
    """Dates, or frames of a date, of all sensors: those of the sensor with most; the other has as many or one."""
    counts = {name: getattr(view, what) for name, view in views.items()}
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        if count not in (1, most):
            noun = "frames" if what == "frames" else "dates"
            raise UserError(f"the {name} image makes {count} {noun} and the other {most}; they must match or be one.")
    return most


def _grid(views: Mapping[str, View], dates: int, cfg: EarthMindConfig) -> tiles.Grid:
    """The tiles of each frame; a date of several is one tile, as in the published video path."""
    if not views or dates > 1:
        return (1, 1)
    height, width = views["sar" if "sar" in views else "optical"].shape
    return tiles.closest_grid((width, height), 1, cfg.sensors.max_tiles, cfg.vision.image_size)


_NOTHING = prompts.Prompt(*(np.zeros(0, t) for t in (np.int32, bool, bool, np.int32)), ())


def _prompt(
    layout: Layout,
    regions: Sequence[Sequence[np.ndarray]],
    cfg: EarthMindConfig,
    tokenizer: Tokenizer,
    variant: str,
    tiny_regions: bool,
) -> prompts.Prompt:
    """Ids of the conversation, and the rows of the fused sequence (N or 2N a tile) that its image positions take.

    Each date has an image block of its own; regions lie on the last.
    """
    count, per_sensor = layout.tiles, cfg.vision.tokens
    stride = cfg.fusion.sensors_out * per_sensor
    offsets = [0]
    if cfg.fusion.sensors_out == 2:
        offsets = [offset for name, offset in (("sar", 0), ("optical", per_sensor)) if name in layout.sensors]
    rows = np.concatenate([tile * stride + o + np.arange(per_sensor) for tile in range(count) for o in offsets] or [[]])
    thumbnail = cfg.sensors.thumbnail
    last = count - tiles.tile_count(layout.grid, thumbnail)  # first tile of the last frame
    marked, texts = [], []
    for turn, own in zip(layout.turns, regions, strict=True):
        names = [f"region{len(marked) + i}" for i in range(1, len(own) + 1)]
        for region in own:
            cells = tiles.region_cells(region, cfg.vision.grid, layout.grid, thumbnail, at_least_one=tiny_regions)
            marked.append([(last + tile) * stride + o + token for o in offsets for tile, token in cells])
        texts.append((prompts.name_regions(turn.question, names), turn.answer))
    visual = np.split(rows.astype(np.int32), layout.dates) if count else []
    return prompts.build(texts, tokenizer, cfg.template, visual=visual, regions=marked, variant=variant)
