"""Bytes of a training state on each device, from shapes and shardings; nothing is allocated.

The mesh may be abstract (:class:`jax.sharding.AbstractMesh`), so any number of devices can be asked about.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from earthmind_jax.config import DataConfig, RunConfig, replace_path
from earthmind_jax.distributed.mesh import AXES
from earthmind_jax.distributed.sharding import batch_sharding
from earthmind_jax.plan.shapes import batch_shapes
from earthmind_jax.train.state import state_shardings


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of the parts of a run that exist between steps, and of the gradients, which exist within one.

    Attributes:
      trainable: the masters, in ``precision.param``.
      frozen: in ``precision.compute``.
      optimiser: moments and counters.
      gradients: one for each trainable, in its dtype.
      batch: one batch of data.
    """

    trainable: int
    frozen: int
    optimiser: int
    gradients: int
    batch: int

    @property
    def state(self) -> int:
        """What is held whether or not a step runs."""
        return self.trainable + self.frozen + self.optimiser

    @property
    def divisible(self) -> int:
        """What a mesh is to split: parameters, optimiser and gradients."""
        return self.state + self.gradients


def abstract_mesh(sizes: tuple[int, int, int]) -> AbstractMesh:
    """A mesh of (data, fsdp, tensor) sizes without devices."""
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def held_per_device(config: RunConfig, mesh: AbstractMesh, tiles: int) -> Held:
    """What one device holds on ``mesh``, with batches of ``tiles`` tiles a sample.

    Raises:
      UserError: a freeze table that does not fit the model, or weights that the mesh does not divide.
    """
    # The state depends neither on the data nor on what is recomputed, so that plans which differ there alone share it.
    model = replace_path(replace_path(config.model, "lm.remat", "none"), "vision.remat", "none")
    trainable, frozen, optimiser = _state(dataclasses.replace(config, model=model, data=DataConfig()), mesh)
    batch = batch_shapes(config, tiles, batch_sharding(mesh))
    return Held(
        trainable=trainable,
        frozen=frozen,
        optimiser=optimiser,
        gradients=trainable,
        batch=_bytes(batch, jax.tree.map(lambda x: x.sharding, batch)),
    )


def smallest_per_device(config: RunConfig, mesh: AbstractMesh) -> float:
    """Parameters, optimiser and gradients divided evenly over the fsdp and tensor axes: no sharding can do better."""
    whole = held_per_device(config, abstract_mesh((1, 1, 1)), 1)
    return whole.divisible / (mesh.shape["fsdp"] * mesh.shape["tensor"])


@functools.lru_cache(maxsize=64)
def _state(config: RunConfig, mesh: AbstractMesh) -> tuple[int, int, int]:
    """Bytes of trainables, frozen parameters and optimiser on one device."""
    state, shardings = state_shardings(config, mesh)
    parts = ("trainable", "frozen", "opt")
    return tuple(_bytes(getattr(state, name), getattr(shardings, name)) for name in parts)  # type: ignore[return-value]


def _bytes(tree: Any, shardings: Any) -> int:
    """Bytes that one device holds of ``tree``."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, sharding in leaves)
