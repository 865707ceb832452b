"""Masks of images that are read already: at one look or window by window, of one target or several, or of what is
pointed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.data.collate import sensor_frames
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Turn
from earthmind_jax.data.scene_images import picture_shape
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.answer import upsample_each
from earthmind_jax.infer.engine import bucket
from earthmind_jax.infer.many import QUESTIONS, Many
from earthmind_jax.infer.pointing import draw
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.samples import dated_masks, sample_of
from earthmind_jax.infer.scene_model import WindowModel
from earthmind_jax.infer.scene_read import Rows, framed, views_of
from earthmind_jax.infer.windows import OVERLAP, Blend, stretched, windows

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind

CANVAS = 2**28  # probabilities of a scene that are blended at once: 1 GiB
UNPOINTED = "Where nothing is drawn, the model may not have learnt what marks mean (loss.mark); name the target, too."


def target_mask(model: EarthMind, images: Images, target: str, max_new: int = 32, overlap: float = OVERLAP) -> Answer:
    """The mask of a target on images that are read already, window by window where they are large."""
    model.require_masks()
    question = SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip())
    if model.large(images):
        return windowed(model, question, images, None, max_new, overlap)
    reply = model.reply([sample_of(images, Turn(question))], max_new)[0]
    probability = reply.mask(images.shape)
    if probability is None:
        probability = np.zeros((len(images.later) + 1, *images.shape), np.float32)
    return answer_of(model, question, reply.text, dated_masks(probability, images), reply.overview, images)


def target_masks(model: EarthMind, images: Images, targets: tuple[str, ...], max_new: int, overlap: float) -> Answer:
    """:func:`target_mask` of several targets; what does not depend on the question is computed once."""
    for target in targets:
        if not isinstance(target, str) or not target.strip():
            raise UserError(f"There is nothing to segment: one of the targets is {target!r}.")
    questions = [SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip()) for target in targets]
    if not _on_one_grid(images):
        each = [target_mask(model, images, target, max_new, overlap) for target in targets]
        masks, texts, fusion = [a.masks for a in each], [a.text for a in each], each[0].fusion
    elif model.large(images) or images.later:
        masks, texts, fusion = _windowed_together(model, questions, images, max_new, overlap)
    else:
        if model.many is None:
            model.many = Many(model.engine)
        replies = model.many.answer(sample_of(images, Turn(questions[0])), questions, model.buckets, max_new)
        drawn = upsample_each([reply.masks[0] for reply in replies if reply.masks], images.shape)
        masks = [dated_masks(next(drawn) if r.masks else np.zeros(images.shape), images) for r in replies]
        texts, fusion = [reply.text for reply in replies], replies[0].overview
    pairs = zip(masks, targets, strict=True)
    named = tuple(replace(mask, name=target.strip()) for several, target in pairs for mask in several)
    text = "\n".join(f"{target.strip()}: {text}" for target, text in zip(targets, texts, strict=True))
    return answer_of(model, "; ".join(targets), text, named, fusion, images)


def pointed_at(model: EarthMind, images: Images, placed: Sequence[Mark], target: str, max_new: int) -> Answer:
    """One mask for each object that is pointed at."""
    found, said, fusion = draw(model.engine, images, placed, target.strip(), model.buckets, max_new, model.sensors)
    pairs = zip(found, placed, strict=True)
    masks = tuple(replace(mask, name=mark.name) for p, mark in pairs for mask in dated_masks(p, images))
    if not target.strip() and not all(mask.array.any() for mask in masks):
        images = replace(images, notes=(*images.notes, UNPOINTED))
    return answer_of(model, target.strip(), said, masks, fusion, images)


def windowed(model: EarthMind, question: str, images: Images, text: str | None, max_new: int, overlap: float) -> Answer:
    """Ask the same of every window, and blend their masks and fusion weights over the scene."""
    known = images.valid_on_some_date
    places = [w for w in windows(images.shape, model.config.sensors.window, overlap) if known[w].any()]
    samples = [sample_of(images.crop(w), Turn(question)) for w in places]
    dates = len(images.later) + 1
    mask, fusion = Blend(images.shape, dates), Blend(images.shape, 2)
    best = ""
    for place, reply in zip(places, model.reply(samples, max_new, batch_size=model.batch_size), strict=True):
        shape = (place[0].stop - place[0].start, place[1].stop - place[1].start)
        probability = reply.mask(shape)
        # A window without [SEG] says that the object is not there.
        if probability is None:
            probability = np.zeros((dates, *shape), np.float32)
        mask.add(place, np.moveaxis(probability.reshape(dates, *shape), 0, -1))
        if reply.masks or not best:
            best = reply.text
        if reply.weights is not None:
            weights = stretched(reply.overview, shape)
            fusion.add(place, weights, weights.sum(-1) > 0)
    drawn = dated_masks(np.moveaxis(mask.mean(), -1, 0), images)
    return answer_of(model, question, text or best, drawn, fusion.mean(), images)


def _on_one_grid(images: Images) -> bool:
    """Whether the pictures of all sensors and dates have the same pixels."""
    pictures = [picture for each in (images, *images.later) for picture, _ in each.pictures.values()]
    return {picture_shape(picture) for picture in pictures} == {images.shape}


def _windowed_together(
    model: EarthMind, questions: Sequence[str], images: Images, max_new: int, overlap: float
) -> tuple[list[tuple[Mask, ...]], list[str], np.ndarray]:
    """:func:`windowed` of several questions, each window (an image of several dates may be a single one) encoded once
    for all of them: masks and text of each question, and the fusion weights that the first one had."""
    large, shape, dates = model.large(images), images.shape, len(images.later) + 1
    side, known = model.config.sensors.window if large else max(shape), images.valid_on_some_date
    places = [w for w in windows(shape, side, overlap) if not large or known[w].any()]
    frames = Rows(0, framed(images, model.config.sensors))
    views = views_of(frames.frames, shape, images.sources)
    masks: list[tuple[Mask, ...]] = []
    texts: list[str] = []
    fusion = Blend(shape, 2)
    # As many at a time as a canvas for all of their masks has room for.
    most = min(QUESTIONS[-1], max(1, CANVAS // (dates * shape[0] * shape[1])))
    for start in range(0, len(questions), most):
        group = questions[start : start + most]
        # Filled up to a size that is compiled once for several counts.
        filled = [*group, *[group[-1]] * (bucket(len(group), QUESTIONS) - len(group))]
        seer = WindowModel(model.engine, filled, side, views, max_new=max_new, whole=True)
        canvas = Blend(shape, len(group) * dates)
        said = [""] * len(group)
        for place, probability, looked, words, found in _looks(seer, frames, places):
            canvas.add(place, probability[..., : len(group) * dates])
            said = [text if drew or not old else old for old, text, drew in zip(said, words, found, strict=False)]
            if start == 0:
                weights, overview = stretched(looked, seer.shape), looked
                fusion.add(place, weights, weights.sum(-1) > 0)
        texts += said
        for k in range(len(group)):
            probability = canvas.mean(channels=slice(k * dates, (k + 1) * dates))
            masks.append(dated_masks(np.moveaxis(probability, -1, 0), images))
    return masks, texts, fusion.mean() if large else overview


def _looks(
    seer: WindowModel, frames: Rows, places: Sequence[tuple[slice, slice]]
) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray, list[str], np.ndarray]]:
    """Each window of a scene with what the model draws there: probability [h w K*D], the fusion weights [n n 2] of the
    first question, the K answers, and which of them have a ``[SEG]``."""
    for start in range(0, len(places), seer.batch_size):
        batch = places[start : start + seer.batch_size]
        drawn = seer(seer.stack([seer.window(frames.window(*place)) for place in batch]))
        for i, place in enumerate(batch):
            texts = drawn.texts[i * seer.count : (i + 1) * seer.count]
            yield place, drawn.probability[i], drawn.weights[i, ..., 0], texts, drawn.found[i]


def answer_of(
    model: EarthMind, question: str, text: str, masks: tuple[Mask, ...], fusion: np.ndarray | None, images: Images
) -> Answer:
    """An answer, with what the model saw of each sensor and date for display."""
    pictures = {}
    sources: dict[str, str] = {}
    for each in (images, *images.later):
        for name, (picture, valid) in each.pictures.items():
            frame = sensor_frames(picture, valid, name, model.config.sensors)[0][0]
            pictures.setdefault(name, frame)
            if images.later:
                pictures[f"{name} {each.date}"] = frame
        sources |= {f"{name} {each.date}" if images.later else name: p for name, p in each.sources.items()}
    return Answer(question, text, masks, fusion, pictures, tuple(images.notes), model.name, sources)
