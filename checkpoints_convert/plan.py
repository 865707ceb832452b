"""From rules to a plan, and the plan's two directions: import and export.

``build_plan`` is pure: names, shapes and dtypes in, a :class:`Plan` out. A plan is total. Every parameter is filled
exactly once or listed as fresh, every source tensor is used or listed as ignored, each with a reason; whatever does
not add up is reported at once, in one :class:`~earthmind_jax.errors.UserError`. ``apply_plan`` then moves one tensor at
a time, and ``export`` undoes it bit for bit.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from checkpoints_convert.rules import Ignored, Rule, match
from checkpoints_convert.transforms import Shape, ShapeMismatch, Transform, transform
from earthmind_jax.errors import UserError

Tree = Mapping[str, tuple[Shape, Any]]
"""Name to (shape, dtype). A dtype of None asks for that of the source."""


class Reader(Protocol):
    """Anything that gives tensors by name; see :mod:`checkpoints_convert.reader`."""

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Step:
    """One source tensor and the (path, index along the stacked axes) of each parameter that it fills."""

    source: str
    dtype: np.dtype
    how: Transform
    sizes: tuple[tuple[str, int], ...]
    places: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the source tensor."""
        return math.prod(self.how.source_shape(dict(self.sizes))) * self.dtype.itemsize

    def forward(self, array: np.ndarray) -> list[np.ndarray]:
        return self.how.forward(array, dict(self.sizes))

    def inverse(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self.how.inverse(arrays, dict(self.sizes))


@dataclass(frozen=True)
class Plan:
    """Steps in an order that opens few parameters at a time; ``ignored`` and ``fresh`` map names to reasons."""

    steps: tuple[Step, ...]
    targets: dict[str, tuple[Shape, np.dtype]]
    ignored: dict[str, str]
    fresh: dict[str, str]


def build_plan(
    targets: Tree,
    rules: Iterable[Rule],
    sources: Tree,
    *,
    ignored: Iterable[Ignored] = (),
    fresh: Iterable[Ignored] = (),
    what: str = "The checkpoint",
) -> Plan:
    """Match ``sources`` to ``targets`` by ``rules``; pure.

    Args:
      targets: the parameters of the model, path to (shape, dtype or None).
      sources: the tensors of the checkpoint, name to (shape, dtype).
      ignored: source tensors that may be left behind when no active rule takes them.
      fresh: parameters (as patterns) that may keep their initial value when no source fills them.
      what: how the error names the checkpoint.

    Raises:
      UserError: naming every source that is unknown or of the wrong shape, and every parameter not filled exactly once.
    """
    rules, ignored, fresh = tuple(rules), tuple(ignored), tuple(fresh)
    steps, left, problems = [], {}, []
    filled: dict[str, dict[tuple[int, ...], str]] = {}
    for name, (shape, dtype) in sources.items():
        fitting = [(rule, index) for rule in rules if (index := match(rule.source, name)) is not None]
        active = [(rule, index) for rule, index in fitting if any(path in targets for path in _paths(rule, index))]
        if len(active) > 1:
            problems.append(f"'{name}' fits {len(active)} rules: {', '.join(_paths(*pair)[0] for pair in active)}")
        elif active:
            step = _step(name, shape, dtype, *active[0], targets, filled, problems)
            steps += [step] if step is not None else []
        elif (reason := _reason(name, ignored)) is not None:
            left[name] = reason
        elif fitting:
            problems.append(f"'{name}' has no place: the model has no parameter '{_paths(*fitting[0])[0]}'")
        else:
            problems.append(f"'{name}' is unknown to this layout{_nearest(name, [rule.source for rule in rules])}")
    initial = {}
    for path, (shape, _) in targets.items():
        if path not in filled and (reason := _reason(path, fresh)) is not None:
            initial[path] = reason
        else:
            problems += _missing(path, shape, filled.get(path, {}), rules, sources)
    if problems:
        raise UserError(_report(what, problems))
    dtypes = {path: dtype for path, (_, dtype) in targets.items()}
    for step in steps:
        for path, _ in step.places:
            if targets[path][1] is None:
                dtypes[path] = step.dtype if dtypes[path] is None else np.promote_types(dtypes[path], step.dtype)
    order = {path: number for number, path in enumerate(sorted(targets))}
    steps.sort(key=lambda step: (order[step.places[0][0]], step.places[0][1]))
    shapes = {path: (tuple(shape), dtypes[path]) for path, (shape, _) in targets.items() if path not in initial}
    return Plan(tuple(steps), shapes, left, initial)


def source_tree(targets: Tree, rules: Iterable[Rule]) -> dict[str, tuple[Shape, Any]]:
    """The checkpoint that ``rules`` would turn into ``targets``: names, shapes and dtypes; pure.

    With it a model that never came from a checkpoint of this layout can be exported to one. Where several rules make a
    parameter, the first counts; parameters that no rule makes are left out.
    """
    sources: dict[str, tuple[Shape, Any]] = {}
    made: set[str] = set()
    for rule in rules:
        for path in [path for path in targets if path not in made]:
            index = match(rule.targets[0], path)
            paths = [] if index is None else _paths(rule, index)
            if index is None or not all(target in targets for target in paths):
                continue
            stack = tuple(targets[path][0])[: len(rule.stacked)]
            pieces = [tuple(targets[target][0])[len(stack) :] for target in paths]
            how = transform(rule.how or _identity(len(pieces[0])))
            try:
                shape = how.source_shape(how.solve(pieces))
            except ShapeMismatch as error:
                raise UserError(f"'{path}' cannot become '{rule.source}': {error}.") from error
            for layer in itertools.product(*map(range, stack)):
                name = rule.source.format(**index, **dict(zip(rule.stacked, layer, strict=True)))
                sources[name] = shape, targets[path][1]
            made |= set(paths)
    return sources


def apply_plan(plan: Plan, reader: Reader, place: Callable[[str, np.ndarray], Any] | None = None) -> dict[str, Any]:
    """Import: the parameters of ``plan``, read one source tensor at a time.

    Each stacked parameter is allocated when its first layer arrives and handed to ``place(path, array)`` (for
    instance to put it on devices) when its last has; what ``place`` gives back is the value.
    """
    params: dict[str, Any] = {}
    pending = _pieces(plan)
    for step in plan.steps:
        for (path, index), piece in zip(step.places, step.forward(reader.read(step.source)), strict=True):
            shape, dtype = plan.targets[path]
            if path not in params:
                params[path] = np.empty(shape, dtype)
            params[path][index] = piece.astype(dtype, copy=False)
            pending[path] -= 1
            if not pending[path] and place is not None:
                params[path] = place(path, params[path])
    return params


def export(plan: Plan, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Export: (source name, tensor) of every source that ``plan`` used, in the source's own layout and dtype."""
    missing = sorted({path for step in plan.steps for path, _ in step.places} - set(params))
    if missing:
        raise UserError(f"The parameters to export lack {', '.join(missing)}.")
    for step in plan.steps:
        pieces = [np.asarray(params[path][index]) for path, index in step.places]
        yield step.source, np.ascontiguousarray(step.inverse(pieces).astype(step.dtype, copy=False))


def _paths(rule: Rule, index: Mapping[str, int]) -> list[str]:
    return [path.format(**index) if "{" in path else path for path in rule.targets]


def _step(
    name: str,
    shape: Shape,
    dtype: Any,
    rule: Rule,
    index: Mapping[str, int],
    targets: Tree,
    filled: dict[str, dict[tuple[int, ...], str]],
    problems: list[str],
) -> Step | None:
    paths = _paths(rule, index)
    absent = [path for path in paths if path not in targets]
    if absent:
        problems.append(f"'{name}' fills {', '.join(paths)}, but the model has no '{', '.join(absent)}'")
        return None
    stack = tuple(index[key] for key in rule.stacked)
    for path in paths:
        if (other := filled.setdefault(path, {}).setdefault(stack, name)) != name:
            problems.append(f"'{path}' is filled twice, by '{other}' and '{name}'")
    wholes = [tuple(targets[path][0]) for path in paths]
    for whole in wholes:
        if len(whole) < len(stack) or any(i >= size for i, size in zip(stack, whole, strict=False)):
            problems.append(f"'{name}' is one layer too many: '{paths[0]}' has the shape {whole}")
            return None
    pieces = [whole[len(stack) :] for whole in wholes]
    how = transform(rule.how or _identity(len(pieces[0])))
    try:
        sizes = how.solve(pieces)
    except ShapeMismatch as error:
        problems.append(f"'{name}' cannot become '{paths[0]}': {error}")
        return None
    if how.source_shape(sizes) != tuple(shape):
        problems.append(
            f"'{name}' has the shape {tuple(shape)}, but '{', '.join(paths)}' needs {how.source_shape(sizes)}"
        )
        return None
    return Step(name, np.dtype(dtype), how, tuple(sizes.items()), tuple((path, stack) for path in paths))


def _identity(rank: int) -> str:
    axes = " ".join(f"a{number}" for number in range(rank))
    return f"{axes} -> {axes}"


def _missing(
    path: str, shape: Shape, found: Mapping[tuple[int, ...], str], rules: tuple[Rule, ...], sources: Tree
) -> list[str]:
    """Problems of a parameter that is not filled, or not at every layer."""
    makers = [(rule, index) for rule in rules for target in rule.targets if (index := match(target, path)) is not None]
    if not found:
        if not makers:
            return [f"'{path}' has no source: no rule of this layout makes it"]
        rule, index = makers[0]
        wanted = rule.source.format(**(dict.fromkeys(rule.stacked, 0) | index))
        return [f"'{path}' has no source: '{wanted}' is not in the checkpoint{_nearest(wanted, sources)}"]
    rank = len(next(iter(found)))
    expected = itertools.product(*(range(size) for size in shape[:rank]))
    gaps = [index for index in expected if index not in found]
    if not gaps:
        return []
    rule = next(rule for rule, _ in makers if match(rule.source, next(iter(found.values()))) is not None)
    wanted = [rule.source.format(**dict(zip(rule.stacked, gap, strict=True))) for gap in gaps]
    return [f"'{path}' lacks '{name}'{_nearest(name, sources)}" for name in wanted]


def _pieces(plan: Plan) -> dict[str, int]:
    count = dict.fromkeys(plan.targets, 0)
    for step in plan.steps:
        for path, _ in step.places:
            count[path] += 1
    return count


def _reason(name: str, entries: tuple[Ignored, ...]) -> str | None:
    return next((entry.reason for entry in entries if match(entry.pattern, name) is not None), None)


def _nearest(name: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [choice for choice in choices if choice != name], n=1, cutoff=0.6)
    return f" (nearest: '{close[0]}')" if close else ""


def _report(what: str, problems: list[str]) -> str:
    """All problems, those that differ only in a layer number once."""
    groups: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        groups.setdefault(re.sub(r"\d+", "#", problem), []).append(problem)
    lines = [
        f"  - {same[0]}" + (f" (and {len(same) - 1} more like it)" if len(same) > 1 else "") for same in groups.values()
    ]
    total = math.fsum(len(same) for same in groups.values())
    return f"{what} does not fit the model, {total:.0f} problem{'s'[: total > 1]}:\n" + "\n".join(lines)
