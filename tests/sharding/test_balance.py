"""Every device holds its part of the weights: axes that the rules leave unused find a place, or it is an error."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from earthmind_jax.config import EarthMindConfig, Group, LmConfig, LoraConfig, MeshConfig, Precision, RunConfig
from earthmind_jax.distributed.balance import check_balance
from earthmind_jax.distributed.mesh import AXES, make_mesh
from earthmind_jax.distributed.sharding import param_shardings
from earthmind_jax.distributed.spread import SMALLEST
from earthmind_jax.errors import UserError
from earthmind_jax.models.families import FAMILIES
from earthmind_jax.train.state import state_shardings

LORA_4B = dataclasses.replace(FAMILIES["qwen2"].presets["earthmind_4b"], lora=LoraConfig())
MODEL_4B = EarthMindConfig(lm=LORA_4B, precision=Precision(compute="bfloat16"))
PUBLISHED = (  # frozen encoders and language model; adapters, vocabulary, fusion and mask decoder learn
    Group(pattern="lora/|lm/(embed|head)/|grounding/decoder/", learning_rate=1.0),
    Group(pattern="vision/|lm/|grounding/"),
    Group(pattern=".*", learning_rate=1.0),
)


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def held_and_whole(tree, shardings):
    """(bytes on one device, bytes of all) of a tree of arrays."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))
    size = lambda shape, x: math.prod(shape) * x.dtype.itemsize  # noqa: E731
    return sum(size(s.shard_shape(x.shape), x) for x, s in pairs), sum(size(x.shape, x) for x, _ in pairs)


@pytest.mark.parametrize("groups", [(Group(pattern=".*", learning_rate=1.0),), PUBLISHED], ids=["all", "published"])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 8, 1),
        (1, 4, 2),
        (1, 1, 8),
        (1, 64, 1),
        (2, 8, 4),
        (1, 8, 8),
        (1, 256, 1),
        (4, 64, 1),
        (1, 64, 4),
        (8, 16, 2),
    ],
    ids=str,
)
def test_the_4b_state_is_shared_to_within_3_percent(sizes, groups):
    run = RunConfig(model=MODEL_4B, optim=dataclasses.replace(RunConfig().optim, groups=groups))
    state, shardings = state_shardings(run, abstract_mesh(*sizes))
    # Gradients have the shape and the sharding of the trainables.
    held, whole = held_and_whole((state, state.trainable), (shardings, shardings.trainable))
    assert whole / (sizes[1] * sizes[2]) <= held <= 1.03 * whole / (sizes[1] * sizes[2])


def test_shards_are_cut_where_they_divide():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    cases = {
        "divides": ((512, 64), ("embed", "channel"), P("fsdp", None)),
        "another dimension": ((511, 64), ("embed", "channel"), P(None, "fsdp")),
        "factors": ((12, 2, 6, 251), ("embed", "patch", "head", None), P("fsdp.0", None, "fsdp.1", None)),
        "layers stay": ((64, 511, 62), ("layers", "embed", "channel"), P(None, None, "fsdp.0")),
        "nothing divides": ((511, 63), ("embed", "channel"), P(None, None)),
        "small": ((511, 8), ("embed", "channel"), P(None, None)),
    }
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _, _) in cases.items()}
    found = param_shardings(shapes, {name: axes for name, (_, axes, _) in cases.items()}, mesh)
    assert {name: sharding.spec for name, sharding in found.items()} == {n: spec for n, (_, _, spec) in cases.items()}


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (2, 2, 2), (1, 2, 4)], ids=str)
def test_every_part_of_a_large_array_is_on_some_device(sizes):
    """Whatever the shape: the shards are the array, and as few devices share one as the factors allow."""
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))
    rng = np.random.default_rng(0)
    names = ("embed", "mlp", "heads", "vocab", "channel", "layers")
    for shape in itertools.chain([(151, 128), (36, 36, 13)], rng.integers(1, 49, (40, 3)).tolist()):
        if math.prod(shape) < SMALLEST:
            continue
        axes = tuple(str(a) for a in rng.permutation(names)[: len(shape)])
        (sharding,) = param_shardings({"x": jax.ShapeDtypeStruct(shape, jnp.int32)}, {"x": axes}, mesh).values()
        x = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        placed = jax.device_put(x, sharding)
        np.testing.assert_array_equal(placed, x)
        parts = math.prod(shape) // math.prod(sharding.shard_shape(tuple(shape)))
        assert len({str(s.index) for s in placed.addressable_shards}) == parts
        # Sizes are powers of two: what could divide is the twos of all dimensions but the layers'.
        twos = math.prod(math.gcd(size, 2**6) for size, name in zip(shape, axes, strict=True) if name != "layers")
        assert parts == min(sizes[1] * sizes[2], twos), (shape, axes, sharding)


def test_finer_views_of_the_mesh_mix_with_it():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    shape = (12, 2, 6, 251)
    (sharding,) = param_shardings(
        {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, {"w": ("embed", "heads", "head", None)}, mesh
    ).values()
    assert sharding.mesh != mesh
    assert list(sharding.mesh.devices.flat) == list(mesh.devices.flat)
    w = np.random.default_rng(0).standard_normal(shape, np.float32)
    x = np.random.default_rng(1).standard_normal((16, 12), np.float32)

    def step(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.einsum("bd,dnhk->bnhk", x, w) ** 2))(w)

    samples = jax.sharding.NamedSharding(mesh, P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        got = jax.jit(step, in_shardings=(sharding, samples), out_shardings=sharding)(w, x)
    assert got.sharding == sharding
    np.testing.assert_allclose(got, jax.jit(step)(w, x), rtol=1e-4, atol=1e-3)


def odd_model() -> EarthMindConfig:
    """Text-only sizes that no mesh of eight divides: the language model is 4 GB of odd matrices."""
    lm = LmConfig(vocab=151655, width=1001, depth=24, heads=7, kv_heads=7, head_dim=142, mlp=4865)
    return EarthMindConfig(lm=lm, grounding=None)


def test_weights_that_do_not_divide_are_an_error():
    run = RunConfig(model=odd_model(), mesh=MeshConfig(data=1, fsdp=8, tensor=1))
    message = (
        r"fsdp=8 tensor=1 each device would hold \d+% more than its part of the weights \([\d,]+ MiB\).*"
        r"lm/embed/embedding \(151655, 1001\) \(vocab: tensor, vocab_embed: fsdp\) divides into 1.*"
        r"The mesh data=\d fsdp=\d tensor=\d fits; or raise mesh\.surplus"
    )
    with pytest.raises(UserError, match=message):
        state_shardings(run, abstract_mesh(1, 8, 1))
    state_shardings(run, abstract_mesh(8, 1, 1))  # copies are not a surplus
    state_shardings(dataclasses.replace(run, mesh=MeshConfig(surplus=8.0)), abstract_mesh(1, 8, 1))


def test_the_mesh_that_is_advised_fits():
    shapes, axes = {"w": jax.ShapeDtypeStruct((90001, 4 * 1001), jnp.float32)}, {"w": ("vocab", "embed")}
    with pytest.raises(UserError, match=r"divides into 4.*data=2 fsdp=4 tensor=1 fits"):
        check_balance(shapes, axes, abstract_mesh(1, 8, 1), 0.03)
    check_balance(shapes, axes, abstract_mesh(2, 4, 1), 0.03)
    small = {"w": jax.ShapeDtypeStruct((3001, 4004), jnp.float32)}  # 6 MiB too many: not worth a word
    check_balance(small, axes, abstract_mesh(1, 8, 1), 0.03)
