"""Encoded samples to one static-shaped batch.

:func:`earthmind_jax.data.encode.encode_sample` does everything that concerns one sample; :func:`stack` pads the results
to a bucket and joins them. :func:`collate` does both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.buckets import DEFAULT, Buckets
from earthmind_jax.data.encode import Example, encode_sample, sensor_frames
from earthmind_jax.data.records import SENSORS, Sample
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.types import Batch

__all__ = ["SENSORS", "Buckets", "Example", "collate", "encode_sample", "sensor_frames", "stack", "with_tokens"]


def stack(
    examples: Sequence[Example],
    cfg: EarthMindConfig,
    data: DataConfig,
    buckets: Buckets = DEFAULT,
    *,
    sensors: Sequence[str] | None = None,
    steered: bool | None = None,
) -> Batch:
    """Encoded samples as one batch, padded to the smallest bucket that holds them all.

    Args:
      sensors: the sensors that the batch has arrays for; None: those of its samples. A sample without one of them has
        zeros there, marked invalid. Training names them, so that dropout never changes a shape.
      steered: whether the batch has room for marks of its masks; None: where one of its samples has some.
    """
    if not examples:
        raise UserError("A batch needs at least one sample.")
    if sensors is None:
        sensors = [name for name in SENSORS if any(name in e.pixels for e in examples)]
    b, m, pad = len(examples), data.masks_per_sample, cfg.tokens.pad
    t = buckets.fit_text(max(len(e.prompt) for e in examples))
    tokens = np.full((b, t), pad, np.int32)
    visual_index = np.full((b, t), -1, np.int32)
    loss_mask, question = np.zeros((b, t), bool), np.zeros((b, t), bool)
    for row, example in enumerate(examples):
        prompt = example.prompt
        for target, values in (
            (tokens, prompt.tokens),
            (visual_index, prompt.visual_index),
            (loss_mask, prompt.loss_mask),
            (question, prompt.question),
        ):
            target[row, : len(values)] = values
    batch = Batch(
        tokens=tokens,
        loss_mask=loss_mask,
        lengths=np.array([len(e.prompt) for e in examples], np.int32),
        question=question,
        visual_index=visual_index,
    )
    count = buckets.fit_tiles(max(1, *(e.tiles for e in examples))) if sensors else 0
    for name in sensors:
        batch = batch.replace(**_stack_sensor(name, examples, cfg, count, buckets))
    if cfg.grounding is None:
        return batch
    if count:
        batch = batch.replace(places=_places(examples, cfg, count))
    side = cfg.grounding.mask_size
    dates = buckets.fit_dates(max(e.dates for e in examples))
    seg_index, mask_valid = np.zeros((b, m), np.int32), np.zeros((b, dates, m), bool)
    masks = np.zeros((b, dates, m, side, side), np.float32)
    for row, example in enumerate(examples):
        found = len(example.seg)
        if found:
            seg_index[row, :found] = example.seg
            mask_valid[row, : example.dates, :found] = np.stack(example.marked, 1)
            masks[row, : example.dates, :found] = np.stack(example.masks, 1)
    if dates == 1:
        masks, mask_valid = masks[:, 0], mask_valid[:, 0]
    batch = batch.replace(seg_index=seg_index, masks=masks, mask_valid=mask_valid)
    if steered is None:
        steered = any(mark is not None for e in examples for mark in e.marks)
    if not steered:
        return batch
    from earthmind_jax.data.pointed import training_prompts

    return batch.replace(marks=training_prompts([e.marks for e in examples], cfg.grounding, m, data.prompt_points))


def _places(examples: Sequence[Example], cfg: EarthMindConfig, count: int) -> np.ndarray:
    places = np.zeros((len(examples), count, 4), np.int32)
    for row, example in enumerate(examples):
        of_frame = tiles.tile_places(example.grid, cfg.sensors.thumbnail)
        places[row, : example.tiles] = np.tile(of_frame, (example.tiles // len(of_frame), 1))
    return places


def _stack_sensor(
    name: str, examples: Sequence[Example], cfg: EarthMindConfig, count: int, buckets: Buckets
) -> dict[str, np.ndarray]:
    size = cfg.vision.image_size
    pixels = np.zeros((len(examples), count, size, size, 3), np.float32)
    valid = np.zeros((len(examples), count, cfg.vision.tokens), bool)
    for row, example in enumerate(examples):
        if name in example.pixels:
            found = len(example.pixels[name])
            pixels[row, :found] = tiles.normalise(example.pixels[name])
            valid[row, :found] = example.valid[name]
    fields = {name: pixels, f"{name}_valid": valid}
    if cfg.grounding is not None:
        side = cfg.grounding.image_size
        dates = max(e.followed for e in examples)
        dates = dates if dates > buckets.dates[-1] else buckets.fit_dates(dates)
        ground = np.zeros((len(examples), dates, side, side, 3), np.float32)
        there = np.zeros((len(examples), dates), bool)
        for row, example in enumerate(examples):
            if name in example.ground:
                # A single image stands beside every date of the other sensor.
                ground[row, : example.followed] = tiles.sam_preprocess_image(example.ground[name])
                there[row, : example.followed] = True
        if dates == 1:
            ground, there = ground[:, 0], there[:, 0]
        fields |= {f"ground_{name}": ground, f"ground_{name}_valid": there}
    return fields


def collate(
    samples: Sequence[Sample],
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    buckets: Buckets = DEFAULT,
    *,
    rngs: Sequence[np.random.Generator] | None = None,
    sensors: Sequence[str] | None = None,
    variant: str = "hf",
    follow: bool = False,
) -> Batch:
    """Samples to a batch (:func:`encode_sample`, then :func:`stack`); ``rngs`` holds one generator per sample."""
    draws = rngs if rngs is not None else [None] * len(samples)
    examples = [
        encode_sample(
            s, cfg, data, tokenizer, buckets, rng=rng, sensors=sensors or SENSORS, variant=variant, follow=follow
        )
        for s, rng in zip(samples, draws, strict=True)
    ]
    return stack(examples, cfg, data, buckets, sensors=sensors)


def with_tokens(cfg: EarthMindConfig, tokenizer: Tokenizer) -> EarthMindConfig:
    """The config with the tokenizer's special ids in ``tokens``.

    Raises:
      UserError: if the model's vocabulary has fewer rows than the tokenizer has ids.
    """
    if len(tokenizer) > cfg.lm.vocab:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} ids but the model has {cfg.lm.vocab} embeddings (lm.vocab)."
        )
    return dataclasses.replace(cfg, tokens=tokenizer.special_tokens())
