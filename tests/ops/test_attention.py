from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from earthmind_jax.ops import attention
from earthmind_jax.ops.attention import attend, causal_mask

torch = pytest.importorskip("torch")
KERNELS = ("dense", "blockwise")


def inputs(batch=2, queries=37, keys=41, heads=6, kv_heads=2, head_dim=16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, queries, heads, head_dim), (batch, keys, kv_heads, head_dim), (batch, keys, kv_heads, head_dim))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def random_mask(shape, seed=1):
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    return mask


def reference(q, k, v, mask=None, scale=None):
    to = [torch.tensor(x).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    allowed = None if mask is None else torch.tensor(mask)
    out = torch.nn.functional.scaled_dot_product_attention(*to, allowed, scale=scale, enable_gqa=True).transpose(1, 2)
    out.square().sum().backward()
    return out.detach().numpy(), [x.grad.transpose(1, 2).numpy() for x in to]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK_SCORES", 1)  # the smallest block, 16 queries


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("mask_shape", [None, (1, 1, 37, 41), (2, 1, 37, 41), (2, 6, 37, 41), (1, 6, 1, 41)])
def test_torch(small_blocks, implementation, kv_heads, mask_shape):
    q, k, v = inputs(kv_heads=kv_heads)
    mask = None if mask_shape is None else random_mask(mask_shape)
    want, want_grads = reference(q, k, v, mask)

    def loss(q, k, v):
        out = attend(q, k, v, mask=None if mask is None else jnp.asarray(mask), implementation=implementation)
        return jnp.square(out).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    for got, expected in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_scale():
    q, k, v = inputs()
    np.testing.assert_allclose(attend(q, k, v, scale=0.37), reference(q, k, v, scale=0.37)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", KERNELS)
def test_grouped_equals_repeated_heads(small_blocks, implementation):
    q, k, v = (jnp.asarray(x) for x in inputs())
    repeated = attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2), implementation=implementation)
    np.testing.assert_allclose(attend(q, k, v, implementation=implementation), repeated, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", KERNELS)
def test_rows_without_keys(small_blocks, implementation):
    q, k, v = (jnp.asarray(x) for x in inputs())
    mask = random_mask((2, 1, 37, 41))
    mask[0, :, 5] = mask[1] = False
    dead = ~mask.any(-1)[:, 0]

    def loss(q, k, v):
        out = attend(q, k, v, mask=jnp.asarray(mask), implementation=implementation)
        return jnp.square(out + 1).sum(), out

    (dq, dk, dv), out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    for x in (dq, dk, dv, out):
        assert np.isfinite(x).all()
    np.testing.assert_array_equal(np.asarray(out)[dead], 0)
    np.testing.assert_array_equal(np.asarray(dq)[dead], 0)
    np.testing.assert_array_equal(dk[1], 0)
    np.testing.assert_array_equal(dv[1], 0)
    assert np.abs(np.asarray(out)[~dead]).min() > 0


@pytest.mark.parametrize("implementation", KERNELS)
def test_no_leak_from_the_future_or_from_padding(small_blocks, implementation):
    q, k, v = (jnp.asarray(x) for x in inputs(keys=37))
    valid = jnp.arange(37)[None] < jnp.array([[37], [29]])
    mask = causal_mask(jnp.broadcast_to(jnp.arange(37), (2, 37)), valid)
    before = attend(q, k, v, mask=mask, implementation=implementation)
    after = attend(q, k.at[:, 20:].set(1e3), v.at[:, 20:].set(1e3), mask=mask, implementation=implementation)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.abs(np.asarray(before[:, 20:] - after[:, 20:])).max() > 1
    padded = attend(q, k.at[1, 29:].set(1e3), v.at[1, 29:].set(1e3), mask=mask, implementation=implementation)
    np.testing.assert_array_equal(before, padded)


def test_causal_mask():
    positions = jnp.array([[2, 3], [0, 4]])
    valid = jnp.array([[True] * 5, [True, False, True, True, True]])
    got = causal_mask(positions, valid)
    assert got.shape == (2, 1, 2, 5)
    np.testing.assert_array_equal(
        got[:, 0].astype(int), [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0], [1, 0, 1, 1, 1]]]
    )
    window = causal_mask(positions, valid, 2)
    np.testing.assert_array_equal(
        window[:, 0].astype(int), [[[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]], [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]]
    )


def test_weights():
    q, k, v = inputs()
    mask = random_mask((2, 1, 37, 41))
    mask[0, 0, 3] = False
    out, weights = attend(q, k, v, mask=jnp.asarray(mask), return_weights=True)
    assert weights.shape == (2, 6, 37, 41)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(mask.any(-1), (2, 6, 37)), atol=1e-6)
    assert not np.asarray(weights)[~np.broadcast_to(mask, weights.shape)].any()
    mixed = jnp.einsum("BNTS,BSNh->BTNh", weights, jnp.repeat(v, 3, axis=2))
    np.testing.assert_allclose(out, mixed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", KERNELS)
def test_bfloat16_drift(small_blocks, implementation):
    q, k, v = (jnp.asarray(x) for x in inputs(queries=128, keys=512))
    exact = attend(q, k, v, implementation="dense")
    low = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)), implementation=implementation)
    assert low.dtype == jnp.bfloat16
    assert float(jnp.abs(low.astype(jnp.float32) - exact).max()) < 0.02


