"""Published data sets, read from their official layout on disk: one file each, ``DATASET`` its only public name.

Every reader gives the records of :mod:`earthmind_jax.data.records`, one :class:`~earthmind_jax.data.records.Line` for
each entry of the data set, while it reads (nothing is unpacked or listed as a whole before); an entry that is broken is
a line with its problems. The name of a data set is the name of its file.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from earthmind_jax.config import one_of
from earthmind_jax.data.archives import MACOS, is_archive
from earthmind_jax.data.records import Line, read_lines
from earthmind_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published data set.

    Attributes:
      title: its name as published.
      splits: those it has, the usual training split first.
      read: lines of a split of the data set in a directory; UserError where the directory lacks what the split needs.
      found: whether a directory has this layout (a look at a few names, no listing).
      layout: the files it expects, as a sketch for messages and documentation.
      licence: what its publishers ask for, in a few words.
      source: where it was published.
    """

    title: str
    splits: tuple[str, ...]
    read: Callable[[Path, str], Iterator[Line]]
    found: Callable[[Path], bool]
    layout: str
    licence: str
    source: str


def names() -> tuple[str, ...]:
    """The data sets there are."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in modules if hasattr(importlib.import_module(f"{__name__}.{name}"), "DATASET")))


def get(name: str) -> Dataset:
    """The data set of a name; UserError where there is none."""
    one_of("data set", name, names())
    return importlib.import_module(f"{__name__}.{name}").DATASET


def recognise(root: str | Path) -> str:
    """The name of the data set in a directory; UserError where its layout is none or several of those known."""
    with _permitted(root):
        return _recognised(Path(root))


def _not_packed(path: str | Path) -> None:
    if is_archive(Path(path)):
        raise UserError(f"'{path}' is an archive; unpack it first: earthmind data unpack {path}")


def _recognised(root: Path) -> str:
    _not_packed(root)
    if not root.is_dir():
        raise UserError(f"There is no directory '{root}'; give the folder that holds the data set.")
    matches = _matches(root)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"'{root}' could be {' or '.join(matches)}; name the data set with --as.")
    packed = next((path.name for path in sorted(root.iterdir()) if is_archive(path)), None)
    if packed:
        raise UserError(
            f"'{root}' holds archives ('{packed}') and no data set; unpack them: earthmind data unpack {root}"
        )
    records = next((path for path in sorted(root.iterdir()) if path.suffix == ".jsonl" and path.is_file()), None)
    if records:
        raise UserError(f"'{root}' is no data set that is known; for the record file in it give '{records}'.")
    for place in _around(root):
        if near := _matches(place):
            raise UserError(f"'{root}' is no data set, but '{place}' has the layout of {near[0]}; give that folder.")
    raise UserError(
        f"'{root}' has the layout of none of {', '.join(names())}; name the data set with --as, and compare its layout "
        "with: earthmind data list"
    )


def _matches(root: Path) -> list[str]:
    return [name for name in names() if get(name).found(root)]


def _around(root: Path) -> Iterator[Path]:
    """Folders that may have been meant: the one above, those below, and those below an only one."""
    yield root.absolute().parent
    for _ in range(3):
        folders = (path for path in root.iterdir() if path.is_dir() and path.name != MACOS and path.name[0] != ".")
        below = sorted(itertools.islice(folders, 100))
        yield from below
        if len(below) != 1:
            return
        root = below[0]


def read(root: str | Path, name: str | None = None, split: str | None = None) -> Iterator[Line]:
    """The lines of a data set (recognised where not named; its first split where none is given)."""
    dataset = get(name or recognise(root))
    split = split or dataset.splits[0]
    one_of(f"split of {dataset.title}", split, dataset.splits)
    with _permitted(root):
        _not_packed(root)
        if not Path(root).is_dir():
            raise UserError(f"There is no directory '{root}'; give the folder that holds {dataset.title}.")
        return _readable(dataset.read(Path(root), split), root)


def _readable(found: Iterator[Line], root: str | Path) -> Iterator[Line]:
    with _permitted(root):
        yield from found


@contextmanager
def _permitted(root: str | Path) -> Iterator[None]:
    """What keeps a folder from being looked at, mostly its permissions, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"'{error.filename or root}' cannot be read: {error.strerror or error}.") from error


def lines(path: str | Path, name: str = "", split: str = "") -> Iterator[Line]:
    """The lines of a record file, or of a data set in a directory (see :func:`read`)."""
    with _permitted(path):
        _not_packed(path)
        if Path(path).is_dir() or name or split:
            return read(path, name or None, split or None)
    return read_lines(path)
