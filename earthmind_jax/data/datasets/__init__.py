"""Published data sets, read from their official layout on disk: one file each, ``DATASET`` its only public name.

Every reader gives the records of :mod:`earthmind_jax.data.records`, one :class:`~earthmind_jax.data.records.Line` for
each entry of the data set, while it reads (nothing is unpacked or listed as a whole before); an entry that is broken is
a line with its problems. The name of a data set is the name of its file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from earthmind_jax.config import one_of
from earthmind_jax.data.archives import is_archive
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
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no directory '{root}'; give the folder that holds the data set.")
    matches = [name for name in names() if get(name).found(root)]
    if len(matches) == 1:
        return matches[0]
    packed = next((path.name for path in sorted(root.iterdir()) if is_archive(path)), None)
    if packed and not matches:
        raise UserError(
            f"'{root}' holds archives ('{packed}') and no data set; unpack them: earthmind data unpack {root}"
        )
    what = f"could be {' or '.join(matches)}" if matches else f"has the layout of none of {', '.join(names())}"
    raise UserError(f"'{root}' {what}; name the data set, and compare its layout with: earthmind data list")


def read(root: str | Path, name: str | None = None, split: str | None = None) -> Iterator[Line]:
    """The lines of a data set (recognised where not named; its first split where none is given)."""
    dataset = get(name or recognise(root))
    if not Path(root).is_dir():
        raise UserError(f"There is no directory '{root}'; give the folder that holds {dataset.title}.")
    split = split or dataset.splits[0]
    one_of(f"split of {dataset.title}", split, dataset.splits)
    return _readable(dataset.read(Path(root), split), root)


def _readable(found: Iterator[Line], root: str | Path) -> Iterator[Line]:
    try:
        yield from found
    except OSError as error:
        raise UserError(f"'{root}' cannot be read: {error}.") from error


def lines(path: str | Path, name: str = "", split: str = "") -> Iterator[Line]:
    """The lines of a record file, or of a data set in a directory (see :func:`read`)."""
    if Path(path).is_dir() or name or split:
        return read(path, name or None, split or None)
    return read_lines(path)
