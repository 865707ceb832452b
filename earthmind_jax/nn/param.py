"""Parameters with named axes: the one place where an array of weights is declared.

Every axis of every parameter carries a logical name (or None). ``distributed.sharding`` maps the names to mesh axes, so
a model never mentions a mesh. A name outside :data:`AXES` is a programming error and is reported at the first trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import Array
from jax.sharding import PartitionSpec

Initializer = Callable[..., Array]
Axes = tuple[str | None, ...]

AXES = frozenset(
    {
        "embed",  # model width, as input of a map or of a norm
        "embed_out",  # model width, as output of a square map (a name may occur once per array)
        "heads",
        "kv_heads",
        "head",  # head dimension
        "mlp",
        "vocab",
        "vocab_embed",  # width of the embedding table, which is looked up and not multiplied
        "patch",
        "position",
        "layers",  # the stacked axis of scanned blocks
        "rank",  # LoRA
        "win",
        "channel",
        "hidden",
    }
)


def check_axes(name: str, shape: Sequence[int], axes: Axes) -> None:
    """Raise ``ValueError`` unless ``axes`` names each axis of ``shape`` once, with known names."""
    if len(axes) != len(shape):
        raise ValueError(f"Parameter '{name}' has shape {tuple(shape)} but {len(axes)} axis names {axes}.")
    named = [axis for axis in axes if axis is not None]
    if len(set(named)) != len(named):
        raise ValueError(f"Parameter '{name}' repeats an axis name in {axes}.")
    unknown = sorted(set(named) - AXES)
    if unknown:
        raise ValueError(f"Parameter '{name}' has unknown axis names {unknown}; known: {sorted(AXES)}.")


def param(
    module: nn.Module,
    name: str,
    init: Initializer,
    shape: Sequence[int],
    axes: Axes,
    dtype: Any,
    *,
    compute: Any = None,
    gather: bool = True,
) -> Array:
    """Declare (at init) or read (at apply) the parameter ``name`` of ``module``.

    Args:
      init: ``(key, shape, dtype) -> array``.
      axes: one logical name or None per axis of ``shape``.
      dtype: storage type at init; at apply the array comes as it is stored.
      compute: type to return it in; None leaves it as it is stored.
      gather: in a sharded step, bring its fsdp shards together here, in the type that is returned (:func:`constrain`).
    """
    check_axes(name, shape, axes)
    value = module.param(name, nn.with_logical_partitioning(init, axes), tuple(shape), dtype)
    value = value if compute is None else value.astype(compute)
    return constrain(value, axes) if gather else value


def fan_in_normal(inputs: int, scale: float = 1.0) -> Initializer:
    """Truncated normal of variance ``scale / fan_in`` for a kernel whose first ``inputs`` axes are contracted."""

    def init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
        outputs = tuple(range(inputs, len(shape)))
        draw = jax.nn.initializers.variance_scaling(
            scale, "fan_in", "truncated_normal", in_axis=tuple(range(inputs)), out_axis=outputs
        )
        return draw(key, tuple(shape), dtype)

    return init


def sharded() -> bool:
    """Whether what is being traced is to run on several devices, by the surrounding ``nn.logical_axis_rules``."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(nn.get_logical_axis_rules()) and not mesh.empty and mesh.size > 1


def constrain(x: Array, axes: Axes) -> Array:
    """Pin the sharding of an activation or of a weight at its use to logical ``axes`` (as ``("batch", None, None)``).

    Does nothing without a mesh of several devices, or unless the surrounding ``nn.logical_axis_rules`` knows every
    name, so that a model also runs bare. An axis that does not divide over its mesh axes stays whole.
    """
    if not sharded():
        return x
    rules, sizes = dict(nn.get_logical_axis_rules()), jax.sharding.get_abstract_mesh().shape
    if not all(axis is None or axis in rules for axis in axes):
        return x
    spec: list[Any] = []
    for size, axis in zip(x.shape, axes, strict=True):
        target = None if axis is None else rules[axis]
        names = (target,) if isinstance(target, str) else (target or ())
        spec.append(None if size % math.prod(sizes[name] for name in names) else target)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
