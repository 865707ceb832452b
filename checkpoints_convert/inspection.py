"""What a published checkpoint holds, from its headers alone."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from checkpoints_convert.adapters import pairs
from checkpoints_convert.assemble import assemble, open_published
from checkpoints_convert.convert import AnyConfig, configure, whole
from checkpoints_convert.layouts import LAYOUTS, detect
from checkpoints_convert.layouts.lora import with_adapters
from checkpoints_convert.plan import source_tree
from checkpoints_convert.reader import Source, TensorInfo
from checkpoints_convert.rules import Layout, match
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind

SHOWN = 20  # names of one kind in the report; --json has all


def inspect_source(path: str | Path) -> dict[str, Any]:
    """The facts about the checkpoint ``path``, as plain values.

    They are ``layout``, ``family``, ``files``, ``tensors``, ``parameters``, ``bytes``, ``dtypes``, ``components``,
    ``missing`` and ``extra`` (name -> nearest name or ""), ``left out`` (name -> where it is to come from), ``wrong``
    (name -> found and needed shape), ``ignored`` (name -> reason) and ``problem``, a sentence where the configuration
    cannot be used.

    Raises:
      UserError: the file cannot be read.
    """
    source = open_published(path)
    layout = detect(source.index)
    known = layout or max(LAYOUTS, key=lambda one: sum(_fits(one, name) for name in source.index))
    facts: dict[str, Any] = {
        "path": str(path),
        "layout": layout.name if layout else None,
        "nearest layout": None if layout else known.name,
        "family": known.family or None,
        "files": {file.name: file.stat().st_size for file in source.files},
        "tensors": len(source.index),
        "parameters": sum(math.prod(info.shape) for info in source.index.values()),
        "bytes": sum(info.nbytes for info in source.index.values()),
        "dtypes": dict(Counter(info.dtype.name for info in source.index.values())),
        "components": _components(source.index),
        "problem": None,
    }
    if pairs(source):
        known = with_adapters(known)
    config = None
    if layout is not None:
        try:
            config = configure(assemble(source))[1]
        except UserError as error:
            facts["problem"] = str(error)
    return facts | _differences(source, known, config)


def _differences(source: Source, layout: Layout, config: AnyConfig | None) -> dict[str, Any]:
    found = source.index
    reasons = {n: reason for n in found if (reason := _ignored(layout, n)) is not None}
    if config is None:  # without it nobody knows what must be there
        taken = {name for name in found if any(match(rule.source, name) is not None for rule in layout.rules)}
        extra = [name for name in found if name not in taken and name not in reasons]
        patterns = [rule.source for rule in layout.rules]
        return {
            "missing": {},
            "left out": {},
            "extra": {name: _nearest(name, patterns) for name in extra},
            "wrong": {},
            "ignored": {name: reason for name, reason in reasons.items() if name not in taken},
        }
    targets = {
        path: (shape.shape, None)
        for path, shape in earthmind.shapes(whole(config)).items()
        if any(fnmatchcase(path, pattern) for pattern in layout.covers)
    }
    wanted = source_tree(targets, layout.rules)
    freely = {path: shape for path, shape in targets.items() if any(fnmatchcase(path, x.pattern) for x in layout.fresh)}
    left = dict.fromkeys((n for n in source_tree(freely, layout.rules) if n not in found), "from the base models")
    missing = [n for n in wanted if n not in found and n not in left]
    extra = [n for n in found if n not in wanted and n not in reasons]
    return {
        "missing": {name: _nearest(name, extra or list(found)) for name in missing},
        "left out": left,
        "extra": {name: _nearest(name, missing or list(wanted)) for name in extra},
        "wrong": {
            name: [list(found[name].shape), list(shape)]
            for name, (shape, _) in wanted.items()
            if name in found and found[name].shape != tuple(shape)
        },
        "ignored": {name: reason for name, reason in reasons.items() if name not in wanted},
    }


def report(facts: dict[str, Any]) -> str:
    """The same for people."""
    layout = facts["layout"] or f"none that is known (nearest: {facts['nearest layout']})"
    lines = [
        f"{facts['path']}",
        f"  layout      {layout}",
        f"  tensors     {facts['tensors']:,} with {facts['parameters']:,} numbers, {facts['bytes'] / 1e9:.2f} GB",
        f"  dtypes      {', '.join(f'{name} ({count})' for name, count in facts['dtypes'].items())}",
        f"  files       {', '.join(facts['files'])}",
        *(f"  {name:<24} {count:>15,} numbers" for name, count in facts["components"].items()),
    ]
    lines += [f"  problem     {facts['problem']}"] if facts["problem"] else []
    for title in ("missing", "extra"):
        names = list(facts[title].items())
        lines += [f"  {title}: {len(names)}"] if names else []
        lines += [f"    {name}" + (f" (nearest: {near})" if near else "") for name, near in names[:SHOWN]]
        lines += [f"    and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    lines += [f"  {name} has the shape {found}, needed {wanted}" for name, (found, wanted) in facts["wrong"].items()]
    for title in ("left out", "ignored"):
        for reason, count in Counter(facts[title].values()).items():
            lines.append(f"  {title}: {count} ({reason})")
    fits = facts["layout"] and not (facts["missing"] or facts["extra"] or facts["wrong"] or facts["problem"])
    return "\n".join([*lines, "  can be converted" if fits else "  cannot be converted as it is"])


def _components(index: dict[str, TensorInfo]) -> dict[str, int]:
    """Numbers below each first part of the names."""
    counts: Counter[str] = Counter()
    for name, info in index.items():
        counts[name.partition(".")[0]] += math.prod(info.shape)
    return dict(counts.most_common())


def _fits(layout: Layout, name: str) -> bool:
    return any(match(rule.source, name) is not None for rule in layout.rules) or _ignored(layout, name) is not None


def _ignored(layout: Layout, name: str) -> str | None:
    return next((entry.reason for entry in layout.ignored if match(entry.pattern, name) is not None), None)


def _nearest(name: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return close[0] if close else ""
