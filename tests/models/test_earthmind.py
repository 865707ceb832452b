"""The composition: missing sensors, neighbours in the batch, grounding images, text alone, marked regions."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support

from earthmind_jax.data.collate import Buckets, collate
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.models import earthmind
from earthmind_jax.ops.fusion import FUSION

MODES = tuple(FUSION)
N_MODES = tuple(name for name, mode in FUSION.items() if mode.sensors_out == 1)
CONFIG = support.model()
SENSOR_FIELDS = ("", "_valid")


@functools.cache
def forward():
    return jax.jit(earthmind.forward, static_argnums=0)


@functools.cache
def fuse():
    """config, params, batch, encoded sensors -> Fused; small enough to compile for every mode."""

    def run(config, params, batch, optical, sar):
        text = earthmind.embed(config, params, batch.tokens)
        masks = (batch.optical_valid, batch.sar_valid)
        return earthmind.fuse(config, params, optical, sar, *masks, text, batch.question)

    return jax.jit(run, static_argnums=0)


def tokens(seed, count=3):
    shape = (count, 1, CONFIG.vision.tokens, CONFIG.lm.width)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.cache
def pairs():
    samples = [support.sample(i) for i in range(3)]
    holes = np.ones((32, 32), bool)
    holes[:16, 8:] = False  # nodata in one of them
    samples[1] = dataclasses.replace(samples[1], sar_valid=holes)
    return support.batch(samples, sensors=support.BOTH, text=96)


def without(batch, name):
    """The batch with one sensor's arrays there but marked invalid, and with no such arrays."""
    fields = (name, f"{name}_valid", f"ground_{name}", f"ground_{name}_valid")
    masked = batch.replace(**{f: jnp.zeros_like(getattr(batch, f)) for f in fields})
    return masked, batch.replace(**dict.fromkeys(fields))


def close(first, second, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), first, second)


@pytest.mark.parametrize("name", support.BOTH)
@pytest.mark.parametrize("mode", MODES)
def test_a_missing_sensor_is_a_masked_one(mode, name):
    config = support.model(mode)
    params = support.params(config)
    masked, absent = without(pairs(), name)
    given = {"optical": tokens(0), "sar": tokens(1)}
    full = fuse()(config, params, masked, given["optical"], given["sar"])
    given[name] = None
    none = fuse()(config, params, absent, given["optical"], given["sar"])
    close(full, none)
    if mode in N_MODES:
        lone = 1 - support.BOTH.index(name)
        np.testing.assert_array_equal(none.weights[..., 1 - lone], 0)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "release_2025_10"])
def test_fusion_does_not_depend_on_neighbours(mode):
    config = support.model(mode)
    params = support.params(config)
    whole = fuse()(config, params, pairs(), tokens(0), tokens(1))
    for i in range(3):
        # Shapes stay those of the batch, so that each mode is compiled once.
        one = jax.tree.map(lambda x, i=i: jnp.stack([jnp.asarray(x)[i]] * 3), (pairs(), tokens(0), tokens(1)))
        close(jax.tree.map(lambda x: x[0], fuse()(config, params, *one)), jax.tree.map(lambda x, i=i: x[i], whole))


def test_the_october_release_depends_on_neighbours():
    config = support.model("release_2025_10")
    first = fuse()(config, support.params(config), pairs(), tokens(0), tokens(1))
    changed = fuse()(
        config, support.params(config), pairs(), tokens(0).at[2].multiply(3.0).at[2, 0, 0].set(7.0), tokens(1)
    )
    assert np.abs(first.weights[0] - changed.weights[0]).max() > 1e-6


def test_the_whole_pass_with_a_missing_sensor():
    params = support.params(CONFIG)
    masked, absent = without(pairs(), "optical")
    full, none = forward()(CONFIG, params, masked), forward()(CONFIG, params, absent)
    close(full.hidden, none.hidden, 2e-4)
    close(full.masks.logits, none.masks.logits, 2e-4)
    assert full.sensor_tokens is not None
    assert none.sensor_tokens is None


def test_a_sample_does_not_depend_on_its_neighbours():
    params = support.params(CONFIG)
    whole = forward()(CONFIG, params, pairs())
    for i in range(3):
        one = forward()(CONFIG, params, jax.tree.map(lambda x, i=i: jnp.stack([jnp.asarray(x)[i]] * 3), pairs()))
        used = int(pairs().lengths[i])
        close(one.hidden[0, :used], whole.hidden[i, :used], 2e-4)
        close(one.masks.logits[0], whole.masks.logits[i], 2e-4)


@functools.cache
def features():
    return jax.jit(earthmind.image_features, static_argnums=0)


def images():
    return pairs().ground_optical, pairs().ground_sar


