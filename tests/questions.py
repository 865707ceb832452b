"""Files of many questions about small images, a model that answers each with a mask, and the run over them."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import support
from PIL import Image

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.infer.batch import run
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import read_requests

NEW = 6
QUESTION = "Where is the river?"


class Pointing(Engine):
    """Every answer has a [SEG], as its second token; images that are encoded are counted."""

    seen = 0

    def generate(self, batch, fused, **options):
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg})

    def see(self, batch):
        self.seen += len(batch.tokens)
        return super().see(batch)


@functools.cache
def model():
    config = support.model()
    em = EarthMind(config, Pointing(config, support.params(config), support.tokenizer()), "tiny", batch_size=1)
    return dataclasses.replace(em, sensors=support.BOTH, buckets=Buckets((1,), (256,)))


def images(root):
    """Pairs, a picture and broken files in the directory ``root``."""
    for seed, name, size in ((3, "a", 32), (4, "b", 32), (5, "large", 56)):
        write_scene(make_scene(seed, size=size, gsd=10.0, nodata=0.0), root, name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(root / "p.png")
    data = bytearray((root / "a_s2.tif").read_bytes())
    data[len(data) // 4 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 4)
    (root / "torn.tif").write_bytes(data)
    (root / "text.tif").write_text("no raster")
    return root


def region():
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:24] = True
    return mask


def pair(name):
    return {"optical": f"{name}_s2.tif", "sar": f"{name}_s1.tif"}


LINES = (
    {"id": "first", "question": QUESTION, **pair("a")},
    {"id": "words alone", "question": "Is there a lake in the image?"},
    {"id": 3, "question": "Show the ships near the harbour, all of them.", **pair("a")},
    {"id": "../odd/id", "question": QUESTION, "optical": "b_s2.tif"},
    {"question": "What is {region}?", **pair("b"), "region": encode_rle(region())},
    {"id": "large", "question": QUESTION, **pair("large")},
    {"id": "picture", "question": QUESTION, "sar": "p.png"},
    {"id": "told", "turns": [
        {"question": "Is there a lake in the image?", "answer": "Yes, [SEG].", "mask": encode_rle(region())},
        {"question": QUESTION, "answer": "It is [SEG].", "mask": encode_rle(region())},
    ], **pair("a")},
    {"id": "again", "question": "Is there a lake in the image?", **pair("a")},
)  # fmt: skip


def written(folder, lines, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answered(folder, out, lines=LINES, **options):
    requests = read_requests(written(folder, lines), model(), skip_broken=options.get("skip_broken", False))
    counts = run(model(), requests, out, **{"batch_size": 2, "max_new": NEW, **options})
    return counts, {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
