"""Batches of samples to texts and masks: the road that evaluation and the predictor share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array

from earthmind_jax.config import DataConfig
from earthmind_jax.data.collate import Buckets, collate
from earthmind_jax.data.records import SENSORS, Sample
from earthmind_jax.infer.compiled import Pyramids
from earthmind_jax.infer.engine import Engine, Generated
from earthmind_jax.infer.marks import paired
from earthmind_jax.ops.resize import bilinear
from earthmind_jax.types import Batch, Fused, VisualPrompts

TOGETHER = 2**22  # pixels of masks that are brought to an image's size at once


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model said about one sample.

    Attributes:
      text: the answer, special tokens included.
      masks: mask logits, float32 [h w] at the decoder's low resolution, one for each ``[SEG]``; of several dates
        [F h w].
      weights: fusion weights (optical, SAR) on the token grid of each tile, float32 [I n n 2]; None without an image.
    """

    text: str
    masks: tuple[np.ndarray, ...]
    weights: np.ndarray | None

    def mask(self, shape: tuple[int, int], index: int = 0) -> np.ndarray | None:
        """The ``index``-th mask as probability on the image's own pixels [H W] (of several dates [F H W]); None where
        the model gave none."""
        return upsample(self.masks[index], shape) if index < len(self.masks) else None

    @property
    def overview(self) -> np.ndarray | None:
        """The weights [n n 2] of the tile that shows the whole image; None without an image."""
        return None if self.weights is None else overview(self.weights)


def upsample(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask logits [... h w] to probabilities [... H W]: bilinear to four times the size (SAM2's image), then to the
    image."""
    full = bilinear(logits[..., None], (4 * logits.shape[-2], 4 * logits.shape[-1]))
    resized = np.asarray(bilinear(full, shape))[..., 0]
    return 1 / (1 + np.exp(-np.clip(resized, -60, 60)))


def upsample_each(logits: Sequence[np.ndarray], shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """:func:`upsample` of one mask after another, small ones together: many calls cost more than what they compute."""
    most = max(1, TOGETHER // (shape[0] * shape[1]))
    for start in range(0, len(logits), most):
        yield from upsample(np.stack(logits[start : start + most]), shape)


def answer(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    max_new: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    buckets: Buckets | None = None,
    sensors: tuple[str, ...] | None = None,
    marks: VisualPrompts | None = None,
) -> Iterator[Reply]:
    """Answer the last question of every sample, in order.

    Short batches are filled up by repetition, so that every batch has the compiled shape.

    Args:
      sensors: sensors that batches have room for; None: those that the samples of a batch have. Naming both keeps one
        compiled variant for samples with one sensor or two.
      marks: what the ``[SEG]`` of every sample also point at [1 M ...] (:func:`earthmind_jax.infer.marks.paired`).
    """
    data = DataConfig(batch_size=batch_size, masks_per_sample=1, turns=2**30)
    for start in range(0, len(samples), batch_size):
        group = [_ask(s) for s in samples[start : start + batch_size]]
        filled = [group[i % len(group)] for i in range(batch_size)]
        tables = buckets or Buckets()
        batch = collate(filled, engine.config, data, engine.tokenizer, tables, sensors=sensors, follow=True)
        fused = engine.encode(batch)
        made = engine.generate(batch, fused, max_new=max_new, temperature=temperature, seed=seed)
        dates = [_dates(sample) for sample in group]
        yield from replies(engine, batch, fused, made, dates, marks=marks)


def replies(
    engine: Engine,
    batch: Batch,
    fused: Fused | None,
    made: Generated,
    dates: Sequence[int],
    *,
    marks: VisualPrompts | None = None,
    pyramids: Pyramids | None = None,
) -> Iterator[Reply]:
    """What was generated for the first rows of a batch, with masks and weights.

    Args:
      dates: images of each row's sample.
      marks: as of :func:`answer`.
      pyramids: the mask decoder's features of the batch's images, where they are known already.
    """
    logits, states = None, made.seg_states
    if states.shape[1] and engine.config.grounding is not None and fused is not None:
        if marks is not None:
            marks = jax.tree.map(lambda x: np.repeat(x, len(states), 0), paired(marks, states.shape[1]))
        logits = engine.masks(batch, fused, states, marks, pyramids=pyramids)[0]
    weights = None if fused is None else token_grid(fused.weights)
    for row, count in enumerate(dates):
        found = () if logits is None else tuple(_masks(logits[row], count, made.seg_valid[row]))
        yield Reply(made.texts[row], found, None if weights is None else weights[row])


def _dates(sample: Sample) -> int:
    return max(len(sample.images(name)) for name in SENSORS)


def _ask(sample: Sample) -> Sample:
    """The sample with its last answer left open."""
    last = dataclasses.replace(sample.turns[-1], answer=None, mask=None)
    return dataclasses.replace(sample, turns=(*sample.turns[:-1], last))


def _masks(logits: np.ndarray, dates: int, valid: np.ndarray) -> Iterator[np.ndarray]:
    """The masks of one sample [h w]; of the stack [F M h w] that several dates make, those of its own dates [F h w]."""
    if logits.ndim == 3:
        yield from logits[np.flatnonzero(valid)]
    else:
        for i in np.flatnonzero(valid):
            yield logits[:dates, i] if dates > 1 else logits[0, i]


def overview(weights: np.ndarray) -> np.ndarray:
    """Of the weights of all tiles [I n n 2], those of the last one with data: the thumbnail, or the only tile."""
    shown = [tile for tile in weights if tile.sum() > 0]
    return shown[-1] if shown else weights[0]


def token_grid(weights: Array) -> np.ndarray:
    """Fusion weights [B I N 2] on the token grid of each tile [B I n n 2]."""
    side = round(weights.shape[2] ** 0.5)
    return np.asarray(weights, np.float32).reshape(*weights.shape[:2], side, side, 2)
