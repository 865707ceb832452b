"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """``text`` is the table for people."""

    name: str
    passed: bool
    text: str
