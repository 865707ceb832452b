"""Where every parameter lives: the rules, and the partitions of three models written out in ``specs.json``.

``python tests/sharding/test_rules.py`` writes that file anew; read the difference before keeping it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import tiny
from earthmind_jax.config import EarthMindConfig, LoraConfig, MeshConfig
from earthmind_jax.distributed.mesh import AXES, make_mesh, mesh_shape
from earthmind_jax.distributed.sharding import RULES, batch_sharding, param_shardings, partition_spec
from earthmind_jax.errors import UserError
from earthmind_jax.models import api
from earthmind_jax.models.families import FAMILIES
from earthmind_jax.models.sam2_presets import sam2_preset

GOLDEN = Path(__file__).parent / "specs.json"
MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "1x4x2": (1, 4, 2), "1x64x4": (1, 64, 4)}  # data, fsdp, tensor
QWEN = FAMILIES["qwen2"].presets
CONFIGS = {
    "tiny": tiny.model(),
    "1b": EarthMindConfig(lm=QWEN["qwen2_0_5b"], grounding=sam2_preset("sam2_hiera_tiny")),  # InternVL2-1B
    "4b": EarthMindConfig(lm=dataclasses.replace(QWEN["earthmind_4b"], lora=LoraConfig())),
    "gated": tiny.model("hca_gated"),
}
WRITTEN = ("tiny", "1b", "4b")


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def letters(sharding: NamedSharding) -> str:
    """One word for each dimension: ``-`` whole, ``f`` fsdp, ``t`` tensor, ``f8`` a factor 8 of fsdp."""
    sizes, words = sharding.mesh.shape, []
    for entry in sharding.spec:
        names = [n for n in ((entry,) if isinstance(entry, str) else entry or ()) if sizes[n] > 1]
        words.append("".join(n[0] + (str(sizes[n]) if "." in n else "") for n in names) or "-")
    return " ".join(words)


def specs(name: str) -> dict[str, str]:
    """``{"path [shape] x count": "spec | spec | ..."}`` for the meshes in turn, unless it is whole on all of them.

    ``#`` stands for the number of a layer; ``count`` is how many layers have such a parameter of that shape.
    """
    shapes, axes = api.shapes(CONFIGS[name]), api.param_axes(CONFIGS[name])
    columns = [param_shardings(shapes, axes, abstract_mesh(*sizes)) for sizes in MESHES.values()]
    rows: collections.Counter[tuple[str, str]] = collections.Counter()
    for path, x in sorted(shapes.items()):
        family = re.sub(r"(block|layer)_\d+", r"\1_#", path)
        rows[f"{family} {list(x.shape)}", " | ".join(letters(column[path]) for column in columns)] += 1
    return {f"{path} x {count}": spec for (path, spec), count in rows.items() if set(spec) - set("- |")}


def test_partitions_are_those_written_down():
    golden = json.loads(GOLDEN.read_text())
    assert list(golden) == list(WRITTEN)
    for name in WRITTEN:
        assert specs(name) == golden[name], name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_axes_with_a_rule(name):
    shapes, axes = api.shapes(CONFIGS[name]), api.param_axes(CONFIGS[name])
    assert set(axes) == set(shapes)
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert all(axis is None or axis in RULES for axis in names), (path, names)


def test_an_unknown_name_raises():
    with pytest.raises(KeyError, match="emded"):
        partition_spec((8, 8), ("emded", "mlp"), mesh(2, 2, 2))


def test_a_dimension_that_does_not_divide_stays_whole():
    assert partition_spec((7, 8), ("embed", "mlp"), mesh(2, 2, 2)) == P(None, "tensor")
    assert partition_spec((8, 7), ("embed", "mlp"), mesh(2, 2, 2)) == P("fsdp", None)
    assert partition_spec((4,), ("embed",), mesh(1, 8, 1)) == P(None)


def test_a_mesh_axis_is_used_once():
    assert partition_spec((8, 8), ("mlp", "heads"), mesh(2, 2, 2)) == P("tensor", None)
    assert partition_spec((8, 8), ("batch", "embed"), mesh(2, 2, 2)) == P(("data", "fsdp"), None)


def test_batches_are_split_over_data_and_fsdp():
    assert batch_sharding(mesh(2, 2, 2)).shard_shape((8, 3)) == (2, 3)
    assert batch_sharding(mesh(1, 8, 1)).shard_shape((8, 3)) == (1, 3)


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
    GOLDEN.write_text(json.dumps({name: specs(name) for name in WRITTEN}, indent=1) + "\n")
