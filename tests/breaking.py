"""Ways to break the files of a data set, and what its reader must then say."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from earthmind_jax.data import datasets
from earthmind_jax.data.read import picture_header

Break = Callable[[Path], Any]


def edit(root: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change the values of a JSON file or pickle; ``change`` returns new ones, or nothing after changing these."""
    path = root / file
    if path.suffix == ".p":
        values = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(change(values) or values))
    else:
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(values) or values), encoding="utf-8")


def editing(file: str, change: Callable[[Any], Any]) -> Break:
    return lambda root: edit(root, file, change)


def setting(file: str, *keys: str | int, to: Any) -> Break:
    """One value of a JSON file or pickle becomes ``to``."""

    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return editing(file, change)


def replacing(file: str, old: str, new: str) -> Break:
    """Some text of a file becomes another."""

    def change(root: Path) -> None:
        text = (root / file).read_text(encoding="utf-8")
        assert old in text
        (root / file).write_text(text.replace(old, new), encoding="utf-8")

    return change


def removing(file: str) -> Break:
    return lambda root: (root / file).unlink()


def cutting(file: str, share: float = 0.5) -> Break:
    """The end of a file is lost."""

    def change(root: Path) -> None:
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(len(data) * share)])

    return change


def writing(file: str, data: bytes) -> Break:
    return lambda root: (root / file).write_bytes(data)


def check_line(root: Path, name: str, split: str, change: Break, wanted: str) -> None:
    """After ``change`` an entry is a line without a record that names the file and says what is ``wanted``; the other
    entries are as they were."""
    before = {line.record.id: line.record for line in datasets.read(root, name, split)}
    change(root)
    picture_header.cache_clear()
    after = list(datasets.read(root, name, split))
    told = [f"{line.where}{problem}" for line in after for problem in line.problems]
    assert any(re.search(wanted, one) for one in told), told
    assert all(str(root) in one for one in told)
    assert all((line.record is None) == bool(line.problems) for line in after)
    assert all(before.get(line.record.id) == line.record for line in after if line.record is not None)
