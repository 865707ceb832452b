"""What each fusion mode must do whatever its inputs: weights, symmetry, validity, neighbours."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fusion_cases import HCA, N_MODES, run, same, scene, start, trained

from earthmind_jax.config import FUSION_MODES, FusionConfig
from earthmind_jax.errors import UserError
from earthmind_jax.ops import fusion

MODES = list(fusion.FUSION)
INDEPENDENT = [mode for mode in MODES if mode != "release_2025_10"]


def test_every_configured_mode_exists_and_defaults_agree():
    assert tuple(fusion.FUSION) == FUSION_MODES
    config, options = dataclasses.asdict(FusionConfig()), dataclasses.asdict(fusion.FusionOptions())
    assert {k: options[k] for k in options if k != "gate"} == {k: config[k] for k in options if k != "gate"}


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_weights_sum_to_one(mode):
    x = scene()
    fused = run(mode, x)
    n = 12 * fusion.FUSION[mode].sensors_out
    chex.assert_shape([fused.tokens, fused.valid, fused.weights], [(2, 3, n, 16), (2, 3, n), (2, 3, 12, 2)])
    assert fused.weights.dtype == jnp.float32
    assert fused.valid.dtype == bool
    assert fused.valid.all()
    same(fused.weights.sum(-1), jnp.ones((2, 3, 12)))
    assert (fused.weights >= 0).all()


@pytest.mark.parametrize("mode", ["hca", "hca_printed", "release_2025_10", "average", "cosine"])
def test_swapping_the_sensors_swaps_the_weights(mode):
    x = scene()
    swapped = {**x, "optical": x["sar"], "sar": x["optical"]}
    a, b = run(mode, x), run(mode, swapped)
    same(a.weights, b.weights[..., ::-1])
    same(a.tokens, b.tokens)


@pytest.mark.parametrize("mode", [m for m in N_MODES if m not in ("hca_plus", "hca_gated")])
def test_equal_inputs_give_half_each(mode):
    x = scene()
    fused = run(mode, {**x, "sar": x["optical"]})
    same(fused.weights, jnp.full((2, 3, 12, 2), 0.5))
    same(fused.tokens, x["optical"])


@pytest.mark.parametrize("mode", MODES)
def test_permuting_the_tokens_permutes_the_result(mode):
    x, order = scene(), np.random.default_rng(0).permutation(12)
    twice = np.concatenate([order, 12 + order])[: 12 * fusion.FUSION[mode].sensors_out]
    a, b = run(mode, x), run(mode, {**x, "optical": x["optical"][:, :, order], "sar": x["sar"][:, :, order]})
    same(a.tokens[:, :, twice], b.tokens, 1e-5)
    same(a.weights[:, :, order], b.weights)


@pytest.mark.parametrize(("mode", "across"), [*((mode, False) for mode in MODES), ("hca", True), ("hca_printed", True)])
def test_padding_changes_nothing(mode, across):
    """Padding tokens, padding tiles and padding text, full of NaN."""
    x = scene()
    want = run(mode, x, across_tiles=across)

    def pad(a, *widths):
        return jnp.pad(a, ((0, 0), *widths, (0, 0)), constant_values=jnp.nan)

    real = jnp.zeros((2, 4, 15), bool).at[:, :3, :12].set(True)
    padded = {
        "optical": pad(x["optical"], (0, 1), (0, 3)),
        "sar": pad(x["sar"], (0, 1), (0, 3)),
        "text": pad(x["text"], (0, 4)),
        "optical_valid": real,
        "sar_valid": real,
        "text_valid": jnp.broadcast_to(jnp.arange(9) < 5, (2, 9)),
    }
    got = run(mode, padded, across_tiles=across)
    place = np.arange(15 * fusion.FUSION[mode].sensors_out) % 15 < 12
    same(got.tokens[:, :3][:, :, place], want.tokens, 1e-5)
    same(got.weights[:, :3, :12], want.weights)
    np.testing.assert_array_equal(got.valid, np.tile(real, (1, 1, fusion.FUSION[mode].sensors_out)))
    assert (jnp.where(got.valid[..., None], 0, got.tokens) == 0).all()
    assert (jnp.where(real[..., None], 0, got.weights) == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_what_an_invalid_token_holds_never_matters(mode):
    """Nodata in one sensor: the other takes that place whole, and no score elsewhere sees the hole's content."""
    x = scene()
    hole = jnp.zeros((2, 3, 12), bool).at[0, 1, 2:5].set(True)
    masked = {**x, "optical_valid": ~hole}
    a = run(mode, masked)
    b = run(mode, {**masked, "optical": jnp.where(hole[..., None], 1e4, x["optical"])})
    chex.assert_trees_all_equal(a, b)
    same(a.weights[0, 1, 2:5], jnp.array([[0.0, 1.0]] * 3), 0)
    if mode in N_MODES and mode not in ("hca_plus", "hca_gated"):
        same(a.tokens[0, 1, 2:5], x["sar"][0, 1, 2:5])


