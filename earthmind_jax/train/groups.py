"""Which parameters learn: the freeze table, and the optimiser it implies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from earthmind_jax.config import Group, OptimConfig, nearest
from earthmind_jax.errors import UserError
from earthmind_jax.nn.param import Axes
from earthmind_jax.train.muon import matrix, scale_by_muon
from earthmind_jax.types import Params


@dataclass(frozen=True)
class Assignment:
    """Path -> index of the first group whose pattern matches it."""

    groups: tuple[Group, ...]
    index: Mapping[str, int]

    def trainable(self, path: str) -> bool:
        return self.groups[self.index[path]].learning_rate is not None

    def table(self, shapes: Mapping[str, jax.ShapeDtypeStruct | jax.Array]) -> list[tuple[str, str, int, int]]:
        """Rows (pattern, 'frozen' or learning-rate factor, arrays, parameters), one for each group."""
        rows = []
        for i, group in enumerate(self.groups):
            paths = [p for p, j in self.index.items() if i == j]
            state = "frozen" if group.learning_rate is None else f"lr x {group.learning_rate:g}"
            state += f", last {group.rows} rows" if group.rows else ""
            state += f", scaled by {group.scale:g}" if group.scale != 1 else ""
            rows.append((group.pattern, state, len(paths), sum(math.prod(shapes[p].shape) for p in paths)))
        return rows


def assign(paths: Sequence[str], groups: Sequence[Group]) -> Assignment:
    """Give every parameter path its group; first match wins.

    Raises:
      UserError: a path that no pattern covers, or a pattern that matches nothing.
    """
    compiled = []
    for group in groups:
        try:
            compiled.append(re.compile(group.pattern))
        except re.error as error:
            raise UserError(f"Freeze pattern '{group.pattern}' is not a regular expression: {error}.") from error
    index: dict[str, int] = {}
    for path in paths:
        for i, pattern in enumerate(compiled):
            if pattern.match(path):
                index[path] = i
                break
        else:
            raise UserError(f"No freeze pattern covers parameter '{path}'; add a last group with pattern '.*'.")
    for i, group in enumerate(groups):
        if i not in index.values() and not any(compiled[i].match(p) for p in paths):
            hint = nearest(group.pattern, {p.rpartition("/")[0] for p in paths})
            raise UserError(f"Freeze pattern '{group.pattern}' matches no parameter.{hint}")
    return Assignment(tuple(groups), index)


def split(
    params: Params, assignment: Assignment, frozen_dtype: jnp.dtype, axes: Mapping[str, Axes]
) -> tuple[Params, Params]:
    """(trainable in their own dtype, frozen in the compute dtype); ``api.combine`` puts them together again.

    A parameter of whose vocabulary only the last rows learn is in both: those rows, and the whole. What has a ``scale``
    is multiplied by it.

    Args:
      axes: logical axes of every parameter.

    Raises:
      UserError: a group with ``rows`` holds a parameter that has no vocabulary axis, or a shorter one.
    """
    trainable, frozen = {}, {}
    for path, x in params.items():
        group = assignment.groups[assignment.index[path]]
        rows = group.rows
        if assignment.trainable(path):
            learns = _last(path, x, rows, axes[path]) if rows else x
            trainable[path] = learns if group.scale == 1 else (learns * group.scale).astype(x.dtype)
        if rows or not assignment.trainable(path):
            frozen[path] = x.astype(frozen_dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return trainable, frozen


def _last(path: str, x: jax.Array, rows: int, axes: Axes) -> jax.Array:
    if "vocab" not in axes:
        raise UserError(f"optim.groups: '{path}' has no vocabulary, so its group cannot have rows={rows}.")
    axis = axes.index("vocab")
    if rows >= x.shape[axis]:
        raise UserError(f"optim.groups: rows={rows} is all of the {x.shape[axis]} rows of '{path}'; use rows=0.")
    return jax.lax.slice_in_dim(x, x.shape[axis] - rows, x.shape[axis], axis=axis)


def schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to ``final`` times the peak (the released configuration: 5 % and 0)."""
    warm = max(1, round(config.warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        config.learning_rate / warm,
        config.learning_rate,
        warm,
        max(steps, warm + 1),
        config.learning_rate * config.final,
    )


def optimiser(
    config: OptimConfig, assignment: Assignment, steps: int, axes: Mapping[str, Axes] | None = None
) -> optax.GradientTransformation:
    """Clip by global norm, then Adam(W) or Muon with each group's learning-rate factor and weight decay, of trainables.

    Args:
      axes: logical axes of every parameter, for Muon.
    """
    rate = schedule(config, steps)
    known = {} if config.method != "muon" or axes is None else {p: matrix(p, a) for p, a in axes.items()}
    matrices = {path: shape for path, shape in known.items() if shape is not None}
    labels = {p: f"{i}{' muon' * (p in matrices)}" for p, i in assignment.index.items() if assignment.trainable(p)}

    def group_tx(group: Group, by_muon: bool) -> optax.GradientTransformation:
        factor = group.learning_rate or 0.0
        return optax.chain(
            scale_by_muon(matrices) if by_muon else optax.scale_by_adam(*config.betas, eps=config.eps),
            optax.add_decayed_weights(group.weight_decay) if group.weight_decay else optax.identity(),
            optax.scale_by_learning_rate(lambda count: rate(count) * factor),
        )

    transforms = {
        label: group_tx(assignment.groups[int(label.split()[0])], label.endswith("muon"))
        for label in sorted(set(labels.values()))
    }
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.partition(transforms, labels))
