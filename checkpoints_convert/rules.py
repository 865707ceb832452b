"""What a checkpoint layout is: a table of rules, the tensors that it leaves behind, and why.

A rule names a source tensor, the parameter(s) it becomes and how (:mod:`checkpoints_convert.transforms`). ``{i}`` in a
name stands for a number. When the target has the same index the layers stay apart (``blocks.{i}`` to ``block_{i}``);
when it has not, each layer is one slice of a stacked parameter, along its first axis. A rule whose target the model
does not have is inactive, and its source must then be among the ignored tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_FIELD = re.compile(r"\{(\w+)\}")


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A name pattern as a regular expression: ``{i}`` is a number, ``*`` is anything."""
    parts = [re.escape(part).replace(r"\*", ".*") for part in _FIELD.split(pattern)]
    for position in range(1, len(parts), 2):
        parts[position] = rf"(?P<{parts[position]}>0|[1-9]\d*)"
    return re.compile("".join(parts))


def match(pattern: str, name: str) -> dict[str, int] | None:
    """The indices for which ``pattern`` is ``name``, or None."""
    found = compile_pattern(pattern).fullmatch(name)
    return None if found is None else {key: int(value) for key, value in found.groupdict().items()}


@dataclass(frozen=True)
class Rule:
    """``source`` becomes ``target`` (several for a split) through the transform ``how``; "" leaves it as it is."""

    source: str
    target: str | tuple[str, ...]
    how: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """The target patterns, as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def stacked(self) -> tuple[str, ...]:
        """Indices of the source that the target has not: they run along the leading axes of the target."""
        return tuple(name for name in _FIELD.findall(self.source) if f"{{{name}}}" not in self.targets[0])


@dataclass(frozen=True)
class Ignored:
    """Source tensors (``*`` is anything) that no parameter takes, and the reason that a report gives."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """A published way to name the tensors of a checkpoint.

    Attributes:
      name: what reports call it.
      rules, ignored: the tables.
      has: patterns of which every one must occur for a file to be of this layout.
      lacks: patterns of which none may occur.
      covers: the parameters (patterns) that this layout brings; the rest of a model comes from elsewhere.
      family: the language model family, where the layout holds one.
      fresh: parameters (as patterns) that a checkpoint of this layout may lack, e.g. those that its training froze.
    """

    name: str
    rules: tuple[Rule, ...]
    has: tuple[str, ...]
    covers: tuple[str, ...]
    ignored: tuple[Ignored, ...] = ()
    lacks: tuple[str, ...] = ()
    family: str = ""
    fresh: tuple[Ignored, ...] = ()

    def fits(self, names: Iterable[str]) -> bool:
        """Whether the tensor ``names`` are of this layout."""
        names = list(names)

        def occurs(pattern: str) -> bool:
            return any(match(pattern, name) is not None for name in names)

        return all(map(occurs, self.has)) and not any(map(occurs, self.lacks))


def under(prefix: str, rules: Iterable[Rule], target: str = "") -> tuple[Rule, ...]:
    """The same rules for names that start with ``prefix``, and parameters that start with ``target``."""
    return tuple(
        replace(rule, source=prefix + rule.source, target=tuple(target + path for path in rule.targets))
        for rule in rules
    )


def ignored_under(prefix: str, ignored: Iterable[Ignored]) -> tuple[Ignored, ...]:
    """The same ignored tensors for names that start with ``prefix``."""
    return tuple(replace(entry, pattern=prefix + entry.pattern) for entry in ignored)
