"""Files of data sets that lie in folders: names in a fixed order, small files read with a clear message."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets._entry import listed
from earthmind_jax.data.prompts import SEGMENTATION_ANSWERS, SEGMENTATION_QUESTIONS
from earthmind_jax.data.regular import require_regular
from earthmind_jax.errors import UserError


def stems(folder: Path, endings: Sequence[str]) -> list[str]:
    """File names in a folder with one of the endings (any case), in order, but hidden ones."""
    return [name for name in listed(folder) if name.lower().endswith(tuple(endings))]


def subfolder(root: Path, *names: str) -> Path | None:
    """The first of some folders that is there."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def require_folder(root: Path, title: str, *names: str) -> Path:
    """The first of some folders that is there; UserError where none is."""
    found = subfolder(root, *names)
    if found is None:
        raise UserError(f"'{root}' has no folder {' or '.join(names)}, which {title} keeps its files in.")
    return found


def read_names(path: Path) -> list[str]:
    """The lines of a text file of names that are not empty; UserError where it cannot be read."""
    try:
        lines = require_regular(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as text: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def ask_mask(phrase: str, name: str, mask: Any) -> dict[str, Any]:
    """A turn that asks for a mask in the published words; which of them follows from ``name`` and the phrase alone."""
    number = zlib.crc32(f"{name} {phrase}".encode())
    question = SEGMENTATION_QUESTIONS[number % len(SEGMENTATION_QUESTIONS)].format(c=phrase)
    answer = SEGMENTATION_ANSWERS[number // 97 % len(SEGMENTATION_ANSWERS)]
    return {"question": question, "answer": answer, "mask": mask}
