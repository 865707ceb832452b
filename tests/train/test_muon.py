"""Muon: which parameters are matrices, and what becomes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from earthmind_jax.config import Group, OptimConfig
from earthmind_jax.models import api
from earthmind_jax.train.groups import assign, optimiser
from earthmind_jax.train.muon import COEFFICIENTS, RMS, Matrix, matrix, orthogonal, scale_by_muon


def test_matrices():
    model = tiny.get_config().model
    found = {path: matrix(path, axes) for path, axes in api.param_axes(model).items()}
    assert found["lm/blocks/attn/q/kernel"] == Matrix(1, 1)
    assert found["lm/blocks/attn/o/kernel"] == Matrix(1, 2)
    assert found["grounding/decoder/hyper/fc1/kernel"] == Matrix(1, 1)
    assert found["grounding/decoder/conv_s0/kernel"] == Matrix(0, 3)
    assert found["text_hidden_fcs/fc1/kernel"] == Matrix(0, 1)
    for path in ("lm/embed/embedding", "lm/head/kernel", "vision/patch_embedding/kernel", "lm/norm/scale"):
        assert found[path] is None


def test_orthogonal_in_any_company():
    """Singular values go near 1, singular vectors stay, and neither padding nor the other matrices matter."""
    rng = np.random.default_rng(0)
    stacks = [
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 24, 40), (1, 40, 24), (3, 30, 60), (1, 300, 20))
    ]
    together = orthogonal(stacks)
    for x, got in zip(stacks, together, strict=True):
        assert got.shape == x.shape
        for a, b in zip(np.asarray(x), np.asarray(got), strict=True):
            u, _, vt = np.linalg.svd(a, full_matrices=False)
            turned = u.T @ b @ vt.T
            np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0, atol=2e-2)
            assert 0.6 < np.diag(turned).min() <= np.diag(turned).max() < 1.3
        np.testing.assert_allclose(got, orthogonal([x])[0], atol=1e-5)
    assert not np.asarray(orthogonal([jnp.zeros((1, 4, 4))])[0]).any()


def test_the_first_step_is_that_of_optax():
    """Later ones differ in how the library corrects the momentum of early steps."""
    library = pytest.importorskip("optax.contrib")
    rng = np.random.default_rng(1)
    params = {"w/kernel": jnp.asarray(rng.normal(size=(24, 40)), jnp.float32)}
    ours, theirs = (
        scale_by_muon({"w/kernel": Matrix(0, 1)}),
        library.scale_by_muon(
            COEFFICIENTS,
            ns_steps=len(COEFFICIENTS),
            weight_dimension_numbers={"w/kernel": library.MuonDimensionNumbers()},
        ),
    )
    first, second = ours.init(params), theirs.init(params)
    grads = {"w/kernel": jnp.asarray(rng.normal(size=(24, 40)), jnp.float32)}
    got, _ = ours.update(grads, first)
    want, _ = theirs.update(grads, second, params)
    np.testing.assert_allclose(got["w/kernel"] / (RMS * 40**0.5), want["w/kernel"], atol=1e-5)


def test_groups_sizes_and_everything_else():
    config = OptimConfig(method="muon", learning_rate=1.0, warmup=0.0, groups=(
        Group(pattern="frozen"), Group(pattern="slow", learning_rate=0.1), Group(pattern=".*", learning_rate=1.0),
    ))  # fmt: skip
    axes = {"a/kernel": ("embed", "mlp"), "slow/kernel": ("layers", "heads", "head", "embed"), "bias": ("embed",)}
    shapes = {"a/kernel": (24, 40), "slow/kernel": (3, 2, 8, 16), "bias": (5,)}
    params = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in shapes.items()}
    tx = optimiser(config, assign([*params, "frozen"], config.groups), 1000, axes)
    updates, _ = tx.update(params, tx.init(params), params)
    assert float(jnp.std(updates["a/kernel"])) == pytest.approx(RMS, rel=0.2)
    assert float(jnp.std(updates["slow/kernel"])) == pytest.approx(0.1 * RMS, rel=0.2)
    np.testing.assert_allclose(updates["bias"], -jnp.sign(params["bias"]), rtol=1e-3)  # Adam's first step
