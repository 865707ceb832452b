"""What a check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-3  # of the largest number in a layer: float32 sums in another order, through all layers before it


@dataclass(frozen=True)
class Result:
    """``text`` is the table for people."""

    name: str
    passed: bool
    text: str


def compare(name: str, rows: Iterable[tuple[str, Any, np.ndarray]]) -> Result:
    """One line for each layer (its name, ours, theirs): the largest difference, and the largest of their numbers."""
    lines, passed = (
        [f"{name}: float32, this code beside transformers", f"{'layer':12} {'max error':>10} {'of':>10}"],
        True,
    )
    for layer, ours, theirs in rows:
        error, scale = float(np.abs(np.asarray(ours) - theirs).max()), float(np.abs(theirs).max())
        good = bool(error <= TOLERANCE * scale)  # False for NaN
        passed &= good
        lines.append(f"{layer:12} {error:10.2e} {scale:10.2e}" + ("" if good else "  <- FAILS"))
    return Result(name, passed, "\n".join(lines))
