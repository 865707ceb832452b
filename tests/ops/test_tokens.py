from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from earthmind_jax.ops.tokens import gather_rows, place_visual


def test_place_visual():
    rng = np.random.default_rng(0)
    text, visual = rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 3, 4))
    index = np.array([[-1, 0, 1, 2, -1, 1], [2, -1, -1, -1, -1, -1]])
    got = place_visual(jnp.asarray(text, jnp.float32), jnp.asarray(visual, jnp.float32), jnp.asarray(index))
    want = text.copy()
    for b in range(2):
        for t in range(6):
            if index[b, t] >= 0:
                want[b, t] = visual[b, index[b, t]]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_place_visual_gradients_reach_what_was_used_and_nothing_else():
    text, visual = jnp.ones((1, 4, 2)), jnp.ones((1, 3, 2))
    index = jnp.array([[-1, 0, 0, 2]])
    d_text, d_visual = jax.grad(lambda t, v: place_visual(t, v, index).sum(), argnums=(0, 1))(text, visual)
    np.testing.assert_array_equal(d_text[0, :, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(d_visual[0, :, 0], [2, 0, 1])


def test_place_visual_takes_the_text_dtype():
    out = place_visual(jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((1, 1, 3)), jnp.array([[0, -1]]))
    assert out.dtype == jnp.bfloat16


def test_a_layout_beyond_the_image_is_loud():
    out = place_visual(jnp.zeros((1, 3, 2)), jnp.zeros((1, 4, 2)), jnp.array([[3, 4, -1]]))
    np.testing.assert_array_equal(np.isnan(out[0]).all(-1), [False, True, False])


def test_gather_rows():
    hidden = np.random.default_rng(1).standard_normal((2, 5, 3)).astype(np.float32)
    positions = np.array([[4, 0, 0], [1, 2, 3]])
    got = gather_rows(jnp.asarray(hidden), jnp.asarray(positions))
    np.testing.assert_array_equal(got, np.stack([hidden[b][positions[b]] for b in range(2)]))


def test_gather_rows_gradient_adds_up():
    gradient = jax.grad(lambda h: gather_rows(h, jnp.array([[1, 1, 2]])).sum())(jnp.zeros((1, 3, 2)))
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 2, 1])
