"""Which parameters learn, and how fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from earthmind_jax.config import Group, OptimConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import api
from earthmind_jax.train.groups import assign, optimiser, schedule, split

PATHS = ("grounding/prompt/gaussian", "grounding/trunk/bias", "lm/embed/embedding", "vision/blocks/norm1/scale")


def test_first_match_wins():
    table = assign(PATHS, (Group(pattern="grounding/prompt/"), Group(pattern="grounding/|lm/", learning_rate=1.0),
                           Group(pattern=".*", learning_rate=0.5)))  # fmt: skip
    assert dict(table.index) == dict(zip(PATHS, (0, 1, 1, 2), strict=True))
    assert [table.trainable(path) for path in PATHS] == [False, True, True, True]
    rows = table.table({path: jax.ShapeDtypeStruct((2, 3), jnp.float32) for path in PATHS})
    assert rows == [
        ("grounding/prompt/", "frozen", 1, 6),
        ("grounding/|lm/", "lr x 1", 2, 12),
        (".*", "lr x 0.5", 1, 6),
    ]


def test_patterns_match_from_the_start_of_the_path():
    with pytest.raises(UserError, match="'blocks/' matches no parameter"):
        assign(PATHS, (Group(pattern="blocks/"), Group(pattern=".*")))


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(UserError, match=r"'grounding/promt/' matches no parameter. Did you mean 'grounding/prompt'\?"):
        assign(PATHS, (Group(pattern="grounding/promt/"), Group(pattern=".*", learning_rate=1.0)))


def test_an_uncovered_path_is_named():
    with pytest.raises(UserError, match=r"covers parameter 'vision/blocks/norm1/scale'; add a last group"):
        assign(PATHS, (Group(pattern="grounding/|lm/"),))


def test_an_invalid_pattern_is_named():
    with pytest.raises(UserError, match=r"'lm/\(' is not a regular expression"):
        assign(PATHS, (Group(pattern="lm/("),))


def test_a_pattern_whose_paths_are_all_taken_is_fine():
    assert (
        assign(PATHS, (Group(pattern=".*"), Group(pattern="lm/", learning_rate=1.0))).index["lm/embed/embedding"] == 0
    )


def test_the_configuration_covers_its_model():
    config = tiny.get_config()
    table = assign(sorted(api.shapes(config.model)), config.optim.groups)
    frozen = [path for path in table.index if not table.trainable(path)]
    assert frozen
    assert all(path.startswith("grounding/prompt/") for path in frozen)


def test_frozen_parameters_are_stored_in_the_compute_dtype():
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2, jnp.int32)}
    table = assign(list(params), (Group(pattern="a", learning_rate=1.0), Group(pattern=".*")))
    trainable, frozen = split(params, table, jnp.bfloat16, dict.fromkeys(params, (None,)))
    assert {path: x.dtype for path, x in trainable.items()} == {"a": jnp.float32}
    assert {path: x.dtype for path, x in frozen.items()} == {"b": jnp.bfloat16, "c": jnp.int32}


def test_the_last_rows_of_a_vocabulary_learn_alone():
    params = {"embed": jnp.arange(12.0).reshape(6, 2), "head": jnp.arange(12.0).reshape(2, 6)}
    axes = {"embed": ("vocab", "vocab_embed"), "head": ("embed", "vocab")}
    table = assign(list(params), (Group(pattern=".*", learning_rate=1.0, rows=2),))
    trainable, frozen = split(params, table, jnp.float32, axes)
    np.testing.assert_array_equal(trainable["embed"], params["embed"][4:])
    np.testing.assert_array_equal(trainable["head"], params["head"][:, 4:])
    for path, x in api.combine(frozen, {path: x + 1 for path, x in trainable.items()}).items():
        np.testing.assert_array_equal(x - params[path], np.broadcast_to(np.arange(6) > 3, (2, 6)).T if path == "embed"
                                      else np.broadcast_to(np.arange(6) > 3, (2, 6)))  # fmt: skip
    assert table.table(params)[0][1] == "lr x 1, last 2 rows"
    for rows, says in ((6, "is all of the 6 rows of 'embed'"), (7, "is all of")):
        table = assign(list(params), (Group(pattern=".*", learning_rate=1.0, rows=rows),))
        with pytest.raises(UserError, match=says):
            split(params, table, jnp.float32, axes)
    table = assign(["embed"], (Group(pattern=".*", learning_rate=1.0, rows=1),))
    with pytest.raises(UserError, match="'embed' has no vocabulary"):
        split({"embed": params["embed"]}, table, jnp.float32, {"embed": ("embed", "mlp")})
    with pytest.raises(UserError, match="needs a positive number and a learning rate"):
        Group(pattern=".*", rows=3)


def test_schedule_warms_up_and_decays():
    rate = schedule(OptimConfig(learning_rate=2.0, warmup=0.1, final=0.25), 100)
    np.testing.assert_allclose([rate(0), rate(10), rate(55), rate(100)], [0.2, 2.0, 1.25, 0.5], rtol=1e-5)
    assert all(rate(i) < rate(i + 1) for i in range(10))
    assert all(rate(i) > rate(i + 1) for i in range(10, 100))


def test_groups_have_their_own_rate_and_decay():
    config = OptimConfig(learning_rate=1e-2, warmup=0.0, clip=1e9, groups=(
        Group(pattern="slow", learning_rate=0.1), Group(pattern="decayed", learning_rate=1.0, weight_decay=0.5),
        Group(pattern="frozen"), Group(pattern=".*", learning_rate=1.0)))  # fmt: skip
    params = {name: jnp.full(3, 2.0) for name in ("slow", "decayed", "plain")}
    tx = optimiser(config, assign([*params, "frozen"], config.groups), 1000)
    updates, _ = tx.update({name: jnp.ones(3) for name in params}, tx.init(params), params)
    # The first update of Adam is the sign of the gradient; decay adds 0.5 x 2.
    for name, expected in (("slow", -1e-3), ("decayed", -2e-2), ("plain", -1e-2)):
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4)


def test_what_has_a_scale_starts_multiplied_by_it():
    groups = (
        Group(pattern="a", learning_rate=0.0, scale=0.5),
        Group(pattern="b", learning_rate=1.0),
        Group(pattern="c"),
    )
    params, table = {name: jnp.full(3, 2.0) for name in "abc"}, assign(["a", "b", "c"], groups)
    trainable, frozen = split(params, table, jnp.dtype("bfloat16"), dict.fromkeys(params, ("embed",)))
    assert {name: float(x[0]) for name, x in (trainable | frozen).items()} == {"a": 1.0, "b": 2.0, "c": 2.0}
    assert (set(trainable), trainable["a"].dtype) == ({"a", "b"}, jnp.float32)
    assert table.table(params)[0][1] == "lr x 0, scaled by 0.5"
    tx = optimiser(OptimConfig(groups=groups), table, 10)
    moved, _ = tx.update(jax.tree.map(jnp.ones_like, trainable), tx.init(trainable), trainable)
    assert (moved["a"] == 0).all()
    assert (moved["b"] < 0).all()
    with pytest.raises(UserError, match=r"'c' has scale=0.3, which needs a learning rate"):
        Group(pattern="c", scale=0.3)


def test_gradients_are_clipped_by_their_common_norm():
    config = OptimConfig(clip=1.0)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(1)}
    tx = optimiser(config, assign(list(params), config.groups), 10)
    _, state = tx.update({"a": jnp.full(3, 1e3), "b": jnp.full(1, 1e3)}, tx.init(params), params)
    mu = optax.tree.get(state, "mu")
    np.testing.assert_allclose(jnp.concatenate([mu["a"], mu["b"]]), 0.1 * 0.5, rtol=1e-4)
