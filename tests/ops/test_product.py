import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthmind_jax.ops.product import product

CASES = [
    ("...a,ab->...b", (2, 5, 32), (32, 7)),
    ("...a,ab->...b", (1, 1, 32), (32, 7)),
    ("...a,abc->...bc", (6, 32), (32, 3, 4)),
    ("...ab,abc->...c", (2, 6, 3, 8), (3, 8, 5)),
    ("bhpwqc,pqcd->bhwd", (1, 2, 2, 3, 2, 3), (2, 2, 3, 5)),
    ("bhwc,ijcd->bhiwjd", (1, 3, 2, 8), (2, 2, 8, 5)),
]


def draw(shape, seed, dtype):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


@pytest.mark.parametrize(("spec", "left", "right"), CASES)
def test_half_precision_is_the_exact_product_rounded_once(spec, left, right):
    x, kernel = draw(left, 0, jnp.bfloat16), draw(right, 1, jnp.bfloat16)
    got = jax.jit(lambda x, k: product(spec, x, k))(x, kernel)
    exact = np.einsum(spec, np.asarray(x, np.float64), np.asarray(kernel, np.float64))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("depth", "width"), [(30, 7), (8, 64), (7, 10)])
def test_one_row_goes_by_blocks(monkeypatch, depth, width):
    """A large kernel is cut along what is summed over; one that cannot be cut into even blocks goes whole."""
    monkeypatch.setattr("earthmind_jax.ops.product.LARGE", 100)
    x, kernel = draw((1, 1, depth), 0, jnp.bfloat16), draw((depth, width), 1, jnp.bfloat16)
    run = jax.jit(lambda x, k: product("...a,ab->...b", x, k, "float32"))
    exact = np.asarray(x, np.float64)[0, 0] @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(run(x, kernel)[0, 0], exact, atol=1e-5)
    grads = jax.grad(lambda x, k: run(x, k).sum(), (0, 1))(x, kernel)
    np.testing.assert_allclose(
        np.asarray(grads[0][0, 0], np.float32), np.asarray(kernel, np.float32).sum(1), rtol=0.02, atol=0.02
    )
    np.testing.assert_allclose(
        np.asarray(grads[1], np.float32), np.tile(np.asarray(x, np.float32)[0, 0][:, None], width), rtol=0.01
    )


@pytest.mark.parametrize("output", [None, "float32", "bfloat16"])
def test_output(output):
    x, kernel = draw((3, 4), 0, jnp.bfloat16), draw((4, 6), 1, jnp.bfloat16)
    assert product("...a,ab->...b", x, kernel, output).dtype == jnp.dtype(output or jnp.bfloat16)


def test_float32_is_left_alone():
    x, kernel = draw((3, 4), 0, jnp.float32), draw((4, 6), 1, jnp.float32)
    np.testing.assert_array_equal(product("...a,ab->...b", x, kernel), jnp.einsum("...a,ab->...b", x, kernel))


def test_gradients_have_the_dtype_of_what_they_belong_to():
    x, kernel = draw((3, 4), 0, jnp.bfloat16), draw((4, 6), 1, jnp.bfloat16)
    grads = jax.jit(jax.grad(lambda x, k: product("...a,ab->...b", x, k).astype(jnp.float32).sum(), (0, 1)))(x, kernel)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
    np.testing.assert_allclose(
        np.asarray(grads[0], np.float32), np.tile(np.asarray(kernel, np.float32).sum(1), (3, 1)), rtol=2**-7, atol=1e-2
    )
    np.testing.assert_allclose(
        np.asarray(grads[1], np.float32),
        np.tile(np.asarray(x, np.float32).sum(0)[:, None], (1, 6)),
        rtol=2**-7,
        atol=1e-2,
    )
