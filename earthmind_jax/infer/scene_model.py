"""Many windows and many questions through the model at once: every window is seen once, whatever is asked about it.

A window of several dates is seen as :func:`earthmind_jax.infer.answer.answer` sees a sample of several: the first five
are images of one prompt, a ``[SEG]`` speaks to each of these, and what it means is followed through those beyond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from earthmind_jax.config import DataConfig, EarthMindConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.collate import Buckets
from earthmind_jax.data.encode import tile_frames
from earthmind_jax.data.layout import Layout, View, arrange
from earthmind_jax.data.records import Turn
from earthmind_jax.errors import UserError
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.scene_read import Frames
from earthmind_jax.models import earthmind
from earthmind_jax.ops.resize import bilinear
from earthmind_jax.types import Batch, Fused, ImageFeatures, Params

TEXT = 16  # prompts are padded to a multiple of it
ROWS = 16  # windows times questions and dates that go through the model at once: more do not fit a processor's caches


class Drawn(NamedTuple):
    """What the model draws in a batch of B windows for each of K questions on each of D dates.

    Attributes:
      probability: float32 [B H W K*D] on the window's pixels, the dates of a question side by side (0 where an answer
        has no ``[SEG]``: not there).
      weights: of fusion (optical, SAR), float32 [B n n 2 K] on the token grid, which are those of the last date with
        data and hold for the masks of all.
      texts: the answers, those of a window side by side.
      found: bool [B K], which of them have a ``[SEG]``.
    """

    probability: np.ndarray
    weights: np.ndarray
    texts: list[str]
    found: np.ndarray


@dataclass(frozen=True)
class Window:
    """One window as the model takes it: of each sensor ``tiles`` uint8 [I S S 3], ``valid`` bool [I N] of their tokens,
    and ``ground`` uint8 [D G G 3], every date for the mask decoder."""

    tiles: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    ground: dict[str, np.ndarray]


class WindowModel:
    """Answers the same questions about one window after another.

    Attributes:
      shape: rows and columns of a window.
      dates: D, masks that each question draws.
      batch_size: windows that go through the model at once.
      grid: tokens along a side of the tile that shows the whole window.
    """

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[str],
        side: int,
        views: Mapping[str, View],
        *,
        rows: int = ROWS,
        max_new: int = 32,
        whole: bool = False,
    ) -> None:
        """
        Args:
          side: of a window, pixels; less along a side of the scene that is shorter.
          views: sensor -> what its images are in the scene: the dates, and three-channel frames that each makes.
          rows: windows times questions and dates that go through the model at once (one window at least).
          max_new: tokens in which an answer must have come to its ``[SEG]``.
          whole: let answers end as they would, and not with their ``[SEG]``.

        Raises:
          UserError: the model has no mask decoder or cannot follow so many dates, or a question does not fit.
        """
        config = engine.config
        if config.grounding is None:
            raise UserError("This model has no mask decoder; it answers in text only.")
        self.engine, self.max_new = engine, max_new
        self.until = () if whole else (config.tokens.seg,)
        scene = next(iter(views.values())).shape
        self.shape = min(side, scene[0]), min(side, scene[1])
        self.dates = max(view.dates for view in views.values())
        if self.dates > earthmind.PROMPTED_FRAMES and not config.grounding.memory:
            raise UserError(
                f"There are {self.dates} dates, and this model has no memory to follow what it draws beyond the first "
                f"{earthmind.PROMPTED_FRAMES}: give fewer at a time, or convert it with memory."
            )
        self.count, self.batch_size = len(questions), max(1, rows // (len(questions) * self.dates))
        self.grid = config.vision.grid
        views = {name: replace(view, shape=self.shape) for name, view in views.items()}
        data = DataConfig(masks_per_sample=1, turns=2**30)
        self._layouts = [arrange((Turn(q),), views, config, data, engine.tokenizer, Buckets()) for q in questions]
        self._prompts = _stacked(self._layouts, config.tokens.pad)

    @property
    def layout(self) -> Layout:
        """How a window is laid out, the same for every question but for the words."""
        return self._layouts[0]

    def window(self, frames: Mapping[str, Sequence[Frames]]) -> Window:
        """A window, with the dates of each sensor."""
        config = self.engine.config
        assert config.grounding is not None
        asked = {name: list(dates[: self.layout.dates]) for name, dates in frames.items()}
        pixels, valid = tile_frames(asked, self.layout, config)
        side = config.grounding.image_size
        ground = {
            name: np.stack([tiles.direct_resize(pictures[0], side) for pictures, _ in dates])
            for name, dates in frames.items()
        }
        # A single image stands beside every date of the other sensor.
        ground = {name: np.broadcast_to(seen, (self.dates, *seen.shape[1:])) for name, seen in ground.items()}
        return Window(pixels, valid, ground)

    def stack(self, windows: Sequence[Window]) -> Window:
        """Windows as one batch of the compiled size, filled up by repetition."""
        filled = [windows[i % len(windows)] for i in range(self.batch_size)]

        def stacked(field: str) -> dict[str, np.ndarray]:
            return {name: np.stack([getattr(w, field)[name] for w in filled]) for name in filled[0].tiles}

        return Window(stacked("tiles"), stacked("valid"), stacked("ground"))

    def __call__(self, batch: Window) -> Drawn:
        """What the model draws in a batch of windows."""
        engine, size = self.engine, self.batch_size
        tokens, question, index, lengths = self._prompts
        fused, features = _see(
            engine.config, self.count, engine.params, batch.tiles, batch.valid, batch.ground, tokens, question
        )
        prompts = Batch(
            tokens=np.tile(tokens, (size, 1)),
            loss_mask=np.zeros((size * self.count, tokens.shape[1]), bool),
            lengths=np.tile(lengths, size),
            question=np.tile(question, (size, 1)),
            visual_index=np.tile(index, (size, 1)),
        )
        made = engine.generate(prompts, fused, max_new=self.max_new, until=self.until)
        weights = np.asarray(earthmind.grounding_weights(fused), np.float32)
        weights = np.moveaxis(weights.reshape(size, self.count, self.grid, self.grid, 2), 1, -1)
        if made.seg_states.shape[1] == 0:
            nothing = np.zeros((size, *self.shape, self.count * self.dates), np.float32)
            return Drawn(nothing, weights, made.texts, np.zeros((size, self.count), bool))
        found = np.asarray(made.seg_valid[:, 0])
        # One date is encoded with the windows; of several each is encoded where it is drawn.
        draw, given = (_draw, features) if self.dates == 1 else (_draw_dates, batch.ground)
        drawn = draw(
            engine.config,
            self.shape,
            engine.params,
            given,
            earthmind.grounding_weights(fused),
            made.seg_states[:, :1],
            found,
        )
        drawn = np.asarray(drawn).reshape(size, self.count, *self.shape, self.dates)
        drawn = np.moveaxis(drawn, 1, 3).reshape(size, *self.shape, -1)
        return Drawn(drawn, weights, made.texts, found.reshape(size, self.count))


def _stacked(layouts: Sequence[Layout], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [K T], question [K T], visual index [K T] and lengths [K] of all prompts."""
    prompts = [layout.prompt for layout in layouts]
    length = -(-max(len(p) for p in prompts) // TEXT) * TEXT
    tokens = np.full((len(prompts), length), pad, np.int32)
    index, question = np.full(tokens.shape, -1, np.int32), np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        used = slice(len(prompt))
        tokens[row, used], index[row, used] = prompt.tokens, prompt.visual_index
        question[row, used] = prompt.question
    return tokens, question, index, np.array([len(p) for p in prompts], np.int32)


def _normalised(pixels: Array) -> Array:
    return (pixels.astype(jnp.float32) / 255 - tiles.MEAN) / tiles.STD


@partial(jax.jit, static_argnums=(0, 1))
def _see(
    config: EarthMindConfig,
    count: int,
    params: Params,
    pixels: dict[str, Array],
    valid: dict[str, Array],
    ground: dict[str, Array],
    tokens: Array,
    question: Array,
) -> tuple[Fused, tuple[ImageFeatures, Array | None] | None]:
    """Fused tokens of every window and question [B*K ...], and what grounding sees of every window of one date
    (:func:`~earthmind_jax.models.earthmind.sensor_features`)."""
    seen = earthmind.encode_sensors(config, params, *_sensors(pixels))
    features = None
    if all(images.shape[1] == 1 for images in ground.values()):
        features = earthmind.sensor_features(config, params, *_sensors({n: i[:, 0] for n, i in ground.items()}))

    def each(x: Array | None) -> Array | None:
        return None if x is None else jnp.repeat(x, count, axis=0)

    size = len(next(iter(pixels.values())))
    text = jnp.tile(earthmind.embed(config, params, tokens), (size, 1, 1))
    fused = earthmind.fuse(
        config, params, *map(each, seen), each(valid.get("optical")), each(valid.get("sar")), text,
        jnp.tile(question, (size, 1)), training=False,
    )  # fmt: skip
    return fused, features


def _sensors(images: dict[str, Array]) -> tuple[Array | None, Array | None]:
    """The optical and the SAR images, normalised."""
    optical, sar = (_normalised(images[name]) if name in images else None for name in ("optical", "sar"))
    return optical, sar


@partial(jax.jit, static_argnums=(0, 1))
def _draw(
    config: EarthMindConfig,
    shape: tuple[int, int],
    params: Params,
    seen: tuple[ImageFeatures, Array | None],
    weights: Array,
    states: Array,
    found: Array,
) -> Array:
    """Probability [B*K H W 1] of the ``[SEG]`` states [B*K 1 d]; 0 where there is none."""
    features, presence = seen
    count = len(states) // (len(features.embed) if presence is None else len(presence))
    features, presence = earthmind.repeat_features(features, presence, count)
    if presence is not None:
        features = earthmind.blend_features(features, presence, weights)
    prompts = earthmind.seg_prompt(config, params, states)
    return _probability(earthmind.ground(config, params, features, prompts).logits, shape, found)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_dates(
    config: EarthMindConfig,
    shape: tuple[int, int],
    params: Params,
    ground: dict[str, Array],
    weights: Array,
    states: Array,
    found: Array,
) -> Array:
    """:func:`_draw` on every date of the images [B F G G 3]: [B*K H W F]."""
    prompts = earthmind.seg_prompt(config, params, states)
    count = len(states) // len(next(iter(ground.values())))
    tracked = earthmind.track(config, params, *_sensors(ground), prompts, weights=weights, questions=count)
    return _probability(tracked.logits[:, :, 0], shape, found)


def _probability(logits: Array, shape: tuple[int, int], found: Array) -> Array:
    """Of mask logits [R F h w] the probability [R H W F]; 0 in rows that were not ``found``."""
    # As infer.answer.upsample: first to the decoder's image, then to the window.
    full = bilinear(jnp.moveaxis(logits, 1, -1), (4 * logits.shape[-2], 4 * logits.shape[-1]))
    drawn = jax.nn.sigmoid(bilinear(full, shape))
    return jnp.where(found[:, None, None, None], drawn, 0)
