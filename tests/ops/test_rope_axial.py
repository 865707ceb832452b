from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.rope_axial import axial_tables, rotate_pairs

torch = pytest.importorskip("torch")


def cells(h, w, width, seed=0):
    return np.random.default_rng(seed).standard_normal((2, 3, h * w, width)).astype(np.float32)


@pytest.mark.parametrize(("h", "w", "width"), [(3, 5, 8), (8, 8, 32), (1, 7, 256), (64, 64, 64)])
def test_as_products_of_complex_numbers(h, w, width):
    """Each pair of channels is a complex number, turned by e^(i position frequency)."""
    x = cells(h, w, width)
    frequency = 1.0 / 10000.0 ** (torch.arange(0, width, 4, dtype=torch.float64) / width)
    place = torch.arange(h * w)
    angles = torch.cat([torch.outer(place % w, frequency), torch.outer(place // w, frequency)], dim=-1)
    pairs = torch.view_as_complex(torch.tensor(x, dtype=torch.float64).reshape(2, 3, h * w, -1, 2))
    want = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    np.testing.assert_allclose(rotate_pairs(x, *axial_tables(h, w, width)), want, atol=2e-6)


def test_products_depend_on_the_distance_alone():
    """q . k after the turn is a function of the two offsets between their cells."""
    h, w, width = 6, 7, 16
    tables = axial_tables(h, w, width)
    q, k = (
        np.broadcast_to(np.random.default_rng(i).standard_normal(width, np.float32), (h * w, width)) for i in range(2)
    )
    products = np.asarray(rotate_pairs(q, *tables) @ rotate_pairs(k, *tables).T).reshape(h, w, h, w)
    for y, x in np.ndindex(h - 2, w - 3):
        np.testing.assert_allclose(products[y, x, y + 2, x + 3], products[0, 0, 2, 3], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 0, 2, 3] - products[0, 0, 3, 2]) > 0.1


def test_lengths_and_dtypes_stay():
    x = jnp.asarray(cells(4, 4, 8), jnp.bfloat16)
    turned = rotate_pairs(x, *axial_tables(4, 4, 8))
    assert turned.dtype == jnp.bfloat16
    norms = [np.linalg.norm(np.asarray(y, np.float32), axis=-1) for y in (x, turned)]
    np.testing.assert_allclose(*norms, rtol=2e-2)
    np.testing.assert_array_equal(turned[:, :, 0], x[:, :, 0])  # the first cell is the origin


def test_gradients_turn_back():
    x, tables = jnp.asarray(cells(3, 4, 8)), axial_tables(3, 4, 8)
    gradient = jax.grad(lambda x: jnp.square(rotate_pairs(x, *tables)).sum())(x)
    np.testing.assert_allclose(gradient, 2 * x, rtol=1e-5, atol=1e-5)


def test_error():
    with pytest.raises(ValueError, match="four"):
        axial_tables(2, 2, 6)
