"""One sample to tiles, tokens and targets: numpy work without padding, so that samples can be encoded in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, SensorConfig
from earthmind_jax.data import prompts, tiles
from earthmind_jax.data.buckets import DEFAULT, Buckets
from earthmind_jax.data.frames import optical_frames, sar_frames
from earthmind_jax.data.records import Picture, Sample, Turn
from earthmind_jax.data.tokenizer import SEG, Tokenizer
from earthmind_jax.errors import UserError

SENSORS = ("optical", "sar")


@dataclass(frozen=True, eq=False)
class Example:
    """One sample, encoded: tiles stay 8-bit until they are stacked. A missing sensor has no entry in the mappings."""

    id: str
    prompt: prompts.Prompt
    pixels: dict[str, np.ndarray]  # uint8 [I S S 3]
    valid: dict[str, np.ndarray]  # bool [I N]
    ground: dict[str, np.ndarray]  # uint8 [G G 3]
    seg: tuple[int, ...]
    masks: tuple[np.ndarray, ...]  # float32 [h w], one for each of ``seg``
    grid: tiles.Grid = (1, 1)

    @property
    def tiles(self) -> int:
        return max((len(p) for p in self.pixels.values()), default=0)


def sensor_frames(
    image: Picture, valid: np.ndarray | None, sensor: str, config: SensorConfig
) -> tuple[np.ndarray, np.ndarray]:
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
) -> Example:
    """One sample as tiles, tokens and targets.

    Where the pair's frame counts differ (several band triplets, one SAR frame) the single frame stands beside each of
    the others; the optical image follows the SAR image's tile grid, so that tokens meet over the same ground. Modes of
    2N tokens name the rows of the sensors that are there, SAR before optical within a tile.

    Args:
      rng: draws sensor dropout (``data.drop_*``), the turns kept where there are more than ``data.turns``, and the
        masks kept where there are more than ``data.masks_per_sample``. None drops nothing and keeps the first.
      sensors: those to use.
      variant: of the chat template (see :func:`prompts.build`).
      tiny_regions: give a region that falls between the token centres one token (the published code gives none).

    Raises:
      UserError: naming the sample and what does not fit.
    """
    try:
        return _encode(sample, cfg, data, tokenizer, buckets, rng, sensors, variant, tiny_regions)
    except UserError as error:
        raise UserError(f"Sample '{sample.id}': {error}") from error


def _encode(
    sample: Sample,
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    buckets: Buckets,
    rng: np.random.Generator | None,
    sensors: Sequence[str],
    variant: str,
    tiny_regions: bool,
) -> Example:
    frames = {
        name: sensor_frames(getattr(sample, name), getattr(sample, f"{name}_valid"), name, cfg.sensors)
        for name in _keep_sensors(sample, data, rng, sensors)
    }
    grid = _grid(frames, cfg)
    pixels, valid = _tile(frames, grid, cfg)
    count = max((len(p) for p in pixels.values()), default=0)
    buckets.fit_tiles(max(count, 1))
    turns = _keep_turns(sample.turns, data, rng)
    limit = min(buckets.text[-1], cfg.max_length)
    while True:
        prompt = _prompt(turns, pixels, grid, cfg, tokenizer, variant, tiny_regions)
        if len(prompt) <= limit:
            break
        if len(turns) == 1 or turns[-1].answer is None:
            raise UserError(f"the conversation has {len(prompt)} tokens but {limit} is the most; shorten it.")
        turns = turns[:-1]
    seg, masks = _targets(turns, prompt, bool(frames), cfg, data, rng)
    ground = {}
    if cfg.grounding is not None:
        ground = {name: tiles.direct_resize(f[0], cfg.grounding.image_size) for name, (f, _) in frames.items()}
    return Example(sample.id, prompt, pixels, valid, ground, seg, masks, grid)


def _keep_sensors(
    sample: Sample, data: DataConfig, rng: np.random.Generator | None, sensors: Sequence[str]
) -> list[str]:
    there = [name for name in SENSORS if name in sensors and getattr(sample, name) is not None]
    if rng is None or len(there) < 2:
        return there
    draw = rng.random()
    if draw < data.drop_optical:
        return ["sar"]
    return ["optical"] if draw < data.drop_optical + data.drop_sar else there


def _keep_turns(turns: tuple[Turn, ...], data: DataConfig, rng: np.random.Generator | None) -> tuple[Turn, ...]:
    if len(turns) <= data.turns:
        return turns
    if rng is None:
        return turns[: data.turns]
    kept = sorted(rng.choice(len(turns), data.turns, replace=False))
    return tuple(turns[i] for i in kept)


def _grid(frames: dict[str, tuple[np.ndarray, np.ndarray]], cfg: EarthMindConfig) -> tiles.Grid:
    if not frames:
        return (1, 1)
    _, height, width, _ = frames["sar" if "sar" in frames else "optical"][0].shape
    return tiles.closest_grid((width, height), 1, cfg.sensors.max_tiles, cfg.vision.image_size)


def _tile(
    frames: dict[str, tuple[np.ndarray, np.ndarray]], grid: tiles.Grid, cfg: EarthMindConfig
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tiles [I S S 3] and token validity [I N] of each sensor, frame after frame."""
    most = max((len(f) for f, _ in frames.values()), default=0)
    size, thumbnail = cfg.vision.image_size, cfg.sensors.thumbnail
    pixels, valid = {}, {}
    for name, (images, mask) in frames.items():
        if len(images) not in (1, most):
            raise UserError(
                f"the {name} image makes {len(images)} frames and the other {most}; they must match or be one."
            )
        made = np.concatenate([tiles.dynamic_tiles(f, size, thumbnail=thumbnail, grid=grid) for f in images])
        marks = tiles.token_validity(mask, cfg.vision.grid, grid, thumbnail)
        pixels[name] = np.tile(made, (most // len(images), 1, 1, 1))
        valid[name] = np.tile(marks, (most, 1))
    return pixels, valid


def _prompt(
    turns: tuple[Turn, ...],
    pixels: dict[str, np.ndarray],
    grid: tiles.Grid,
    cfg: EarthMindConfig,
    tokenizer: Tokenizer,
    variant: str,
    tiny_regions: bool,
) -> prompts.Prompt:
    """Ids of the conversation, and the rows of the fused sequence (N or 2N a tile) that its image positions take."""
    count, per_sensor = max((len(p) for p in pixels.values()), default=0), cfg.vision.tokens
    stride = cfg.fusion.sensors_out * per_sensor
    offsets = [0]
    if cfg.fusion.sensors_out == 2:
        offsets = [offset for name, offset in (("sar", 0), ("optical", per_sensor)) if name in pixels]
    rows = np.concatenate([tile * stride + o + np.arange(per_sensor) for tile in range(count) for o in offsets] or [[]])
    thumbnail = cfg.sensors.thumbnail
    last = count - tiles.tile_count(grid, thumbnail)  # first tile of the last frame
    regions, texts = [], []
    for turn in turns:
        question = turn.question
        if turn.region is not None:
            cells = tiles.region_cells(turn.region, cfg.vision.grid, grid, thumbnail, at_least_one=tiny_regions)
            regions.append([(last + tile) * stride + o + token for o in offsets for tile, token in cells])
            question = question.replace("{region}", f"region{len(regions)}")
        texts.append((question, turn.answer))
    visual = [rows.astype(np.int32)] if count else []
    return prompts.build(texts, tokenizer, cfg.template, visual=visual, regions=regions, variant=variant)


def _targets(
    turns: tuple[Turn, ...],
    prompt: prompts.Prompt,
    has_image: bool,
    cfg: EarthMindConfig,
    data: DataConfig,
    rng: np.random.Generator | None,
) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
    for turn in turns:
        count = (turn.answer or "").count(SEG)
        if count != len(turn.masks):
            raise UserError(f"the answer '{turn.answer}' has {count} {SEG} but there are {len(turn.masks)} masks.")
    if cfg.grounding is None:
        return (), ()
    masks = [mask for turn in turns for mask in turn.masks]
    if masks and not has_image:
        raise UserError("a mask needs an image, but the sample has none of the sensors asked for.")
    if len(prompt.seg) != len(masks):
        raise UserError(f"the tokenizer must have the single token {SEG} to learn masks.")
    chosen = range(len(masks))
    if len(masks) > data.masks_per_sample:
        most = data.masks_per_sample
        chosen = range(most) if rng is None else sorted(rng.choice(len(masks), most, replace=False))
    side = cfg.grounding.mask_size
    small = tuple((tiles.nearest_resize(np.asarray(masks[i]), (side, side)) != 0).astype(np.float32) for i in chosen)
    return tuple(prompt.seg[i] for i in chosen), small
