from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.rope import apply_rope, inverse_frequencies, rope_tables, table_scale

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("head_dim", "theta"), [(64, 1e6), (128, 1e6), (96, 1e4), (80, 1e6)])
def test_qwen2(head_dim, theta):
    """Tables and rotation of Qwen2 at long positions, where a wrong rounding of the frequencies would show."""
    qwen2 = pytest.importorskip("transformers.models.qwen2.modeling_qwen2")
    config = qwen2.Qwen2Config(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=32768,
    )
    positions = np.stack([np.arange(40), np.arange(8000, 8040)])
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 2, 40, 2, head_dim)).astype(np.float32)
    rotary = qwen2.Qwen2RotaryEmbedding(config)
    cos, sin = rotary(torch.tensor(q), torch.tensor(positions))
    want = qwen2.apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), cos, sin, unsqueeze_dim=2)

    inv_freq = inverse_frequencies(head_dim, theta)
    np.testing.assert_allclose(inv_freq, rotary.inv_freq.numpy(), rtol=2e-7)
    got_cos, got_sin = rope_tables(jnp.asarray(positions), inv_freq)
    assert got_cos.dtype == got_sin.dtype == jnp.float32
    np.testing.assert_allclose(got_cos, cos.numpy(), atol=2e-5)
    np.testing.assert_allclose(got_sin, sin.numpy(), atol=2e-5)
    np.testing.assert_allclose(apply_rope(q, got_cos, got_sin), want[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(apply_rope(k, got_cos, got_sin), want[1].numpy(), atol=1e-4)


def test_only_relative_positions_matter():
    rng = np.random.default_rng(1)
    q, k = jnp.asarray(rng.standard_normal((2, 1, 1, 1, 32)), jnp.float32)
    inv_freq = inverse_frequencies(32, 1e4)

    def score(m, n):
        at = [rope_tables(jnp.full((1, 1), p), inv_freq) for p in (m, n)]
        return float(jnp.vdot(apply_rope(q, *at[0]), apply_rope(k, *at[1])))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(8, 3)) > 1e-3


def test_rotation_keeps_length_and_dtype():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 9, 3, 16)), jnp.float32)
    cos, sin = rope_tables(jnp.arange(18).reshape(2, 9), inverse_frequencies(16, 1e4))
    turned = apply_rope(x, cos, sin)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[0, 0], x[0, 0])
    low = apply_rope(x.astype(jnp.bfloat16), cos, sin)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), turned, atol=0.03)


def test_linear():
    np.testing.assert_allclose(
        inverse_frequencies(8, 1e4, kind="linear", factor=4.0), inverse_frequencies(8, 1e4) / 4, rtol=1e-7
    )


@pytest.mark.parametrize("length", [5, 32, 33, 45, 500])
def test_dynamic(length):
    options = {"kind": "dynamic", "factor": 2.0, "max_position": 32}
    base = 1e6
    if length > 32:
        base *= ((2.0 * length / 32) - (2.0 - 1)) ** (16 / (16 - 2))
    want = 1.0 / base ** (np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(inverse_frequencies(16, 1e6, **options, length=length), want, rtol=1e-6)
    traced = jax.jit(lambda n: inverse_frequencies(16, 1e6, **options, length=n))
    np.testing.assert_allclose(traced(length), want, rtol=2e-6)
    per_sample = traced(jnp.array([length, 5]))
    assert per_sample.shape == (2, 8)
    np.testing.assert_allclose(per_sample[0], want, rtol=2e-6)
    np.testing.assert_allclose(per_sample[1], inverse_frequencies(16, 1e6), rtol=1e-6)


def test_longrope():
    short, long = np.linspace(1, 2, 4), np.linspace(1, 20, 4)
    options = {
        "kind": "longrope",
        "max_position": 512,
        "original_max_position": 32,
        "short_factor": tuple(short),
        "long_factor": tuple(long),
    }
    base = 1e4 ** (np.arange(0, 8, 2) / 8)
    frequencies = jax.jit(lambda n: inverse_frequencies(8, 1e4, **options, length=n))
    np.testing.assert_allclose(frequencies(32), 1 / (short * base), rtol=1e-6)
    np.testing.assert_allclose(frequencies(33), 1 / (long * base), rtol=1e-6)
    np.testing.assert_allclose(frequencies(jnp.array([33, 2])), 1 / (np.stack([long, short]) * base), rtol=1e-6)
    scale = table_scale("longrope", max_position=512, original_max_position=32)
    assert scale == pytest.approx(math.sqrt(1 + math.log(16) / math.log(32)))
    assert table_scale("longrope", max_position=131072, original_max_position=4096) == pytest.approx(1.1902, abs=1e-4)
    assert table_scale("longrope", max_position=4096, original_max_position=4096) == 1.0
    assert table_scale("dynamic", max_position=512, original_max_position=32) == 1.0
    plain, scaled = (rope_tables(jnp.arange(6).reshape(2, 3), frequencies(3), s) for s in (1.0, scale))
    np.testing.assert_allclose(scaled[0], plain[0] * scale, rtol=1e-6)
    np.testing.assert_allclose(scaled[1], plain[1] * scale, rtol=1e-6)


def test_tables_per_sample():
    """Frequencies [B h/2] give each sample its own table."""
    inv_freq = inverse_frequencies(8, 1e4, kind="dynamic", factor=2.0, max_position=4, length=jnp.array([3, 9]))
    positions = jnp.arange(10).reshape(2, 5)
    cos, _ = rope_tables(positions, inv_freq)
    for b in range(2):
        np.testing.assert_allclose(cos[b], rope_tables(positions[b : b + 1], inv_freq[b])[0][0], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "yarn"},
        {"kind": "dynamic", "factor": 2.0, "max_position": 8},
        {"kind": "longrope", "short_factor": (1.0,), "long_factor": (1.0,), "length": 3},
        {"head_dim": 7},
    ],
)
def test_errors(options):
    options = {"head_dim": 8, **options}
    with pytest.raises(ValueError, match=r"[Rr]otary"):
        inverse_frequencies(options.pop("head_dim"), 1e4, **options)
