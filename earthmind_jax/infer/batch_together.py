"""Questions of a batch that go through the model together, each image read and encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.collate import stack
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.layout import measure
from earthmind_jax.data.records import SENSORS, Sample
from earthmind_jax.infer.answer import replies
from earthmind_jax.infer.batch_scene import Scene, beside, joined, pyramids_of, see
from earthmind_jax.infer.engine import bucket
from earthmind_jax.infer.marks import gather
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import QUESTIONS
from earthmind_jax.infer.result import Answer


def together(
    model: EarthMind, items: Sequence[tuple[Scene, Sample]], buckets: Buckets, batch_size: int, max_new: int
) -> tuple[list[Answer], int]:
    """The answers to the last question of each sample, all of one kind of scene, and how many scenes were encoded now.

    Args:
      batch_size: rows of a full batch; one with fewer questions has a power of two, or as many as a full one.
    """
    engine = model.engine
    rows = bucket(len(items), tuple(2**i for i in range(20)))
    filled = [items[i % len(items)] for i in range(min(rows, max(batch_size, len(items))))]
    words = (model.config, QUESTIONS, engine.tokenizer, buckets)
    sensors = model.sensors or SENSORS
    examples, encoded = [], 0
    for scene, sample in filled:
        if scene.images is None:
            examples.append(encode_sample(sample, *words, sensors=sensors))
            continue
        if scene.batch is None:
            see(model, scene, buckets)
            encoded += 1
        prompt = measure(sample, *words, sensors=sensors).prompt
        examples.append(replace(scene.example, prompt=prompt))
    batch = stack(examples, model.config, QUESTIONS, buckets, sensors=())
    scenes = [scene for scene, _ in filled]
    seen = None
    if scenes[0].images is not None:
        names = ("optical_valid", "sar_valid", "ground_optical_valid", "ground_sar_valid")
        images = {name: joined([getattr(scene.batch, name) for scene in scenes]) for name in names}
        batch = batch.replace(**images)
        seen = tuple(joined([scene.seen[i] for scene in scenes]) for i in range(2))
    fused = engine.encode(batch, seen)
    made = engine.generate(batch, fused, max_new=max_new)
    pyramids = None
    if made.seg_states.shape[1] and model.config.grounding is not None and fused is not None:
        pyramids = beside([pyramids_of(model, scene) for scene in scenes])
    answers = []
    found = replies(engine, batch, fused, made, [1] * len(items), pyramids=pyramids)
    for (scene, sample), reply in zip(items, found, strict=True):
        turn = sample.turns[-1]
        if scene.images is None:
            answers.append(Answer(turn.question, reply.text, model=model.name))
        else:
            before = sum(len(earlier.regions) for earlier in sample.turns[:-1])
            marks, _ = gather(turn.regions or None, None, scene.images, before)
            answers.append(replace(model.answer(scene.images, turn, reply, max_new), marks=marks))
    return answers, encoded
