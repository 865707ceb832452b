"""One optimiser step: it learns, it leaves the frozen alone, and its precision policy holds."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import support

from earthmind_jax.config import Group, LoraConfig, LossConfig, MeshConfig, Precision
from earthmind_jax.data.records import Turn
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.distributed.sharding import put_batch
from earthmind_jax.models import api, earthmind
from earthmind_jax.train.state import create
from earthmind_jax.train.step import attention_loss, compile_step, gradients

FROZEN = (Group(pattern="vision/"), *support.ALL)


def steps(config, count, batch=None):
    """(states' host copies before and after, metrics of each step) of training on one batch, on one device."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    batch = put_batch(support.scenes(config.model) if batch is None else batch, mesh)
    with jax.set_mesh(mesh):
        state, shardings = create(config, mesh, support.params(config.model))
        before = jax.device_get(state)
        step, metrics = compile_step(config, mesh, shardings), []
        for _ in range(count):
            state, values = step(state, batch)
            metrics.append({name: float(x) for name, x in values.items()})
    return before, jax.device_get(state), metrics


@functools.cache
def text_run(compute="float32"):
    model = dataclasses.replace(support.model(grounding=None), precision=Precision(compute=compute))
    return steps(support.run_config(model, FROZEN), 6)


def test_every_loss_falls_on_one_batch():
    config = support.run_config(support.model(), (Group(pattern="grounding/prompt/"), *support.ALL), steps=30)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=5e-3))
    batch = support.scenes(config.model, count=4)
    before, after, metrics = steps(config, 30, batch)
    assert set(metrics[0]) == {"text", "bce", "dice", "loss", "grad_norm", "padding"}
    first = metrics[0]
    np.testing.assert_allclose(first["loss"], first["text"] + 2 * first["bce"] + 0.5 * first["dice"], rtol=1e-5)
    assert metrics[-1]["loss"] < 0.5 * first["loss"]
    assert metrics[-1]["text"] < 0.5 * first["text"]
    assert metrics[-1]["bce"] < first["bce"]
    assert int(after.step) == 30
    assert set(before.frozen) == {path for path in after.params if path.startswith("grounding/prompt/")}
    for path, x in before.frozen.items():
        np.testing.assert_array_equal(x, after.frozen[path], err_msg=path)


def test_what_training_from_scratch_adds():
    config = support.run_config(support.model(), (Group(pattern="grounding/prompt/"), *support.ALL), steps=12)
    loss = LossConfig(points=0, phrase=1.0, align=2.0, mask_contrast=0.5, region_word=0.25)
    optim = dataclasses.replace(config.optim, method="muon", learning_rate=5e-3)
    config = dataclasses.replace(config, loss=loss, optim=optim)
    halves = np.zeros((2, 32, 32), bool)
    halves[0, :, :16], halves[1, :, 16:] = True, True
    turn = Turn("What is where?", "<p> water </p> [SEG] and <p> fields </p> [SEG].", halves)
    samples = [dataclasses.replace(support.sample(i), turns=(turn,)) for i in range(4)]
    before, after, metrics = steps(config, 12, support.batch(samples, config.model, sensors=support.BOTH))
    first = metrics[0]
    drawn = [
        sum(w * first[f"{p}{n}"] for n, w in (("bce", 2), ("dice", 0.5), ("contrast", 0.5))) for p in ("", "phrase_")
    ]
    total = first["text"] + sum(drawn) + 2 * first["align"] + 0.25 * first["region_word"]
    np.testing.assert_allclose(first["loss"], total, rtol=1e-5)
    for name in ("text", "align", "region_word"):
        assert metrics[-1][name] < first[name], name
    still = {path for path, x in before.trainable.items() if np.array_equal(x, after.trainable[path])}
    assert all(path.startswith("grounding/decoder/") for path in still)  # heads without a loss of their own


def test_only_trainables_move():
    before, after, _ = text_run()
    assert before.frozen
    for path, x in before.frozen.items():
        np.testing.assert_array_equal(x, after.frozen[path], err_msg=path)
    still = [path for path, x in before.trainable.items() if np.array_equal(x, after.trainable[path])]
    assert still == []


