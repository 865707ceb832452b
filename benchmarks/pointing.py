"""What a model draws where it is pointed, and what its mask decoder learns to make of clicks and boxes.

    python benchmarks/pointing.py demo/checkpoint                      # as it is
    python benchmarks/pointing.py demo/checkpoint --steps 1500         # then its mask decoder learns marks alone

Each line is one JSON object. The first is what needs no model: the mean IoU of the box itself, and of the best disc
round the pixel. Then the mean IoU of the connected part of unseen simulated scenes that a random pixel of an area lies
in: pointed at by this pixel, by two more of that part, or by its exact box, on the road of ``earthmind segment
--point`` from pixels to the mask; and ``words``, the foreground mIoU of areas asked for by name, as ``earthmind demo``
has it.

With ``--steps`` the features of other scenes are computed once and stay as they are, and the mask decoder learns on
them with the prompts and targets of ``loss.mark``: first where a mark is (``loss.mark_shapes``), for ``PLACES`` steps,
then what lies there. Words are not learnt beside them. The frequencies of the code of places are made ``SMOOTHER``: as
drawn, the code of a place is alike over 0.08 of the image's side (the deviation of its kernel), less than one of the
8 x 8 cells of the demo's model, which then learns each pair of cells by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from earthmind_jax.config import DataConfig, EarthMindConfig, Group, LossConfig, OptimConfig, RunConfig
from earthmind_jax.data.collate import SENSORS, Buckets, collate
from earthmind_jax.data.pipeline import simulated
from earthmind_jax.data.pointed import padded, visual_prompts
from earthmind_jax.data.records import Sample
from earthmind_jax.evaluate.simulated import SEGMENTATION, UNSEEN, make_items, score, summarise
from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.answer import upsample
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.models import earthmind
from earthmind_jax.train.marks import sample_marks
from earthmind_jax.train.state import make_optimiser
from earthmind_jax.train.step import mask_losses
from earthmind_jax.types import Batch, ImageFeatures, Params, VisualPrompts

SCENES, BATCH, MASKS = 96, 32, 6
LEARNT, PLACES, AT_ONCE = 8, 300, 25  # scenes of a step; steps that learn places first; steps of one call
LEARNS, FREQUENCIES, SMOOTHER = "grounding/(decoder/|prompt/points)", "grounding/prompt/gaussian", 0.3
KINDS = ("point", "3 points", "box")
RADII = (8, 12, 16, 20, 24, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint or run directory with a mask decoder")
    parser.add_argument("--scenes", type=int, default=SCENES, help="unseen scenes that are measured")
    parser.add_argument("--steps", type=int, default=0, help="that the mask decoder learns for")
    parser.add_argument("--shown", type=int, default=2000, help="scenes that it learns from")
    parser.add_argument("--every", type=int, default=250, help="steps between two lines")
    options = parser.parse_args()
    unseen, rng = scenes(options.scenes, UNSEEN), np.random.default_rng(0)
    objects = [[Object.of(mask, rng) for mask in truths(sample)] for sample in unseen]
    tell(kind="no model", **trivial([thing for each in objects for thing in each]))
    model = EarthMind.load(options.checkpoint)
    config, params = model.engine.config, model.engine.params
    held = [look(model, some) for some in batched(unseen)]
    draw = jax.jit(lambda params, features, marks: earthmind.ground(config, params, features, None, marks).logits)
    found = measure(config, params, held, objects, draw)
    rows = summarise(score(model.engine, make_items(options.scenes // 2, tasks=(SEGMENTATION,) * 3), "both"))
    tell(kind="as it is", **found, words={row.sky: round(row.iou.mean, 3) for row in rows})
    if not options.steps:
        return
    shown = [look(model, some) for some in batched(scenes(options.shown, 11))]
    for step, learned, value in train(config, params, shown, options.steps):
        if step % options.every < AT_ONCE or step >= options.steps:
            tell(kind="marks learnt", step=step, loss=value, **measure(config, learned, held, objects, draw))


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def scenes(count: int, seed: int) -> list[Sample]:
    """Scenes with the areas that can be asked for, without questions about what is not there."""
    source = simulated(count, seed=seed, tasks=(SEGMENTATION,) * MASKS, lettered=False)
    made = [source[i] for i in range(count)]
    kept = [dataclasses.replace(s, turns=tuple(t for t in s.turns if t.masks)) for s in made]
    return [sample for sample in kept if sample.turns]


def truths(sample: Sample) -> list[np.ndarray]:
    return [np.asarray(mask) > 0 for turn in sample.turns for mask in turn.masks][:MASKS]


@dataclasses.dataclass(frozen=True, eq=False)
class Object:
    """A connected part [H W], and pixels (x, y) of it [3 2]."""

    mask: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, area: np.ndarray, rng: np.random.Generator) -> Object:
        """The part of an area that a random pixel of it lies in."""
        labels, _ = ndimage.label(area, np.ones((3, 3)))
        rows, columns = np.nonzero(area)
        first = rng.integers(len(rows))
        mask = labels == labels[rows[first], columns[first]]
        more = np.argwhere(mask)[rng.integers(mask.sum(), size=2), ::-1]
        return cls(mask, np.concatenate([[(columns[first], rows[first])], more]) + 0.5)

    @property
    def box(self) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero(self.mask)
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1

    def mark(self, kind: str) -> Mark:
        none = Mark("area", self.mask.shape, np.zeros((0, 2)), np.zeros(0, np.int32))
        if kind == "box":
            return dataclasses.replace(none, box=self.box)
        points = self.pixels[: 1 if kind == "point" else None]
        return dataclasses.replace(none, points=points, labels=np.ones(len(points), np.int32))


def batched(samples: list[Sample]) -> list[list[Sample]]:
    return [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]


def look(model: EarthMind, samples: list[Sample]) -> tuple[ImageFeatures, np.ndarray]:
    """Image features of samples and their masks [BATCH MASKS h w]; both start again where samples or masks end."""
    engine, config = model.engine, model.engine.config
    data = DataConfig(masks_per_sample=MASKS, turns=MASKS, text_length=512)
    filled = [samples[i % len(samples)] for i in range(BATCH)]
    batch = collate(filled, config, data, engine.tokenizer, Buckets((1,), (512,)), sensors=SENSORS)
    features, presence = engine.pyramids(batch)
    if presence is not None:
        features = earthmind.blend_features(features, presence, earthmind.grounding_weights(engine.encode(batch)))
    again = np.arange(MASKS) % np.asarray(batch.mask_valid).sum(1, keepdims=True)
    return features, np.take_along_axis(np.asarray(batch.masks), again[..., None, None], axis=1)


def train(
    config: EarthMindConfig, params: Params, shown: list[tuple[ImageFeatures, np.ndarray]], steps: int
) -> Iterator[tuple[int, Params, float]]:
    """(step, parameters, mean loss of these steps) after each ``AT_ONCE`` steps of the mask decoder."""
    groups = (Group(pattern=LEARNS, learning_rate=1.0, weight_decay=0.01), Group(pattern=".*"))
    optim = OptimConfig(learning_rate=2e-3, warmup=0.1, final=0.05, betas=(0.9, 0.98), groups=groups)
    loss = LossConfig(points=0, mask_contrast=1.0)
    run = RunConfig(name="objects", model=config, optim=optim, loss=loss, steps=steps)
    first = dataclasses.replace(run, name="places", loss=dataclasses.replace(loss, mark_shapes=1.0))
    params = {path: jnp.asarray(x) for path, x in params.items()}
    params[FREQUENCIES] = params[FREQUENCIES] * SMOOTHER
    learned = {path: x for path, x in params.items() if re.match(LEARNS, path)}
    rest = {path: x for path, x in params.items() if path not in learned}
    optimiser = make_optimiser(run)
    features = jax.tree.map(lambda *x: jnp.concatenate(x), *[features for features, _ in shown])
    masks = jnp.concatenate([masks for _, masks in shown])

    def one(features: ImageFeatures, masks: jax.Array, run: RunConfig, state: Any, key: jax.Array) -> Any:
        def total(learned: Params) -> jax.Array:
            chosen = jax.random.randint(key, (LEARNT,), 0, len(masks))
            none = jnp.zeros((LEARNT, 1))
            batch = Batch(none, none, none, none, none, masks=masks[chosen])
            marks, targets, _ = sample_marks(jax.random.fold_in(key, 1), batch, run)
            drawn = earthmind.ground(config, rest | learned, jax.tree.map(lambda x: x[chosen], features), None, marks)
            terms, _ = mask_losses(run, key, drawn.logits, targets, jnp.ones(targets.shape[:2], bool))
            return loss.mask_bce * terms["bce"] + loss.mask_dice * terms["dice"] + terms["contrast"]

        learned, inner = state
        value, gradient = jax.value_and_grad(total)(learned)
        updates, inner = optimiser.update(gradient, inner, learned)
        return (optax.apply_updates(learned, updates), inner), value

    @functools.partial(jax.jit, static_argnames="run")
    def some(features: ImageFeatures, masks: jax.Array, run: RunConfig, state: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(functools.partial(one, features, masks, run), state, keys)

    state = (learned, optimiser.init(learned))
    for step in range(AT_ONCE, steps + AT_ONCE, AT_ONCE):
        keys = jax.random.split(jax.random.key(step), AT_ONCE)
        state, values = some(features, masks, first if step <= PLACES else run, state, keys)
        yield step, rest | state[0], round(float(values.mean()), 3)


def measure(
    config: EarthMindConfig,
    params: Params,
    held: list[tuple[ImageFeatures, np.ndarray]],
    objects: list[list[Object]],
    draw: Callable[[Params, ImageFeatures, VisualPrompts], jax.Array],
) -> dict[str, float]:
    """Mean IoU of each kind of mark."""
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, (features, _) in enumerate(held):
        things = objects[number * BATCH : (number + 1) * BATCH]
        for kind in KINDS:
            each = [visual_prompts([thing.mark(kind) for thing in row], config.grounding) for row in things]
            each = [padded(prompts, MASKS) for prompts in each]
            each += each[:1] * (BATCH - len(things))
            logits = np.asarray(draw(params, features, jax.tree.map(lambda *x: np.concatenate(x), *each)))
            scores[kind] += [
                iou(upsample(logits[row, slot], thing.mask.shape) > 0.5, thing.mask)
                for row, some in enumerate(things)
                for slot, thing in enumerate(some)
            ]
    return {kind: round(float(np.mean(values)), 3) for kind, values in scores.items()}


def trivial(objects: list[Object]) -> dict[str, float]:
    """Mean IoU of the box itself, and of the disc round the pixel whose radius is the best for all."""
    boxes, discs = [], []
    for thing in objects:
        rows, columns = np.indices(thing.mask.shape) + 0.5
        x0, y0, x1, y1 = thing.box
        boxes.append(iou((rows > y0) & (rows < y1) & (columns > x0) & (columns < x1), thing.mask))
        x, y = thing.pixels[0]
        discs.append([iou((rows - y) ** 2 + (columns - x) ** 2 < r * r, thing.mask) for r in RADII])
    return {"box": round(float(np.mean(boxes)), 3), "point": round(float(np.mean(discs, axis=0).max()), 3)}


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / max((found | truth).sum(), 1))


if __name__ == "__main__":
    main()
