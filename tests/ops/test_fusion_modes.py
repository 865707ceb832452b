"""What single modes do: the repairs and the defects of HCA, its variants, wrong requests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fusion_cases import HCA, run, same, scene, start, trained

from earthmind_jax.errors import UserError
from earthmind_jax.ops import fusion

MODES = list(fusion.FUSION)


@pytest.mark.parametrize("rank", [0, 3])
def test_maps_and_gate_start_as_identity(rank):
    x = scene()
    hca = run("hca", x, start("hca"))
    plus = run("hca_plus", x, start("hca_plus", map_rank=rank))
    gated = run("hca_gated", x, start("hca_gated", map_rank=rank))
    same(plus, gated, 1e-6)
    same(hca, plus, 1e-6)


@pytest.mark.parametrize("rank", [0, 3])
def test_plus_keeps_the_weights_of_hca_and_maps_its_tokens(rank):
    x, params = scene(), trained("hca_plus", map_rank=rank)
    hca, plus = run("hca", x, params), run("hca_plus", x, params)
    same(hca.weights, plus.weights, 1e-6)

    def mapped(sensor):
        kernel = params[f"map_{sensor}_in"] @ params[f"map_{sensor}_out"] if rank else params[f"map_{sensor}"]
        return x[sensor] + x[sensor] @ kernel

    same(plus.tokens, hca.weights[..., :1] * mapped("optical") + hca.weights[..., 1:] * mapped("sar"), 1e-5)


def test_gate_adds_the_quality_difference_to_the_logit():
    x, params = scene(), trained("hca_gated")
    plus, gated = run("hca_plus", x, params).weights, run("hca_gated", x, params).weights

    def quality(sensor):
        tokens = x[sensor] / jnp.sqrt(jnp.mean(x[sensor] ** 2, -1, keepdims=True) + 1e-6)
        hidden = tokens @ params[f"quality_{sensor}_in"] + params[f"quality_{sensor}_bias"]
        return jax.nn.gelu(hidden, approximate=False) @ params[f"quality_{sensor}_out"]

    logit = jnp.log(plus[..., 0] / plus[..., 1]) + quality("optical") - quality("sar")
    same(gated[..., 0], jax.nn.sigmoid(logit), 1e-5)


def test_printed_weights_are_an_average():
    """The defect, kept on purpose: 256 tokens leave the weights within 0.01 of one half, whatever the text."""
    x = scene(tokens=256, width=64, batch=1, tiles=1)
    fused = run("hca_printed", x, {"lambda": jnp.asarray(0.5)})
    assert jnp.abs(fused.weights - 0.5).max() < 0.01
    other = run("hca_printed", {**x, "text": 3 * x["text"][:, ::-1] + 1}, {"lambda": jnp.asarray(0.5)})
    same(fused.weights, other.weights, 1e-6)
    gradient = jax.grad(lambda t: run("hca_printed", {**x, "text": t}, {"lambda": jnp.asarray(0.5)}).tokens.sum())
    assert jnp.abs(gradient(x["text"])).max() < 1e-6


@pytest.mark.parametrize("mode", HCA)
def test_text_matters(mode):
    x = scene(tokens=256, width=64, batch=1, tiles=1)
    params = start(mode, 64)
    a, b = run(mode, x, params), run(mode, {**x, "text": x["text"][:, ::-1] * -1}, params)
    assert jnp.abs(a.weights - b.weights).max() > 0.05
    assert a.weights.std() > 0.02


@pytest.mark.parametrize("mode", [*HCA, "hca_printed"])
def test_without_text_lambda_acts_as_one(mode):
    x, params = scene(), trained(mode)
    raw = {**{k: v for k, v in params.items() if k != "rho"}, "lambda": jnp.asarray(1.0)}
    want = run(mode, x, raw, raw_lambda=True)
    got = run(mode, {**x, "text_valid": jnp.zeros((2, 5), bool)}, params)
    same(got.weights, want.weights)
    del x["text"]
    same(run(mode, x, params).weights, want.weights)


@pytest.mark.parametrize("normalise", ["none", "rms", "l2"])
def test_scores_are_relative_to_uniform(normalise):
    x, valid = scene(), jnp.ones((2, 3, 12), bool).at[:, :, 9:].set(False)
    tokens = fusion.Tokens(x["optical"], x["sar"], valid, valid, x["text"], jnp.ones((2, 5), bool))
    scores = fusion.hca_scores(tokens, jnp.asarray(0.3), normalise=normalise)
    for score in scores:
        same(score[:, :, :9].mean(2), jnp.ones((2, 3, 2)), 1e-5)
    plain = fusion.hca_scores(tokens, jnp.asarray(0.3), normalise=normalise, scale_by_tokens=False)
    same(plain.gamma * 9, scores.gamma, 1e-5)


@pytest.mark.parametrize("mode", HCA)
def test_closed_form(mode):
    """Against the definition written out densely, one sample and tile at a time."""
    x, params = scene(), start(mode, temperature_init=1.7)
    params["rho"] = jnp.asarray(0.4)
    want = np.zeros((2, 3, 12))
    for b, i in np.ndindex(2, 3):
        o, s, t = (np.asarray(a, np.float64) for a in (x["optical"][b, i], x["sar"][b, i], x["text"][b]))
        o, s, t = (a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) for a in (o, s, t))

        def received(queries, keys):
            e = np.exp(queries @ keys.T / 4)
            return 12 * (e / e.sum(1, keepdims=True)).mean(0)

        lam = 1 / (1 + np.exp(-0.4))
        gamma_o = lam * received(s, o) + (1 - lam) * received(t, o)
        gamma_s = lam * received(o, s) + (1 - lam) * received(t, s)
        want[b, i] = 1 / (1 + np.exp(-1.7 * (gamma_o - gamma_s)))
    same(run(mode, x, params).weights[..., 0], want, 1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_wrong_requests_are_one_sentence(mode):
    x = scene()
    with pytest.raises(UserError, match="share one grid"):
        run(mode, {**x, "optical": x["optical"][:, :, :9]})
    with pytest.raises(UserError, match="validity mask"):
        run(mode, {**x, "sar_valid": jnp.ones((2, 3, 9), bool)})
    with pytest.raises(UserError, match="Text"):
        run(mode, {**x, "text": x["text"][..., :8]})


def test_wrong_options():
    with pytest.raises(UserError, match=r"Unknown fusion mode 'hcaa'\. Choices: hca,"):
        fusion.fuse("hcaa", {}, None, None)
    with pytest.raises(UserError, match="temperature"):
        fusion.fusion_specs("hca", 8, temperature_init=0.0)
    with pytest.raises(UserError, match="block"):
        run("hca", scene(), block=0)
    with pytest.raises(UserError, match="normalisation 'unit'"):
        run("hca", scene(), normalise="unit")
    with pytest.raises(UserError, match="share one grid"):
        run("hca", {**scene(), "optical": scene()["optical"][:, :2]})
