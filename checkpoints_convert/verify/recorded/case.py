"""One recorded case: what its directory holds, and the table of errors that comparing with it fills."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from checkpoints_convert.convert import convert
from checkpoints_convert.reader import Source, open_source
from earthmind_jax.types import Params

NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"


@dataclass(frozen=True)
class Case:
    """A directory with ``config.json``, ``inputs.npz``, ``outputs.npz``, ``README.md`` and, mostly, weights."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    @functools.cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path / "inputs.npz"))

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path / "outputs.npz"))

    @functools.cached_property
    def readme(self) -> str:
        return (self.path / "README.md").read_text()

    def tolerance(self, ours: float, *said: str) -> float:
        """``ours``, or what the README says if that is tighter.

        ``said``: patterns with ``{}`` where the number stands, e.g. ``"{} on hidden"``; the first that occurs counts.
        Where none does, the tolerance is at most the largest number of the README's sentence about it.
        """
        for pattern in said:
            found = re.search(pattern.replace("{}", f"({NUMBER})"), self.readme)
            if found:
                return min(ours, float(found.group(1)))
        sentence = re.search(r"^Tolerance:(.*)$", self.readme, re.MULTILINE)
        numbers = [float(x) for x in re.findall(NUMBER, sentence.group(1))] if sentence else []
        return min([ours, *([max(numbers)] if numbers else [])])

    @functools.cached_property
    def weights(self) -> Source:
        """The tensors of the case: its own file, or what ``_weights`` of its configuration says."""
        text = self.config.get("_weights", "weights.safetensors")
        base = re.match(r"\S*?weights\.safetensors", text)
        source = open_source(self.path / (base.group() if base else "weights.safetensors"))
        for names, path in re.findall(r"plus (.+?) of (\S*?weights\.safetensors)", text):
            prefixes = tuple(re.findall(r"([\w.]+)\*", names))
            source = source.merged(open_source(self.path / path).starting(*prefixes))
        return source

    def convert(self, source: Source | None = None, **options: Any) -> tuple[Any, Params]:
        """Configuration and parameters of the case, or of ``source``, through the real converter."""
        source = self.weights if source is None else source
        return convert(source, config=self.config, place=lambda path, array: jnp.asarray(array), **options)


@dataclass
class Row:
    """One compared output."""

    output: str
    error: float
    tolerance: float
    shape: tuple[int, ...]
    note: str = ""

    @property
    def passes(self) -> bool:
        return bool(self.error <= self.tolerance)  # False for NaN


@dataclass
class Report:
    """Errors of the outputs of one case; every output must be compared, or be listed as not yet supported."""

    case: Case
    rows: list[Row] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)

    def close(
        self,
        name: str,
        ours: Any,
        tolerance: float,
        *,
        where: np.ndarray | None = None,
        relative: float = 0.0,
        theirs: np.ndarray | None = None,
        note: str = "",
    ) -> None:
        """Compare output ``name``: the largest |ours - theirs| where ``where``, less ``relative`` times |theirs|.

        ``theirs`` is the recorded array unless it has to be brought into another form first. ``note`` is for the table.
        """
        theirs = np.asarray(self.case.outputs[name] if theirs is None else theirs)
        ours = np.asarray(ours)
        if ours.shape != theirs.shape:
            self.rows.append(Row(name, np.inf, tolerance, theirs.shape, f"ours has the shape {ours.shape}"))
            return
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        difference -= relative * np.abs(theirs.astype(np.float64))
        if where is not None:
            difference = difference[np.broadcast_to(where, difference.shape)]
        error = max(float(difference.max()), 0.0) if difference.size else 0.0
        if not np.isfinite(difference).all():
            error = np.nan
        self.rows.append(Row(name, error, tolerance, theirs.shape, note))

    def relative(self, name: str, ours: Any, tolerance: float, *, theirs: np.ndarray | None = None) -> None:
        """Compare output ``name`` by the largest |ours - theirs| over the largest |theirs|."""
        recorded = np.asarray(self.case.outputs[name] if theirs is None else theirs)
        scale = float(np.abs(recorded).max()) if recorded.size else 1.0
        self.close(name, np.asarray(ours) / (scale or 1.0), tolerance, theirs=recorded / (scale or 1.0))

    def exact(self, name: str, ours: Any, *, where: np.ndarray | None = None) -> None:
        """Compare output ``name``: equal where ``where``."""
        self.close(name, ours, 0.0, where=where)

    def not_yet(self, name: str, reason: str) -> None:
        """List output ``name`` as not yet supported."""
        self.unsupported[name] = reason

    def table(self) -> str:
        """The errors, one line for each output."""
        width = max([len(row.output) for row in self.rows] + [len(name) for name in self.unsupported] + [6])
        lines = [f"{self.case.name}", f"{'output':{width}}  {'max error':>10}  {'tolerance':>10}  shape"]
        for row in self.rows:
            numbers = f"{row.error:10.2e}  {row.tolerance:10.0e}"
            mark = "" if row.passes else "  <- FAILS"
            lines.append(f"{row.output:{width}}  {numbers}  {row.shape} {row.note}{mark}")
        lines += [f"{name:{width}}  not yet supported: {reason}" for name, reason in self.unsupported.items()]
        return "\n".join(lines)

    def problems(self) -> list[str]:
        """Outputs that differ too much, and outputs that nobody looked at."""
        seen = {row.output for row in self.rows} | set(self.unsupported)
        wrong = [row for row in self.rows if not row.passes]
        return [
            *(f"{row.output}: error {row.error:.2e} > {row.tolerance:.0e} {row.note}" for row in wrong),
            *(f"{name} was not compared" for name in self.case.outputs if name not in seen),
        ]


def channels_last(x: np.ndarray) -> np.ndarray:
    """[B C H W] -> [B H W C]."""
    return np.moveaxis(np.asarray(x), 1, -1)


def channels_second(x: Any) -> np.ndarray:
    """[B H W C] -> [B C H W]."""
    return np.moveaxis(np.asarray(x), -1, 1)
