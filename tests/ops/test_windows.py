from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.windows import max_pool_2x2, partition, pixel_shuffle, unpartition

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("size", "w"), [((8, 8), 4), ((7, 10), 4), ((5, 3), 8), ((14, 14), 7), ((3, 4), 1)])
def test_partition_and_back(size, w):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 3)), jnp.float32)
    windows, padded = partition(x, w)
    rows, columns = -(-size[0] // w), -(-size[1] // w)
    assert padded == (rows * w, columns * w)
    assert windows.shape == (2 * rows * columns, w, w, 3)
    np.testing.assert_array_equal(unpartition(windows, w, padded, size), x)
    full = np.pad(x, ((0, 0), (0, padded[0] - size[0]), (0, padded[1] - size[1]), (0, 0)))
    for b in range(2):
        for r in range(rows):
            for c in range(columns):
                want = full[b, r * w : (r + 1) * w, c * w : (c + 1) * w]
                np.testing.assert_array_equal(windows[(b * rows + r) * columns + c], want)


def test_window_errors():
    with pytest.raises(ValueError, match="window"):
        partition(jnp.zeros((1, 4, 4, 1)), 0)
    with pytest.raises(ValueError, match="tile"):
        unpartition(jnp.zeros((3, 4, 4, 1)), 4, (8, 8), (8, 8))


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (2, 2)])
def test_max_pool(size):
    x = np.random.default_rng(1).standard_normal((2, *size, 3)).astype(np.float32)
    want = torch.nn.functional.max_pool2d(torch.tensor(x).permute(0, 3, 1, 2), 2, 2).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(max_pool_2x2(jnp.asarray(x)), want)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_by_definition(factor):
    x = np.random.default_rng(2).standard_normal((2, 6, 12, 4)).astype(np.float32)
    got = np.asarray(pixel_shuffle(jnp.asarray(x), factor))
    assert got.shape == (2, 6 // factor, 12 // factor, 4 * factor**2)
    for dr in range(factor):
        for dc in range(factor):
            channels = slice((dr * factor + dc) * 4, (dr * factor + dc + 1) * 4)
            np.testing.assert_array_equal(got[..., channels], x[:, dr::factor, dc::factor])


def test_pixel_shuffle_as_recorded(goldens):
    inputs, outputs = (np.load(goldens / "b_pixel_shuffle_mlp1" / f"{name}.npz") for name in ("inputs", "outputs"))
    for version in ("v1", "v2"):
        got = pixel_shuffle(jnp.asarray(inputs["feature_map"]), 2, version)
        np.testing.assert_array_equal(got, outputs[f"{version}.pixel_shuffle_half"])


def test_pixel_shuffle_errors():
    with pytest.raises(ValueError, match="factor"):
        pixel_shuffle(jnp.zeros((1, 4, 5, 1)))
    with pytest.raises(ValueError, match="version"):
        pixel_shuffle(jnp.zeros((1, 4, 4, 1)), version="v3")
