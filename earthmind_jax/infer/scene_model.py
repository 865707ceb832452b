"""Many windows and many questions through the model at once: every window is seen once, whatever is asked about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
ROWS = 16  # windows times questions that go through the model at once: more do not fit a processor's caches


@dataclass(frozen=True)
class Window:
    """One window as the model takes it: of each sensor ``tiles`` uint8 [I S S 3], ``valid`` bool [I N] of their tokens,
    and ``ground`` uint8 [G G 3] for the mask decoder."""

    tiles: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    ground: dict[str, np.ndarray]


class WindowModel:
    """Answers the same questions about one window after another.

    Attributes:
      side: of a window, pixels.
      batch_size: windows that go through the model at once.
      grid: tokens along a side of the tile that shows the whole window.
    """

    def __init__(
        self,
        engine: Engine,
        questions: Sequence[str],
        side: int,
        frames: Mapping[str, int],
        *,
        rows: int = ROWS,
        max_new: int = 32,
    ) -> None:
        """
        Args:
          frames: sensor -> three-channel frames that its image makes.
          rows: windows times questions that go through the model at once (one window at least).
          max_new: tokens in which an answer must have come to its ``[SEG]``.

        Raises:
          UserError: the model has no mask decoder, or a question does not fit.
        """
        config = engine.config
        if config.grounding is None:
            raise UserError("This model has no mask decoder; it answers in text only.")
        self.engine, self.side, self.max_new = engine, side, max_new
        self.count, self.batch_size = len(questions), max(1, rows // len(questions))
        self.grid = config.vision.grid
        views = {name: View((side, side), count) for name, count in frames.items()}
        data = DataConfig(masks_per_sample=1, turns=2**30)
        self._layouts = [arrange((Turn(q),), views, config, data, engine.tokenizer, Buckets()) for q in questions]
        self._prompts = _stacked(self._layouts, config.tokens.pad)

    @property
    def layout(self) -> Layout:
        """How a window is laid out, the same for every question but for the words."""
        return self._layouts[0]

    def window(self, frames: Mapping[str, Frames]) -> Window:
        """A window of ``side`` pixels or less; what is missing at its lower right is filled up as without data."""
        config = self.engine.config
        assert config.grounding is not None
        square = {name: _filled(f, self.side) for name, f in frames.items()}
        pixels, valid = tile_frames({name: [f] for name, f in square.items()}, self.layout, config)
        side = config.grounding.image_size
        ground = {name: tiles.direct_resize(f[0], side) for name, (f, _) in square.items()}
        return Window(pixels, valid, ground)

    def stack(self, windows: Sequence[Window]) -> Window:
        """Windows as one batch of the compiled size, filled up by repetition."""
        filled = [windows[i % len(windows)] for i in range(self.batch_size)]

        def stacked(field: str) -> dict[str, np.ndarray]:
            return {name: np.stack([getattr(w, field)[name] for w in filled]) for name in filled[0].tiles}

        return Window(stacked("tiles"), stacked("valid"), stacked("ground"))

    def __call__(self, batch: Window) -> tuple[np.ndarray, np.ndarray]:
        """What the model draws in a batch of B windows for each of K questions.

        Returns:
          Probability float32 [B H W K] on the window's pixels (0 where an answer has no ``[SEG]``: not there), and the
          fusion weights (optical, SAR) float32 [B n n 2 K] on the token grid.
        """
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
        made = engine.generate(prompts, fused, max_new=self.max_new, until=(engine.config.tokens.seg,))
        weights = np.asarray(earthmind.grounding_weights(fused), np.float32)
        weights = np.moveaxis(weights.reshape(size, self.count, self.grid, self.grid, 2), 1, -1)
        if made.seg_states.shape[1] == 0:
            return np.zeros((size, self.side, self.side, self.count), np.float32), weights
        found = np.asarray(made.seg_valid[:, 0])
        drawn = _draw(
            engine.config,
            self.side,
            engine.params,
            *features,
            earthmind.grounding_weights(fused),
            made.seg_states[:, :1],
            found,
        )
        drawn = np.asarray(drawn).reshape(size, self.count, self.side, self.side)
        return np.moveaxis(drawn, 1, -1), weights


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


def _filled(frames: Frames, side: int) -> Frames:
    pixels, valid = frames
    if valid.shape == (side, side):
        return frames
    square = np.empty((len(pixels), side, side, 3), np.uint8)
    square[:] = tiles.to_uint8(tiles.MEAN)
    there = np.zeros((side, side), bool)
    square[:, : valid.shape[0], : valid.shape[1]], there[: valid.shape[0], : valid.shape[1]] = pixels, valid
    return square, there


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
) -> tuple[Fused, tuple[ImageFeatures, Array | None]]:
    """Fused tokens of every window and question [B*K ...], and what grounding sees of every window
    (:func:`~earthmind_jax.models.earthmind.sensor_features`)."""
    seen = earthmind.encode_sensors(config, params, *(_sensor(pixels, name) for name in ("optical", "sar")))
    features = earthmind.sensor_features(config, params, *(_sensor(ground, name) for name in ("optical", "sar")))

    def each(x: Array | None) -> Array | None:
        return None if x is None else jnp.repeat(x, count, axis=0)

    size = len(next(iter(pixels.values())))
    text = jnp.tile(earthmind.embed(config, params, tokens), (size, 1, 1))
    fused = earthmind.fuse(
        config, params, *map(each, seen), each(valid.get("optical")), each(valid.get("sar")), text,
        jnp.tile(question, (size, 1)), training=False,
    )  # fmt: skip
    return fused, features


def _again(rows: Any, count: int, together: int) -> Any:
    """Every window's rows, ``together`` of them, ``count`` times."""

    def repeated(x: Array) -> Array:
        return jnp.repeat(x.reshape(-1, together, *x.shape[1:]), count, axis=0).reshape(-1, *x.shape[1:])

    return jax.tree.map(repeated, rows)


def _sensor(images: dict[str, Array], name: str) -> Array | None:
    return _normalised(images[name]) if name in images else None


@partial(jax.jit, static_argnums=(0, 1))
def _draw(
    config: EarthMindConfig,
    side: int,
    params: Params,
    features: ImageFeatures,
    presence: Array | None,
    weights: Array,
    states: Array,
    found: Array,
) -> Array:
    """Probability [B*K side side] of the ``[SEG]`` states [B*K 1 D]; 0 where there is none."""
    count = len(states) // (len(features.embed) if presence is None else len(presence))
    if presence is None:
        features = _again(features, count, 1)
    else:
        features = earthmind.blend_features(_again(features, count, 2), _again(presence, count, 1), weights)
    prompts = earthmind.seg_prompt(config, params, states)
    logits = earthmind.ground(config, params, features, prompts).logits
    # As infer.answer.upsample: first to the decoder's image, then to the window.
    full = bilinear(jnp.moveaxis(logits, 1, -1), (4 * logits.shape[-2], 4 * logits.shape[-1]))
    drawn = jax.nn.sigmoid(bilinear(full, (side, side))[..., 0])
    return jnp.where(found[:, None, None], drawn, 0)
