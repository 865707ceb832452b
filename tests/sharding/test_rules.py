"""Where every parameter lives: the rules, and the partitions of the tiny model written out in ``specs.json``.

``python tests/sharding/test_rules.py`` writes that file anew; read the difference before keeping it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest
from jax.sharding import PartitionSpec as P

from configs import tiny
from earthmind_jax.config import EarthMindConfig, MeshConfig
from earthmind_jax.distributed.mesh import make_mesh, mesh_shape
from earthmind_jax.distributed.sharding import RULES, batch_sharding, param_shardings, partition_spec
from earthmind_jax.errors import UserError
from earthmind_jax.models import api
from earthmind_jax.models.families import FAMILIES

GOLDEN = Path(__file__).parent / "specs.json"
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}  # data, fsdp, tensor
CONFIGS = {
    "tiny": tiny.model(),
    "gated": tiny.model("hca_gated"),
    "published": EarthMindConfig(),
    "4b": dataclasses.replace(EarthMindConfig(), lm=FAMILIES["qwen2"].presets["earthmind_4b"]),
}


def mesh(name: str) -> jax.sharding.Mesh:
    data, fsdp, tensor = MESHES[name]
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


@functools.cache
def axes(name: str) -> dict[str, tuple[str | None, ...]]:
    return api.param_axes(CONFIGS[name])


def specs() -> dict[str, dict[str, str]]:
    """For each mesh, the partition of every parameter of the tiny model that is not whole on every device.

    One letter stands for a mesh axis (f fsdp, t tensor) and ``-`` for a whole dimension: ``"- f t"`` is
    ``PartitionSpec(None, "fsdp", "tensor")``.
    """
    table = {}
    for name in MESHES:
        shardings = param_shardings(api.shapes(CONFIGS["tiny"]), axes("tiny"), mesh(name))
        sizes = dict(zip(("data", "fsdp", "tensor"), MESHES[name], strict=True))
        rows = {}
        for path, sharding in sorted(shardings.items()):
            letters = [axis[0] if axis is not None and sizes[axis] > 1 else "-" for axis in sharding.spec]
            if set(letters) - {"-"}:
                rows[path] = " ".join(letters)
        table[name] = rows
    return table


def test_partitions_of_the_tiny_model():
    assert specs() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_axes_with_a_rule(name):
    shapes = api.shapes(CONFIGS[name])
    assert set(axes(name)) == set(shapes)
    for path, names in axes(name).items():
        assert len(names) == len(shapes[path].shape), path
        assert all(axis is None or axis in RULES for axis in names), (path, names)


@pytest.mark.parametrize("name", ["published", "4b"])
def test_large_parameters_of_the_published_models_are_sharded(name):
    shapes = api.shapes(CONFIGS[name])
    shardings = param_shardings(shapes, axes(name), mesh("2x2x2"))
    for path, x in shapes.items():
        # The published vocabularies are odd, and the table's features stay whole (see RULES).
        if x.size > 2**22 and path != "lm/embed/embedding":
            shard = shardings[path].shard_shape(x.shape)
            assert shard != x.shape, path


def test_an_unknown_name_raises():
    with pytest.raises(KeyError, match="emded"):
        partition_spec((8, 8), ("emded", "mlp"), mesh("2x2x2"))


def test_a_dimension_that_does_not_divide_stays_whole():
    assert partition_spec((7, 8), ("embed", "mlp"), mesh("2x2x2")) == P(None, "tensor")
    assert partition_spec((8, 7), ("embed", "mlp"), mesh("2x2x2")) == P("fsdp", None)
    assert partition_spec((4,), ("embed",), mesh("1x8x1")) == P(None)


def test_a_mesh_axis_is_used_once():
    assert partition_spec((8, 8), ("mlp", "heads"), mesh("2x2x2")) == P("tensor", None)
    assert partition_spec((8, 8), ("batch", "embed"), mesh("2x2x2")) == P(("data", "fsdp"), None)


def test_batches_are_split_over_data_and_fsdp():
    assert batch_sharding(mesh("2x2x2")).shard_shape((8, 3)) == (2, 3)
    assert batch_sharding(mesh("1x8x1")).shard_shape((8, 3)) == (1, 3)


def test_mesh_sizes():
    assert mesh_shape(MeshConfig(), 8) == (8, 1, 1)
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 2)
    for bad, message in (
        (MeshConfig(data=3, fsdp=1, tensor=1), "needs 3 devices, but there are 8"),
        (MeshConfig(data=-1, fsdp=3), "does not divide the 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (MeshConfig(data=0), "must be positive"),
    ):
        with pytest.raises(UserError, match=message):
            mesh_shape(bad, 8)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(specs(), indent=1) + "\n")