def grounding(source):
    return dataclasses.replace(CONFIG, fusion=dataclasses.replace(CONFIG.fusion, grounding=source))


@functools.cache
def identity_maps():
    """Parameters whose pyramid maps are the identity, as at the start."""
    maps = {
        path: jnp.broadcast_to(jnp.eye(x.shape[-1]), x.shape)
        for path, x in support.params(CONFIG).items()
        if path.startswith("pyramid/")
    }
    assert maps
    return {**support.params(CONFIG), **maps}


def test_grounding_by_one_sensor_ignores_the_other():
    optical, sar = images()
    params = support.params(CONFIG)
    for source, own, other in (("optical", optical, sar), ("sar", sar, optical)):
        pair = {"optical": own, "sar": own[::-1]} if source == "optical" else {"sar": own, "optical": own[::-1]}
        first = features()(grounding(source), params, pair["optical"], pair["sar"])
        changed = {source: own, ({"optical", "sar"} - {source}).pop(): other}
        second = features()(grounding(source), params, changed["optical"], changed["sar"])
        close(first, second)


def test_grounding_falls_back_to_the_sensor_that_is_there():
    optical, sar = images()
    params, there, absent = support.params(CONFIG), jnp.array([True, False, True]), jnp.ones(3, bool)
    got = features()(grounding("optical"), params, optical, sar, there, absent)
    mixed = jnp.where(there[:, None, None, None], optical, sar)
    close(got, features()(grounding("optical"), params, mixed, sar, absent, absent))
    got = features()(grounding("sar"), params, optical, sar, absent, there)
    close(got, features()(grounding("sar"), params, optical, jnp.where(there[:, None, None, None], sar, optical)))


def test_fused_grounding_with_all_weight_on_one_sensor_is_that_sensor():
    optical, sar = images()
    params, count = identity_maps(), CONFIG.vision.tokens
    for i, name in enumerate(support.BOTH):
        weights = jnp.zeros((3, count, 2)).at[..., i].set(1.0)
        got = features()(CONFIG, params, optical, sar, None, None, weights)
        close(got, features()(grounding(name), params, optical, sar), 1e-4)


def test_fused_grounding_blends():
    optical, sar = images()
    params, even = identity_maps(), jnp.full((3, CONFIG.vision.tokens, 2), 0.5)
    got = features()(CONFIG, params, optical, sar, None, None, even)
    first, second = (features()(grounding(name), params, optical, sar) for name in support.BOTH)
    close(got, jax.tree.map(lambda a, b: (a + b) / 2, first, second), 1e-4)


def test_fused_grounding_never_sees_a_missing_sensor():
    optical, sar = images()
    params, even = support.params(CONFIG), jnp.full((3, CONFIG.vision.tokens, 2), 0.5)
    both, none = jnp.ones(3, bool), jnp.zeros(3, bool)
    got = features()(CONFIG, params, optical, sar, both, none, even)
    close(got, features()(CONFIG, params, optical, optical * 0 + 9.0, both, none, even))
    close(got, features()(CONFIG, params, optical, None), 1e-4)


def test_text_alone():
    samples = [support.sample(i, (), answer="Yes, there is a lake.") for i in range(3)]
    batch = support.batch(samples, support.model(grounding=None), text=96)
    assert batch.optical is None
    assert batch.sar is None
    out = forward()(support.model(grounding=None), support.params(support.model(grounding=None)), batch)
    assert out.fused is None
    assert out.masks is None
    assert np.isfinite(out.hidden).all()


@pytest.mark.parametrize("mode", ["hca_plus", "concat"])
def test_region_rows_are_repeats_of_image_rows(mode):
    config = support.model(mode, None)
    region = np.zeros((32, 32), bool)
    region[8:16, 16:32] = True  # cells (1, 2) and (1, 3) of the 4 x 4 token grid
    base = support.sample(0)
    asked = Sample("r", (Turn("Describe {region}.", "A lake", region=region),), base.optical, base.sar)
    batch = collate([asked], config, support.run_config().data, support.tokenizer(), Buckets((1,), (192,)))
    index = np.asarray(batch.visual_index[0])
    rows = index[index >= 0]
    image = config.fusion.sensors_out * config.vision.tokens
    assert rows[:image].tolist() == list(range(image))
    offsets = range(0, image, config.vision.tokens)
    assert rows[image:].tolist() == [offset + cell for offset in offsets for cell in (6, 7)]
    visual = jnp.asarray(np.random.default_rng(0).standard_normal((1, image, config.lm.width), np.float32))
    embeds = earthmind.place(jnp.zeros((1, 192, config.lm.width)), visual, batch.visual_index)
    np.testing.assert_array_equal(embeds[0, index >= 0], visual[0, rows])
    assert not embeds[0, index < 0].any()
