from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.position import fourier, fourier_grid, sine, sine_time

MATRIX = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def test_fourier_by_definition():
    rng = np.random.default_rng(0)
    coords, gaussian = rng.random((3, 4, 2)), rng.standard_normal((2, 5))
    angles = 2 * math.pi * (2 * coords - 1) @ gaussian
    want = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    got = fourier(jnp.asarray(coords, jnp.float32), jnp.asarray(gaussian, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_fourier_grid_is_fourier_at_pixel_centres():
    gaussian = jnp.asarray(np.random.default_rng(1).standard_normal((2, 6)), jnp.float32)
    grid = fourier_grid(3, 5, gaussian)
    assert grid.shape == (3, 5, 12)
    np.testing.assert_allclose(grid[1, 4], fourier(jnp.array([4.5 / 5, 1.5 / 3]), gaussian), atol=1e-5)


def test_low_precision_matrix_is_read_in_float32():
    gaussian = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6)), jnp.bfloat16)
    got = fourier_grid(4, 4, gaussian)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, fourier_grid(4, 4, gaussian.astype(jnp.float32)))


@pytest.mark.parametrize(("h", "w", "features"), [(3, 5, 8), (1, 1, 4), (16, 16, 64)])
def test_sine_by_definition(h, w, features):
    want, half = np.zeros((h, w, features)), features // 2
    for r in range(h):
        for c in range(w):
            for i in range(half):
                period = 1e4 ** (2 * (i // 2) / half)
                function = math.cos if i % 2 else math.sin
                want[r, c, i] = function((r + 1) / (h + 1e-6) * 2 * math.pi / period)
                want[r, c, half + i] = function((c + 1) / (w + 1e-6) * 2 * math.pi / period)
    np.testing.assert_allclose(sine(h, w, features), want, atol=2e-6)


def test_sine_error():
    with pytest.raises(ValueError, match="four"):
        sine(2, 2, 6)
    with pytest.raises(ValueError, match="even"):
        sine_time(jnp.zeros(2), 7)


@pytest.mark.parametrize("features", [2, 6, 64])
def test_sine_time_by_definition(features):
    times, half = np.array([[0.0, 0.4], [-1.0, 7.3]]), features // 2
    want = np.zeros((2, 2, features))
    for place in np.ndindex(times.shape):
        for i in range(half):
            angle = times[place] / 1e4 ** (2 * (i // 2) / half)
            want[place][i], want[place][half + i] = math.sin(angle), math.cos(angle)
    np.testing.assert_allclose(sine_time(jnp.asarray(times), features), want, atol=2e-6)


def test_recorded(goldens):
    numpy_weights = pytest.importorskip("safetensors.numpy")
    outputs = np.load(goldens / "d_sam2_fb" / "outputs.npz")
    for level in ("pos.2", "pos.3"):
        _, features, h, w = outputs[level].shape
        np.testing.assert_allclose(sine(h, w, features), outputs[level][0].transpose(1, 2, 0), atol=1e-5)
    gaussian = numpy_weights.load_file(goldens / "e_e2e_qwen2" / "weights.safetensors")[MATRIX]
    want = outputs["dense_pe"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(fourier_grid(*want.shape[:2], jnp.asarray(gaussian)), want, atol=1e-5)