def test_new_tokens_learn_alone():
    """Of a vocabulary only the last rows move, and nothing but they has a master, a gradient or moments."""
    groups = (Group(pattern="lm/(embed|head)/", learning_rate=1.0, rows=5), Group(pattern=".*"))
    before, after, metrics = steps(support.run_config(groups=groups), 3)
    width = support.model().lm.width
    shapes = {"lm/embed/embedding": (5, width), "lm/head/kernel": (width, 5)}
    assert {path: x.shape for path, x in after.trainable.items()} == shapes
    moments = [x.shape for x in jax.tree.leaves(after.opt) if x.ndim]
    assert sorted(moments) == sorted([*shapes.values()] * 2)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    moved = np.any(after.params["lm/embed/embedding"] != before.params["lm/embed/embedding"], axis=1)
    assert set(np.flatnonzero(moved)) <= set(range(len(moved) - 5, len(moved)))
    moved = np.any(after.params["lm/head/kernel"] != before.params["lm/head/kernel"], axis=0)
    np.testing.assert_array_equal(moved, np.arange(len(moved)) >= len(moved) - 5)


def test_gradients_of_parts_are_averaged():
    """Two parts of four samples are the mean of two steps' gradients; each part's loss is a mean of its own."""
    config = support.run_config()
    batch = support.scenes(config.model)
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, _ = create(config, mesh, support.params(config.model))
        run = jax.jit(gradients, static_argnums=0)
        each = [run(config, state, half) for half in halves]
        accumulated = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=2))
        both = run(accumulated, state, batch)
    wanted = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both, wanted)


def test_attention_of_seg_is_pulled_onto_its_mask():
    """In samples of one sensor; pairs have the pull between their sensors' tokens instead."""
    loss = LossConfig(points=64, attention=0.1, sensor_mse=1.0)
    # Neither of the two needs the mask decoder's gradient, which takes longest to compile.
    groups = (Group(pattern="grounding/"), Group(pattern="text_hidden_fcs/"), *support.ALL)
    config = support.run_config(support.model(), groups, steps=12)
    optim = dataclasses.replace(config.optim, learning_rate=5e-3)
    config = dataclasses.replace(config, loss=loss, optim=optim)
    kinds = (("sar",), ("optical",), support.BOTH)
    batch = support.batch([support.sample(i, kinds[i]) for i in range(3)], config.model, sensors=support.BOTH)
    _, _, metrics = steps(config, 12, batch)
    assert metrics[-1]["attention"] < 0.9 * metrics[0]["attention"]
    assert metrics[0]["sensor_mse"] > 0
    weights = {"text": 1, "bce": 2, "dice": 0.5, "attention": 0.1, "sensor_mse": 1}
    np.testing.assert_allclose(metrics[0]["loss"], sum(w * metrics[0][n] for n, w in weights.items()), rtol=1e-5)
    looks = jnp.full((3, batch.seg_index.shape[1], batch.tokens.shape[1]), 0.01)
    pairs = jax.tree.map(lambda x: x[2:], batch)
    assert attention_loss(config, looks, batch) > 0
    assert attention_loss(config, looks[2:], pairs) == 0


def test_bfloat16_trains_and_stays_close():
    before, after, metrics = text_run("bfloat16")
    _, _, exact = text_run()
    assert {x.dtype for x in before.frozen.values()} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in after.trainable.values()} == {jnp.dtype("float32")}
    for path, x in before.frozen.items():
        np.testing.assert_array_equal(x, after.frozen[path], err_msg=path)
    losses, wanted = ([m["loss"] for m in run] for run in (metrics, exact))
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, wanted, rtol=0.03)


def test_adapters_alone_train_and_merge():
    model = support.model(grounding=None)
    model = dataclasses.replace(model, lm=dataclasses.replace(model.lm, lora=LoraConfig(rank=2, alpha=4.0)))
    config = support.run_config(model, (Group(pattern="lora/", learning_rate=1.0), Group(pattern=".*")))
    before, after, metrics = steps(config, 3)
    assert all(path.startswith("lora/lm/blocks/") for path in before.trainable)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    for path, x in before.frozen.items():
        np.testing.assert_array_equal(x, after.frozen[path], err_msg=path)
    plain = dataclasses.replace(model, lm=dataclasses.replace(model.lm, lora=None))
    merged = api.merge_lora(after.params, model.lm.lora)
    assert set(merged) == set(api.shapes(plain))
    batch = support.scenes(model, count=2)
    run = jax.jit(lambda config, params: earthmind.forward(config, params, batch).hidden, static_argnums=0)
    used = np.arange(batch.tokens.shape[1])[None] < batch.lengths[:, None]
    np.testing.assert_allclose(run(plain, merged)[used], run(model, after.params)[used], atol=1e-4)
