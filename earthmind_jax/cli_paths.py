"""What the commands check before the work: where results go."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path

from earthmind_jax.errors import UserError

COMMAND: ContextVar[str] = ContextVar("command", default="")
"""The command as it was given, for the record."""


CACHE = "256"  # MB
RESULTS = re.compile(r"mask_\d+.*\.(tif|png|geojson)|masks\.gpkg|panel\.png|answer\.json|item\.json")


def limit_cache() -> None:
    """Of decoded blocks GDAL keeps few: a strip of a scene is far less than its own limit, a twentieth of the machine's
    memory."""
    os.environ.setdefault("GDAL_CACHEMAX", CACHE)


def check_directory(path: Path | None, *inputs: Path | None) -> None:
    """UserError where ``path`` cannot be a directory of results, or these would take the place of one of the
    ``inputs``: before the work rather than after it."""
    for file in filter(None, inputs):
        if path is not None and RESULTS.fullmatch(file.name) and file.resolve().parent == path.resolve():
            raise UserError(f"The results in {path} would overwrite the input {file}; choose another directory.")
    existing = path
    while existing is not None and not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing is not None and not existing.is_dir():
        raise UserError(f"{path} cannot be a directory: {existing} is a file; choose another place.")
    if existing is not None:
        _require_writable(existing, path)


def check_page(path: Path | None) -> None:
    """UserError where no page can be written to ``path``."""
    if path is not None and path.is_dir():
        raise UserError(f"{path} is a directory; name the page to write, such as {path / 'reason.html'}.")
    if path is not None and not path.absolute().parent.is_dir():
        raise UserError(f"The directory {path.absolute().parent} of {path.name} does not exist; create it first.")
    if path is not None and path.exists() and not _is_page(path):
        raise UserError(
            f"{path} is there already and is no page, which would take its place; name the page to write, such as "
            f"{path.stem}.html."
        )
    if path is not None:
        _require_writable(path.absolute().parent, path)


def _require_writable(folder: Path, path: Path | None) -> None:
    own = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    if not os.access(folder, os.W_OK | os.X_OK, **own):
        raise UserError(f"{path} cannot be written: {folder} is not yours to write to; choose another place.")


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def words_after(*options: tuple[Path, ...]) -> tuple[tuple[str, ...], tuple[tuple[Path, ...], ...]]:
    """(words, the options without them): words behind the files of an option, which the command line takes for further
    files. What is a file, or is written like one, is no word; nor is what comes first."""
    words: list[str] = []
    left = []
    for paths in options:
        count = len(paths)
        while count > 1 and _is_word(paths[count - 1]):
            count -= 1
        words += map(str, paths[count:])
        left.append(paths[:count])
    return tuple(words), tuple(left)


def _is_word(path: Path) -> bool:
    return len(path.parts) == 1 and not re.fullmatch(r"\.\w{2,5}", path.suffix) and not path.exists()
