"""What a model draws where it is pointed.

    python benchmarks/pointing.py demo/checkpoint               # never trained for it
    earthmind train configs/pointing.py --start demo/checkpoint --out demo/pointing
    python benchmarks/pointing.py demo/pointing/2-objects

Each line is one JSON object. The first is what needs no model: the mean IoU of the box itself, and of the best disc
round the pixel. Then the mean IoU of the connected part of unseen simulated scenes that a random pixel of an area lies
in: pointed at by this pixel, by two more of that part, or by its exact box, on the road of ``earthmind segment
--point`` from pixels to the mask; and ``words``, the foreground mIoU of areas asked for by name, as ``earthmind demo``
has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from earthmind_jax.config import DataConfig
from earthmind_jax.data.collate import SENSORS, Buckets, collate
from earthmind_jax.data.pipeline import simulated
from earthmind_jax.data.pointed import padded, visual_prompts
from earthmind_jax.data.records import Sample
from earthmind_jax.evaluate.simulated import SEGMENTATION, UNSEEN, make_items, score, summarise
from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.answer import upsample
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.models import earthmind
from earthmind_jax.types import ImageFeatures

SCENES, BATCH, MASKS = 96, 32, 6
KINDS = ("point", "3 points", "box")
RADII = (8, 12, 16, 20, 24, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint or run directory with a mask decoder")
    parser.add_argument("--scenes", type=int, default=SCENES, help="unseen scenes that are measured")
    options = parser.parse_args()
    unseen, rng = scenes(options.scenes, UNSEEN), np.random.default_rng(0)
    objects = [[Object.of(mask, rng) for mask in truths(sample)] for sample in unseen]
    tell(kind="no model", **trivial([thing for each in objects for thing in each]))
    model = EarthMind.load(options.checkpoint)
    found = measure(model, unseen, objects)
    rows = summarise(score(model.engine, make_items(options.scenes // 2, tasks=(SEGMENTATION,) * 3), "both"))
    tell(kind="model", **found, words={row.sky: round(row.iou.mean, 3) for row in rows})


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


def look(model: EarthMind, samples: list[Sample]) -> ImageFeatures:
    """Image features of ``BATCH`` samples; they start again where samples end."""
    engine, config = model.engine, model.engine.config
    data = DataConfig(masks_per_sample=MASKS, turns=MASKS, text_length=512)
    filled = [samples[i % len(samples)] for i in range(BATCH)]
    batch = collate(filled, config, data, engine.tokenizer, Buckets((1,), (512,)), sensors=SENSORS)
    features, presence = engine.pyramids(batch)
    if presence is not None:
        features = earthmind.blend_features(features, presence, earthmind.grounding_weights(engine.encode(batch)))
    return features


def measure(model: EarthMind, unseen: list[Sample], objects: list[list[Object]]) -> dict[str, float]:
    """Mean IoU of each kind of mark."""
    config, params = model.engine.config, model.engine.params
    draw = jax.jit(lambda features, marks: earthmind.ground(config, params, features, None, marks).logits)
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, samples in enumerate(batched(unseen)):
        features, things = look(model, samples), objects[number * BATCH : (number + 1) * BATCH]
        for kind in KINDS:
            each = [visual_prompts([thing.mark(kind) for thing in row], config.grounding) for row in things]
            each = [padded(prompts, MASKS) for prompts in each]
            each += each[:1] * (BATCH - len(things))
            logits = np.asarray(draw(features, jax.tree.map(lambda *x: np.concatenate(x), *each)))
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
