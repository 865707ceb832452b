import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from earthmind_jax.nn.param import check_axes, constrain, fan_in_normal, param


class Holder(nn.Module):
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: str = "float32"

    @nn.compact
    def __call__(self):
        return param(self, "weight", nn.initializers.ones, self.shape, self.axes, self.dtype)


def test_axes_are_boxed_at_init_and_the_value_is_plain():
    module = Holder((2, 3), ("embed", None), "bfloat16")
    boxed = module.init(jax.random.key(0))["params"]["weight"]
    assert boxed.names == ("embed", None)
    assert boxed.value.shape == (2, 3)
    assert boxed.value.dtype == jnp.bfloat16
    stored = nn.unbox(module.init(jax.random.key(0)))
    np.testing.assert_array_equal(module.apply(stored), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((2, 3), ("embed",), "2, 3"),
        ((2, 3), ("embed", "embed"), "repeats"),
        ((2,), ("embedd",), "embedd"),
    ],
)
def test_wrong_axes_are_refused(shape, axes, message):
    with pytest.raises(ValueError, match=message):
        check_axes("weight", shape, axes)
    with pytest.raises(ValueError, match="weight"):
        Holder(shape, axes).init(jax.random.key(0))


def test_none_may_repeat():
    check_axes("kernel", (3, 3, 2), (None, None, "channel"))


def test_fan_in_counts_contracted_axes_only():
    kernel = fan_in_normal(2)(jax.random.key(0), (8, 32, 40, 5), "float32")
    assert np.std(kernel) == pytest.approx(1 / np.sqrt(8 * 32), rel=0.05)


def test_constrain_follows_the_rules_in_force():
    x = jnp.ones((8, 4))
    np.testing.assert_array_equal(constrain(x, ("batch", None)), x)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", "data"),)):
        y = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
        z = jax.jit(lambda x: constrain(x, ("batch", "mlp")))(x)  # "mlp" has no rule: left alone
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 2)
    np.testing.assert_array_equal(z, x)
