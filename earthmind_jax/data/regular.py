"""Files that can be read at all: a pipe in place of a file would be waited for without end."""

from __future__ import annotations

from pathlib import Path

from earthmind_jax.errors import UserError


def require_regular(path: Path) -> Path:
    """The path; UserError where something is there that is no file. One that is missing is told by whoever opens it."""
    if path.exists() and not path.is_file():
        raise UserError(f"'{path}' is a directory, pipe or device and no file; put the file in its place.")
    return path
