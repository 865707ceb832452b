"""How many samples a second the input pipeline makes by itself, without a model.

    python benchmarks/bench_input.py [--seconds 10] [--batch 8] [--threads 1 2 4] [--workers 1 2] [--window 8]

Records of Sentinel pairs of 448 x 448 pixels (GeoTIFF, the SAR image on a grid of its own) at the published sizes
(448-pixel tiles, 1024-pixel grounding images), in the order of the stream and in sorted windows, and the simulated
scenes of ``earthmind demo`` at its sizes; with threads and with worker processes. Prints one JSON line: samples/s, and
milliseconds of processor time that one record takes in each part of the work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs import demo
from earthmind_jax.config import DataConfig, EarthMindConfig
from earthmind_jax.data.batches import AHEAD
from earthmind_jax.data.buckets import bucketed
from earthmind_jax.data.collate import stack, with_tokens
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.layout import measure
from earthmind_jax.data.pipeline import generator, pipeline, training_buckets
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import SENSORS, read_jsonl
from earthmind_jax.data.simulate import make_questions, make_scene, write_scene
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.evaluate.training import setup

SIZE, SCENES = 448, 12


def make_records(directory: Path) -> None:
    for number in range(SCENES):
        rng = generator(0, number)
        scene = make_scene(rng, size=SIZE)
        write_scene(scene, directory, f"scene{number}", questions=make_questions(scene, rng))


def rate(dataset: Any, seconds: float) -> float:
    """Samples a second, after the batches that were prepared in advance while the first was waited for."""
    count, start, first = 0, 0.0, time.perf_counter()
    for number, batch in enumerate(dataset):
        if number == AHEAD:
            start = time.perf_counter()
        elif number > AHEAD:
            count += len(batch.tokens)
            if time.perf_counter() - start > seconds:
                return round(count / (time.perf_counter() - start), 2)
    raise AssertionError(f"the stream ended after {time.perf_counter() - first:.0f} s")


def milliseconds(work: Callable[[int], Any]) -> float:
    start = time.process_time()
    for number in range(SCENES):
        work(number)
    return round((time.process_time() - start) / SCENES * 1e3, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2, 4))
    parser.add_argument("--workers", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--window", type=int, default=8)
    options = parser.parse_args()
    demo_run = setup(demo.get_config())
    with tempfile.TemporaryDirectory() as folder:
        make_records(Path(folder))
        records = read_jsonl(Path(folder) / "records.jsonl")
        words = train_bpe([text for r in records for t in r.turns for text in (t.question, t.answer or "")], 2000)
        cfg = with_tokens(EarthMindConfig(), words)
        data = DataConfig(batch_size=options.batch, text_length=1024)
        found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "batch": options.batch}
        ways = [(f"{n} threads", {"threads": n}) for n in options.threads]
        ways += [(f"{n} workers", {"workers": n}) for n in options.workers]
        for name, how in ways:
            plain = dataclasses.replace(data, **how)
            scenes = dataclasses.replace(demo_run.config.data, **how)
            by_size = dataclasses.replace(bucketed(plain), window=options.window)
            model, source, tokenizer = demo_run.config.model, demo_run.source, demo_run.tokenizer
            found[name] = {
                "records": rate(pipeline(records, cfg, plain, words), options.seconds),
                "records by size": rate(pipeline(records, cfg, by_size, words), options.seconds),
                "scenes": rate(pipeline(source, model, scenes, tokenizer), options.seconds),
            }
        buckets = training_buckets(data)
        samples = [load_record(r, cfg.sensors) for r in records]
        examples = [encode_sample(s, cfg, data, words, buckets) for s in samples]
        found["ms of a record"] = {
            "measure, first time": milliseconds(lambda i: measure(records[i], cfg, data, words, buckets)),
            "measure": milliseconds(lambda i: measure(records[i], cfg, data, words, buckets)),
            "read": milliseconds(lambda i: load_record(records[i], cfg.sensors)),
            "encode": milliseconds(lambda i: encode_sample(samples[i], cfg, data, words, buckets)),
            "stack": milliseconds(lambda i: stack(examples[i : i + 1], cfg, data, buckets, sensors=SENSORS)),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
