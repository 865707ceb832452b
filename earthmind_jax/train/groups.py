"""Which parameters learn: the freeze table, and the optimiser it implies."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from earthmind_jax.config import Group, OptimConfig, nearest
from earthmind_jax.errors import UserError
from earthmind_jax.nn.param import Axes
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


def split(params: Params, assignment: Assignment, frozen_dtype: jnp.dtype) -> tuple[Params, Params]:
    """(trainable in their own dtype, frozen in the compute dtype)."""
    trainable = {p: x for p, x in params.items() if assignment.trainable(p)}
    frozen = {
        p: x.astype(frozen_dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for p, x in params.items()
        if not assignment.trainable(p)
    }
    return trainable, frozen


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


def matrix_axes(path: str, axes: Axes) -> MuonDimensionNumbers | None:
    """How a parameter is a matrix (or a stack of them), from its logical axes; None where it is none.

    Maps that see pixels or words (patch embedding, token table, vocabulary head) are not treated as matrices, as is
    usual with Muon. Heads stay together: query, key and value maps give heads x head, output maps take them.
    """
    if not path.endswith("kernel") or "patch_embed" in path or "vocab" in axes or len(axes) < 2:
        return None
    stacked = axes[0] == "layers" or (len(axes) == 3 and axes[0] is None)
    places = tuple(range(int(stacked), len(axes)))
    gives_heads = axes[places[1]] in ("heads", "kv_heads")
    split = places[1] if gives_heads else places[-1]
    return MuonDimensionNumbers(
        reduction_axis=tuple(i for i in places if i < split), output_axis=tuple(i for i in places if i >= split)
    )


def optimiser(
    config: OptimConfig, assignment: Assignment, steps: int, axes: Mapping[str, Axes] | None = None
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon with each group's learning-rate factor and weight decay; trainables only.

    Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section
    2.2), so that both take the same learning rates.

    Args:
      axes: logical axes of every parameter, for Muon.
    """
    rate = schedule(config, steps)
    labels = {p: str(i) for p, i in assignment.index.items() if assignment.trainable(p)}

    def matrices(params: Params) -> dict[str, MuonDimensionNumbers | None]:
        assert axes is not None
        return {path: matrix_axes(path, axes[path]) for path in params}

    def group_tx(group: Group) -> optax.GradientTransformation:
        factor = group.learning_rate or 0.0
        if config.method == "muon":
            return muon(
                lambda count: rate(count) * factor,
                weight_decay=group.weight_decay,
                adam_b1=config.betas[0],
                adam_b2=config.betas[1],
                adam_weight_decay=group.weight_decay,
                muon_weight_dimension_numbers=matrices,
                consistent_rms=0.2,
            )
        return optax.chain(
            optax.scale_by_adam(*config.betas, eps=config.eps),
            optax.add_decayed_weights(group.weight_decay) if group.weight_decay else optax.identity(),
            optax.scale_by_learning_rate(lambda count: rate(count) * factor),
        )

    used = sorted(set(labels.values()))
    transforms = {i: group_tx(assignment.groups[int(i)]) for i in used}
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.partition(transforms, labels))
