"""What a mask decoder learns to make of clicks and boxes, on the image features of a trained checkpoint.

    python benchmarks/pointing.py demo/checkpoint                     # 240 scenes, measured on 32 unseen ones
    python benchmarks/pointing.py demo/checkpoint --overfit --steps 800   # 8 scenes, measured on the same 8

The features of simulated scenes are computed once and stay as they are; a mask decoder with new weights learns on them
with the loss and the prompts of ``loss.mark`` (a click, a click and one beside the object, or a noisy box). Each line
is one JSON object: the mean IoU of areas that a random pixel of theirs points at, three of them, and their exact box;
first that of the trivial answers: the box itself, and the best disc round the pixel.

``--start placed`` (the default) lets queries and keys of the attention between prompts and image begin as the same map,
larger by ``GAIN``, with the image embedding smaller by ``SHARE``, so that a prompt first looks at what lies where it
points; ``--start plain`` begins with independent maps, as a model that trains from scratch does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import demo
from earthmind_jax.config import DataConfig, EarthMindConfig, Group, LossConfig, RunConfig
from earthmind_jax.data.collate import SENSORS, Buckets, collate
from earthmind_jax.data.pipeline import simulated
from earthmind_jax.data.pointed import padded, visual_prompts
from earthmind_jax.data.records import Sample
from earthmind_jax.evaluate.simulated import SEGMENTATION, UNSEEN
from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.answer import upsample
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.models import earthmind
from earthmind_jax.train.marks import sample_marks
from earthmind_jax.train.state import make_optimiser
from earthmind_jax.train.step import mask_losses
from earthmind_jax.types import Batch, ImageFeatures, Params, VisualPrompts

SCENES, HELD_OUT, FEW = 240, 32, 8
BATCH, MASKS = 8, 6
GAIN, SHARE = 1.5, 0.15
KINDS = ("point", "3 points", "box")
RADII = (8, 12, 16, 20, 24, 32)
DECODER, LABELS = "grounding/decoder/", "grounding/prompt/points"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint directory with a mask decoder")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", choices=("placed", "plain"), default="placed")
    parser.add_argument("--overfit", action="store_true", help=f"learn {FEW} scenes, and measure on them")
    parser.add_argument("--every", type=int, default=200, help="steps between two lines")
    options = parser.parse_args()
    model = EarthMind.load(options.checkpoint)
    seen = scenes(FEW if options.overfit else SCENES, 11)
    unseen = seen if options.overfit else scenes(HELD_OUT, UNSEEN)
    share = SHARE if options.start == "placed" else 1.0
    held = [prepared(model, unseen[i : i + BATCH], share) for i in range(0, len(unseen), BATCH)]
    tell(kind="trivial", **trivial(unseen))
    shown = [prepared(model, seen[i : i + BATCH], share) for i in range(0, len(seen), BATCH)]
    config = model.engine.config
    draw = jax.jit(lambda params, features, marks: earthmind.ground(config, params, features, None, marks).logits)
    for step, params, values in train(model, shown, options.steps, options.start):
        if step % options.every == 0 or step == options.steps:
            found = measure(config, params, unseen, held, draw)
            tell(kind=options.start, step=step, loss=round(float(np.mean(values)), 3), **found)


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def scenes(count: int, seed: int) -> list[Sample]:
    """Scenes with the areas that can be asked for, without questions about what is not there."""
    source = simulated(count, seed=seed, tasks=(SEGMENTATION,) * MASKS, lettered=False)
    made = [source[i] for i in range(count)]
    kept = [dataclasses.replace(s, turns=tuple(t for t in s.turns if t.masks)) for s in made]
    return [sample for sample in kept if sample.turns]


def prepared(model: EarthMind, samples: list[Sample], share: float) -> tuple[ImageFeatures, Batch]:
    """Image features of samples, repeated to a whole batch, and the batch; the embedding times ``share``."""
    engine, config = model.engine, model.engine.config
    filled = [samples[i % len(samples)] for i in range(BATCH)]
    data = DataConfig(masks_per_sample=MASKS, turns=MASKS, text_length=512)
    tables = Buckets(tiles=(1,), text=(512,))
    batch = collate(filled, config, data, engine.tokenizer, tables, sensors=SENSORS)
    features, presence = engine.pyramids(batch)
    if presence is not None:
        weights = earthmind.grounding_weights(engine.encode(batch))
        features = earthmind.blend_features(features, presence, weights)
    return features.replace(embed=features.embed * share), batch


def started(config: EarthMindConfig, params: Params, start: str) -> Params:
    """The parameters with a new mask decoder (:data:`GAIN`)."""
    names = [path for path in params if path.startswith(DECODER) and "conv_s" not in path]
    new = dict(jax.jit(lambda: earthmind.init(config, jax.random.key(3), only=names))())
    for path in names if start == "placed" else ():
        if "/transformer/" in path and path.endswith("/k/kernel") and "self_attn" not in path:
            query = path.replace("/k/", "/q/")
            new[query] = new[query] * GAIN
            new[path] = jnp.array(new[query])
    return {path: jnp.asarray(value) for path, value in params.items()} | new


def train(
    model: EarthMind, shown: list[tuple[ImageFeatures, Batch]], steps: int, start: str
) -> Iterator[tuple[int, Params, list[jax.Array]]]:
    """(step, parameters, losses of the last 30 steps) after each step of the mask decoder."""
    config = model.engine.config
    params = started(config, model.engine.params, start)
    groups = (Group(pattern=f"{DECODER}|{LABELS}", learning_rate=1.0, weight_decay=0.01), Group(pattern=".*"))
    recipe = demo.stages()[0]
    optim = dataclasses.replace(recipe.optim, learning_rate=2e-3, warmup=0.1, final=0.1, groups=groups)
    loss = LossConfig(points=0, mask_contrast=1.0)
    run = RunConfig(name="pointing", model=config, data=recipe.data, optim=optim, loss=loss, steps=steps)
    optimiser = make_optimiser(run)
    learned = {path: value for path, value in params.items() if path.startswith(DECODER) or path == LABELS}
    rest = {path: value for path, value in params.items() if path.startswith("grounding/") and path not in learned}

    @jax.jit
    def step(learned: Params, state: Any, features: ImageFeatures, batch: Batch, key: jax.Array) -> Any:
        def total(learned: Params) -> jax.Array:
            marks = sample_marks(key, batch, config)
            drawn = earthmind.ground(config, rest | learned, features, None, marks)
            terms, _ = mask_losses(run, key, drawn.logits, batch.masks, batch.mask_valid)
            return loss.mask_bce * terms["bce"] + loss.mask_dice * terms["dice"] + terms["contrast"]

        value, gradient = jax.value_and_grad(total)(learned)
        updates, state = optimiser.update(gradient, state, learned)
        return optax.apply_updates(learned, updates), state, value

    state, rng, values = optimiser.init(learned), np.random.default_rng(0), []
    for i in range(1, steps + 1):
        features, batch = mixed(shown, rng)
        learned, state, value = step(learned, state, features, batch, jax.random.key(i))
        values.append(value)
        yield i, rest | learned, values[-30:]


def mixed(shown: list[tuple[ImageFeatures, Batch]], rng: np.random.Generator) -> tuple[ImageFeatures, Batch]:
    """A batch of samples drawn from all batches, as far as the mask decoder needs it."""
    picks = [(shown[i], j) for i, j in zip(rng.integers(len(shown), size=BATCH), rng.permutation(BATCH), strict=True)]
    features = jax.tree.map(lambda *x: jnp.stack(x), *[jax.tree.map(lambda x, j=j: x[j], f) for (f, _), j in picks])
    masks, valid = (np.stack([getattr(b, name)[j] for (_, b), j in picks]) for name in ("masks", "mask_valid"))
    none = np.zeros((BATCH, 1))
    return features, Batch(none, none, none, none, none, masks=masks, mask_valid=valid)


def truths(sample: Sample) -> list[np.ndarray]:
    return [np.asarray(mask) > 0 for turn in sample.turns for mask in turn.masks][:MASKS]


def pointed(mask: np.ndarray, kind: str, rng: np.random.Generator) -> Mark:
    """A mark of one kind at a mask, in its pixels."""
    rows, columns = np.nonzero(mask)
    none = Mark("area", mask.shape, np.zeros((0, 2)), np.zeros(0, np.int32))
    if kind == "box":
        return dataclasses.replace(none, box=(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    pick = rng.integers(len(rows), size=1 if kind == "point" else 3)
    points = np.stack([columns[pick], rows[pick]], axis=1) + 0.5
    return dataclasses.replace(none, points=points, labels=np.ones(len(pick), np.int32))


def measure(
    config: EarthMindConfig, params: Params, samples: list[Sample], held: list[tuple[ImageFeatures, Batch]], draw: Any
) -> dict[str, float]:
    """Mean IoU of each kind of mark, on the road of ``earthmind segment --point`` from pixels to the mask."""
    found = {}
    for kind in KINDS:
        scores, rng = [], np.random.default_rng(0)
        for i, (features, _) in enumerate(held):
            group = samples[i * BATCH : (i + 1) * BATCH]
            marks = [[pointed(t, kind, rng) for t in truths(s)] for s in group]
            prompts = [padded(visual_prompts(m, config.grounding), MASKS) for m in marks]
            prompts += prompts[:1] * (BATCH - len(group))
            logits = np.asarray(draw(params, features, joined(prompts)))
            scores += [
                iou(upsample(logits[row, slot], truth.shape) > 0.5, truth)
                for row, sample in enumerate(group)
                for slot, truth in enumerate(truths(sample))
            ]
        found[kind] = round(float(np.mean(scores)), 3)
    return found


def joined(prompts: list[VisualPrompts]) -> VisualPrompts:
    """Prompts of single images as those of a batch; points are padded to four."""

    def join(name: str, value: float) -> np.ndarray:
        arrays = [getattr(p, name) for p in prompts]
        more = [[(0, 0), (0, 0), (0, 4 - x.shape[2]), *[(0, 0)] * (x.ndim - 3)] for x in arrays]
        return np.concatenate([np.pad(x, m, constant_values=value) for x, m in zip(arrays, more, strict=True)])

    return VisualPrompts(join("points", 0), join("labels", -1), join("valid", False))


def trivial(samples: list[Sample]) -> dict[str, float]:
    """Mean IoU of the box itself, and of the disc round a random pixel whose radius is the best for all."""
    boxes, discs, rng = [], [], np.random.default_rng(0)
    for truth in (t for s in samples for t in truths(s)):
        x0, y0, x1, y1 = (int(v) for v in pointed(truth, "box", rng).bounds)
        box = np.zeros(truth.shape, bool)
        box[y0:y1, x0:x1] = True
        boxes.append(iou(box, truth))
        ((x, y),) = pointed(truth, "point", rng).points
        rows, columns = np.indices(truth.shape) + 0.5
        discs.append([iou((rows - y) ** 2 + (columns - x) ** 2 < r * r, truth) for r in RADII])
    return {"box": round(float(np.mean(boxes)), 3), "point": round(float(np.mean(discs, axis=0).max()), 3)}


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / max((found | truth).sum(), 1))


if __name__ == "__main__":
    main()
