"""Samples of every kind in one batch: it trains, and nobody's loss depends on who else is there."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import support
from PIL import Image

from earthmind_jax.config import DataConfig, Group, LossConfig, MeshConfig, SourceConfig
from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.collate import stack
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import read_jsonl
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.models import earthmind
from earthmind_jax.train.by_source import PREFIX
from earthmind_jax.train.state import create
from earthmind_jax.train.step import compile_step, last_date, loss_terms

MODEL = support.model()
MODEL = dataclasses.replace(MODEL, sensors=dataclasses.replace(MODEL.sensors, max_tiles=4))
DATA = DataConfig(
    batch_size=8, text_length=448, tile_buckets=(6,), masks_per_sample=3, turns=4, drop_optical=0.0, drop_sar=0.0
)
GROUPS = (Group(pattern="(lm|text_hidden_fcs)/", learning_rate=1.0), Group(pattern=".*"))  # compiles soonest
SOURCES = tuple(SourceConfig(simulated=1, name=f"source {i}") for i in range(8))  # each sample is from its own
RUN = dataclasses.replace(
    support.run_config(MODEL, GROUPS), data=dataclasses.replace(DATA, sources=SOURCES), loss=LossConfig(points=0)
)
OURS = dataclasses.replace(RUN, loss=LossConfig(points=0, phrase=1.0, align=1.0, mask_contrast=0.5, region_word=1.0))
SHAPE = Buckets(tiles=(6,), text=(448,), dates=(3,))
SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]
OTHER = [[0, 16, 30, 16, 30, 30, 0, 30]]
WHERE = {"question": "Where is the river?", "answer": "It is <p> river </p> [SEG].", "mask": SQUARE}
KINDS = {
    "text": {"turns": [{"question": "Is there a lake?", "answer": "Yes, there is a lake."}]},
    "optical": {"optical": "a.png", "turns": [{"question": "Is there a lake?", "answer": "Yes"}]},
    "region": {
        "optical": "a.png",
        "sar": "b.png",
        "turns": [{"question": "Is {region} a lake?", "answer": "Yes", "region": SQUARE}],
    },
    "dates": {
        "optical": ["a.png", "c.png", "d.png"],
        "sar": "b.png",
        "turns": [WHERE | {"mask": {"dates": [SQUARE, None, OTHER]}}],
    },
    "sar": {"sar": "b.png", "turns": [WHERE]},
    "pair": {"optical": "a.png", "sar": "b.png", "turns": [WHERE]},
    "several": {
        "optical": "a.png",
        "sar": "b.png",
        "turns": [{"question": "Show both", "answer": "Sure, [SEG] and [SEG].", "masks": [SQUARE, OTHER]}],
    },
    "objects": {
        "optical": "wide.png",
        "sar": "wide.png",
        "turns": [WHERE, WHERE | {"mask": [[0, 0, 60, 0, 60, 30, 0, 30]]}],
    },
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(0)
    for name, shape in (*((n, (32, 32, 3)) for n in "abcd"), ("wide", (32, 64, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / f"{name}.png")
    lines = [json.dumps({"id": name, **values}) for name, values in KINDS.items()]
    (folder / "records.jsonl").write_text("\n".join(lines))
    return read_jsonl(folder / "records.jsonl")


@pytest.fixture(scope="module")
def examples(records):
    return [encode_sample(load_record(r, MODEL.sensors), MODEL, DATA, support.tokenizer(), SHAPE) for r in records]


@jax.jit
def losses(params, batch):
    return loss_terms(RUN, params, batch, jax.random.key(0))[1]


def terms(batch):
    """The losses of a batch, and what each is a mean over: tokens, masks; then the same by source (of the samples)."""
    batch = batch.replace(source=np.arange(len(batch.tokens), dtype=np.int32))
    metrics, masks = losses(support.params(MODEL), batch), batch.mask_valid.sum()
    counts = {"text": batch.loss_mask.sum(), "bce": masks, "dice": masks + 1e-4}  # the published divisor of dice
    whole = {name: (float(metrics[name]), count) for name, count in counts.items()}
    return whole, {name: np.asarray(metrics[f"{PREFIX}{name}"]) for name in whole}


def test_losses_are_those_of_each_sample_alone(examples):
    names = ("optical", "sar")
    batch = stack(examples, MODEL, DATA, SHAPE, sensors=names)
    assert batch.tokens.shape == (8, 448)
    assert batch.optical.shape[1] == 6
    assert batch.ground_sar.shape[1] == 3
    assert batch.mask_valid.sum((1, 2)).tolist() == [0, 0, 0, 2, 1, 1, 2, 2]
    assert batch.mask_valid[3, :, 0].tolist() == [True, False, True]
    together, by_source = terms(batch)
    assert together["bce"][1] == 8
    alone = [terms(stack([example], MODEL, DATA, SHAPE, sensors=names))[0] for example in examples]
    for name, (value, count) in together.items():
        parts = [part[name] for part in alone]
        np.testing.assert_allclose(sum(v * n for v, n in parts) / count, value, rtol=2e-5, err_msg=name)
        sums, counts = by_source[name].T
        np.testing.assert_array_equal(counts, [round(float(n)) for _, n in parts], err_msg=name)
        np.testing.assert_allclose(
            sums, [v * n for (v, _), n in zip(parts, counts, strict=True)], rtol=2e-5, err_msg=name
        )
    # Alone in arrays of its own size, too: neither text, tiles nor dates of others matter.
    for number in (0, 5):
        small = stack([examples[number]], MODEL, DATA, Buckets(tiles=(1,), text=(160,), dates=(1,)), sensors=names)
        for name, (value, _) in terms(small)[0].items():
            np.testing.assert_allclose(value, alone[number][name][0], rtol=2e-5, atol=1e-6, err_msg=name)


def test_the_losses_for_training_from_scratch_know_stacks(examples):
    batch = stack(examples[3:5], MODEL, DATA, SHAPE)
    _, metrics = jax.jit(lambda p, b: loss_terms(OURS, p, b, jax.random.key(0)))(support.params(MODEL), batch)
    assert {"contrast", "phrase_bce", "phrase_dice", "phrase_contrast", "align", "region_word"} <= set(metrics)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    masks, known = last_date(batch)
    np.testing.assert_array_equal(masks[0, 0], batch.masks[0, 2, 0])
    np.testing.assert_array_equal(masks[1, 0], batch.masks[1, 0, 0])
    assert known.tolist() == [[True, False, False]] * 2


def test_text_alone_gets_no_visual_weight(examples):
    batch = stack(examples, MODEL, DATA, SHAPE, sensors=("optical", "sar"))
    out = jax.jit(lambda params, batch: earthmind.forward(MODEL, params, batch).fused)(support.params(MODEL), batch)
    weights = np.asarray(out.weights)
    assert not weights[0].any()
    assert not np.asarray(out.valid)[0].any()
    assert (batch.visual_index[0] == -1).all()
    assert all(weights[row].any() for row in range(1, 8))
    assert not weights[1, ..., 1].any()
    assert not weights[4, ..., 0].any()


def test_a_step_of_them_all(records):
    stream = training_pipeline(RUN, records, support.tokenizer())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = next(stream)
    assert batch.ground_optical.shape[1] == 3
    with jax.set_mesh(mesh):
        state, shardings = create(RUN, mesh, support.params(MODEL))
        before = np.asarray(state.trainable["lm/norm/scale"])
        state, metrics = compile_step(RUN, mesh, shardings)(state, put_batch(batch, mesh))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert not np.array_equal(before, state.trainable["lm/norm/scale"])
    assert float(metrics["padding"]) == pytest.approx(1 - batch.lengths.sum() / batch.tokens.size, abs=1e-6)