def test_size_decides_between_dense_and_blockwise(monkeypatch):
    q, k, v = (jnp.asarray(x) for x in inputs(queries=256, keys=256))
    want = attend(q, k, v)
    assert attention._pick(attention.Call(q, k, v, None, 1.0), "auto") == "dense"
    monkeypatch.setattr(attention, "DENSE_LIMIT", 2 * 6 * 256 * 64)
    monkeypatch.setattr(attention, "BLOCK_SCORES", 2 * 6 * 256 * 32)
    assert attention._pick(attention.Call(q, k, v, None, 1.0), "auto") == "blockwise"
    np.testing.assert_allclose(attend(q, k, v), want, rtol=1e-6, atol=1e-6)

    def largest(f, *args):
        sizes = []

        def visit(jaxpr):
            for eqn in jaxpr.eqns:
                sizes.extend(v.aval.size for v in eqn.outvars)
                for sub in jaxprs_in_params(eqn.params):
                    visit(sub)

        visit(jax.make_jaxpr(f)(*args).jaxpr)
        return max(sizes)

    def gradient(name):
        return jax.grad(lambda *x: attend(*x, implementation=name).sum(), argnums=(0, 1, 2))

    assert largest(gradient("dense"), q, k, v) == 2 * 6 * 256 * 256
    assert largest(gradient("blockwise"), q, k, v) <= 2 * 6 * 256 * 32


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("heads", [1, 6])
def test_one_mask_row_for_all_queries(small_blocks, implementation, heads):
    q, k, v = inputs()
    row = random_mask((2, heads, 1, 41))
    row[1] = False  # nothing to see
    every = jnp.broadcast_to(row, (2, heads, 37, 41))
    ours = attend(q, k, v, mask=jnp.asarray(row), implementation=implementation)
    np.testing.assert_array_equal(ours, attend(q, k, v, mask=every, implementation=implementation))


@pytest.mark.parametrize(
    "case", ["heads", "head_dim", "mask shape", "mask rows", "mask dtype", "name", "cudnn", "weights"]
)
def test_errors(case):
    q, k, v = (jnp.asarray(x) for x in inputs())
    options = {}
    if case == "heads":
        q = q[:, :, :5]
    elif case == "head_dim":
        q = q[..., :8]
    elif case == "mask shape":
        options["mask"] = jnp.ones((2, 37, 41), bool)
    elif case == "mask rows":
        options["mask"] = jnp.ones((2, 1, 36, 41), bool)
    elif case == "mask dtype":
        options["mask"] = jnp.ones((2, 1, 37, 41))
    elif case == "name":
        options["implementation"] = "flash"
    elif case == "cudnn":
        options["implementation"] = "cudnn"
    else:
        options |= {"implementation": "blockwise", "return_weights": True}
    with pytest.raises(ValueError, match=r"[A-Za-z]"):
        attend(q, k, v, **options)


def test_cudnn_conditions(monkeypatch):
    """What the automatic choice does on a GPU, decided from shapes alone."""
    monkeypatch.setattr(attention, "_cuda_capability", lambda: 9.0)

    def pick(dtype=jnp.bfloat16, mask=None, **sizes):
        q, k, v = (jnp.asarray(x, dtype) for x in inputs(**sizes))
        return attention._pick(attention.Call(q, k, v, mask, 1.0), "auto")

    assert pick() == "cudnn"
    assert pick(jnp.float16) == "cudnn"
    assert pick(jnp.float32) == "dense"
    assert pick(head_dim=12) == "dense"
    assert pick(head_dim=264) == "dense"
    assert pick(head_dim=256) == "cudnn"
    assert pick(mask=jnp.ones((2, 1, 37, 41), bool)) == "dense"
    assert pick(queries=38, keys=42, mask=jnp.ones((2, 1, 38, 42), bool)) == "cudnn"
    monkeypatch.setattr(attention, "_cuda_capability", lambda: 8.6)
    assert pick(head_dim=256) == "dense"
    monkeypatch.setattr(attention, "_cuda_capability", lambda: 7.5)
    assert pick() == "dense"


def test_a_refusing_cudnn_is_replaced_with_a_warning(monkeypatch):
    monkeypatch.setattr(attention, "_cuda_capability", lambda: 9.0)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    with pytest.warns(UserWarning, match="cuDNN attention refused"):
        out = attend(q, k, v)
    np.testing.assert_array_equal(out, attend(q, k, v, implementation="dense"))


def test_long_sequences_stay_in_the_caches_of_a_cpu(monkeypatch):
    monkeypatch.setattr(attention, "CPU_BLOCK_SCORES", 2**12)
    q, k, v = (jnp.zeros((1, 600, 2, 4)),) * 3
    few, many = (jnp.zeros((64, 32, 2, 4)),) * 3, (q, k, v)
    monkeypatch.setattr(attention, "on_cpu", lambda: True)
    assert attention._pick(attention.Call(*many, None, 1.0), "xla") == "blockwise"
    assert attention._pick(attention.Call(*few, None, 1.0), "xla") == "dense"  # many windows of few queries
    monkeypatch.setattr(attention, "on_cpu", lambda: False)
    assert attention._pick(attention.Call(*many, None, 1.0), "xla") == "dense"


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="must be positive"):
        attend(*inputs(), scale=scale)
