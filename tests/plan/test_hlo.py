"""Operations and traffic read from compiled programs are those that the programs were written to do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from earthmind_jax.config import MeshConfig
from earthmind_jax.distributed.mesh import make_mesh
from earthmind_jax.plan.hlo import Program, first_group, sent_bytes, share_across

N, LAYERS = 64, 5


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def looped(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w) + 1.0, None), x, weights)[0]


def test_loops_count_as_often_as_they_run():
    shapes = jax.ShapeDtypeStruct((8, N), jnp.float32), jax.ShapeDtypeStruct((LAYERS, N, N), jnp.float32)
    program = compiled(looped, *shapes)
    read = Program(program.as_text())
    assert read.work().products == LAYERS * 2 * 8 * N * N
    assert read.work(loops=False).products == 2 * 8 * N * N
    np.testing.assert_allclose(read.work(loops=False).flops, program.cost_analysis()["flops"], rtol=0.02)
    unrolled = compiled(lambda x, ws: functools.reduce(lambda x, w: jnp.tanh(x @ w) + 1.0, ws, x), *shapes)
    np.testing.assert_allclose(read.work().flops, unrolled.cost_analysis()["flops"], rtol=0.02)
    assert read.work().unknown_loops == 0


def test_a_loop_of_unknown_length_is_said():
    stop = jax.ShapeDtypeStruct((), jnp.int32)
    program = compiled(lambda n: jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]),
                                                    (0, jnp.ones((N, N)))), stop)  # fmt: skip
    work = Program(program.as_text()).work()
    assert work.unknown_loops == 1
    assert work.products == 2 * N**3


def test_convolutions_and_batched_products():
    image, kernel = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 8), jnp.float32)
    program = compiled(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        image, kernel,
    )  # fmt: skip
    assert Program(program.as_text()).work().products == 2 * (2 * 14 * 14 * 8) * 27
    left, right = jax.ShapeDtypeStruct((4, 5, 6), jnp.float32), jax.ShapeDtypeStruct((4, 6, 7), jnp.float32)
    program = compiled(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), left, right)
    assert Program(program.as_text()).work().products == 2 * 4 * 5 * 6 * 7


@pytest.mark.parametrize("times", [1, 3])
def test_traffic_of_collectives_in_and_out_of_loops(times):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def body(x):
        def once(x, _):
            total = jax.lax.psum(x, "fsdp")  # all-reduce of 4
            return x + total, None

        x = jax.lax.scan(once, x, None, length=times)[0]
        whole = jax.lax.all_gather(x, "data", tiled=True)  # of 2, in different halves of the devices
        part = jax.lax.psum_scatter(whole, "fsdp", tiled=True)
        return jax.lax.ppermute(part, "data", [(0, 1), (1, 0)])

    spec = PartitionSpec(("data", "fsdp"))
    run = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((8 * 32, 10), jnp.float32, sharding=NamedSharding(mesh, spec))
    work = Program(compiled(run, x).as_text()).work(host=4)
    local = 32 * 10 * 4
    reduced, gathered = work.collectives["all-reduce"], work.collectives["all-gather"]
    assert (reduced.calls, reduced.payload, reduced.sent) == (times, times * local, times * 2 * local * 3 / 4)
    assert sum(work.senders.values()) == sum(traffic.sent for traffic in work.collectives.values())
    assert any(place.startswith("all-reduce") and "psum" in place for place in work.senders)
    assert reduced.across == 0  # four consecutive devices are a host
    assert (gathered.calls, gathered.payload, gathered.sent) == (1, 2 * local, local)
    assert gathered.across == local  # one device of each host
    scattered, sent = work.collectives["reduce-scatter"], work.collectives["collective-permute"]
    assert (scattered.calls, scattered.payload, scattered.sent) == (1, 2 * local, 2 * local * 3 / 4)
    assert sent.payload == sent.sent == sent.across == 2 * local / 4
    assert Program(compiled(run, x).as_text()).work().collectives["all-gather"].across == 0


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        (", replica_groups={{0,2},{1,3}}, dimensions={0}", [0, 2]),
        (", replica_groups=[4,2]<=[8], dimensions={0}", [0, 1]),
        (", replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", [0, 2, 4, 6]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", [0, 1, 2, 3]),
        (", replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}", [0, 4]),
        (", replica_groups=mesh['a'=2,'b'=4] {'a','b'}, dimensions={0}", list(range(8))),
        (", replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, dimensions={0}", [0, 2]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, dimensions={0}", [0, 1]),
        (", replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, dimensions={0}", [0, 4]),
        (", source_target_pairs={{0,1},{1,0}}", [1, 0]),
        (", replica_groups={}, dimensions={0}", []),
    ],
)
def test_groups_in_every_notation(attributes, group):
    assert first_group(attributes) == group


def test_rings():
    assert sent_bytes("all-gather", 800, 8) == sent_bytes("reduce-scatter", 800, 8) == 700
    assert sent_bytes("all-reduce", 800, 8) == 1400
    assert sent_bytes("all-gather", 800, 1) == 0
    assert share_across("all-reduce", 64, 8) == 1 / 8  # each device's own link carries one ring of eight
    assert share_across("all-to-all", 64, 8) == 56 / 63
    assert share_across("all-gather", 8, 8) == 1
    assert share_across("all-gather", 8, 1) == 0


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no entry computation"):
        Program("nothing")
