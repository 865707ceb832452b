"""The two ways a command ends badly."""

from __future__ import annotations


class UserError(Exception):
    """The request was wrong: one plain sentence naming the file, what is wrong and what to do. Exit code 2."""


class WorkError(Exception):
    """The request was right but the work failed (a full disk, a diverged run). Exit code 1."""