@pytest.mark.parametrize("given", ["optical", "sar"])
@pytest.mark.parametrize("mode", MODES)
def test_missing_sensor_hands_over_all_weight(mode, given):
    x = scene()
    other = "sar" if given == "optical" else "optical"
    there = jnp.ones((2, 3, 12), bool)
    params = trained(mode)
    masked = run(mode, {**x, f"{given}_valid": there, f"{other}_valid": ~there}, params)
    want = jnp.array([1.0, 0.0]) if given == "optical" else jnp.array([0.0, 1.0])
    same(masked.weights, jnp.broadcast_to(want, (2, 3, 12, 2)), 0)
    alone = x[given]
    if f"map_{given}" in params:
        alone = alone + jnp.einsum("bind,de->bine", alone, params[f"map_{given}"])
    if mode in N_MODES:
        same(masked.tokens, alone, 1e-5)
    else:  # ungated, and only its own half is valid
        half = slice(12, 24) if given == "optical" else slice(0, 12)
        same(masked.tokens[:, :, half], alone, 0)
        assert int(masked.valid.sum()) == 2 * 3 * 12
        assert masked.valid[:, :, half].all()


@pytest.mark.parametrize("mode", ["hca", "concat"])
def test_a_sensor_that_is_none_is_missing(mode):
    x, there = scene(), jnp.ones((2, 3, 12), bool)
    masks = {"optical_valid": there, "sar_valid": there}
    for sensor in ("optical", "sar"):
        masked = run(mode, {**x, **masks, f"{sensor}_valid": ~there})
        same(run(mode, {**x, sensor: None}), masked, 0)


def test_both_sensors_missing_is_an_error():
    with pytest.raises(UserError, match="at least one sensor"):
        fusion.fuse("hca", start("hca"), None, None)


@pytest.mark.parametrize("mode", INDEPENDENT)
def test_a_sample_never_depends_on_its_neighbours(mode):
    x, y = scene(0), scene(7)
    mixed = {k: jnp.stack([x[k][0], y[k][1] * 3]) for k in x}
    a, b = run(mode, x), run(mode, mixed)
    chex.assert_trees_all_equal(jax.tree.map(lambda v: v[0], a), jax.tree.map(lambda v: v[0], b))


def test_the_october_release_depends_on_its_neighbours():
    """Its qualities are normalised by the minimum and maximum over the whole call; this mirrors the published code."""
    x, y = scene(0), scene(7)
    flat = jnp.broadcast_to(y["optical"][1, :, :1], y["optical"][1].shape)  # a uniform neighbour: the largest entropy
    mixed = {**x, "optical": jnp.stack([x["optical"][0], flat])}
    a, b = run("release_2025_10", x), run("release_2025_10", mixed)
    assert jnp.abs(a.weights[0] - b.weights[0]).max() > 1e-3


@pytest.mark.parametrize("mode", HCA)
def test_tiles_are_separate_unless_joined(mode):
    x = scene()
    moved = {**x, "optical": x["optical"].at[:, 2].multiply(-2)}
    params = trained(mode)
    same(run(mode, x, params).weights[:, :2], run(mode, moved, params).weights[:, :2], 0)
    a, b = run(mode, x, params, across_tiles=True), run(mode, moved, params, across_tiles=True)
    assert jnp.abs(a.weights[:, :2] - b.weights[:, :2]).max() > 1e-3
    flat = {k: (v if k == "text" else v.reshape(2, 1, 36, 16)) for k, v in x.items()}
    same(a.weights.reshape(2, 1, 36, 2), run(mode, flat, params).weights)
