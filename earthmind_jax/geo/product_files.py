"""The files of a product: in a folder, or in a zip or tar file as it was downloaded, which is not unpacked."""

from __future__ import annotations

import itertools
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO

from earthmind_jax.errors import UserError

ARCHIVES = (".zip", ".tar")
MOST_FILES = 20_000  # of one product; those of ESA and USGS have some hundred
DEEPEST = 6  # folders, in which a product's files lie
LARGEST_TEXT = 1 << 26  # bytes of a metadata file
MOST_RATIO = 200  # bytes out of one byte in: images and metadata reach 20
SMALL = 1 << 26  # bytes; below them a ratio tells nothing, and inflating costs nothing
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError)


@dataclass(frozen=True, kw_only=True)
class Files:
    """What lies in a folder or an archive.

    Attributes:
      path: the folder or archive as it was given; ``name`` is its own.
      names: of the files, with ``/`` between folders, from ``base`` on.
      base: folder within the archive or below the path ("" or ending in ``/``).
      packed: some of them have to be inflated from their start to be read anywhere.
    """

    path: str
    names: tuple[str, ...]
    base: str = ""
    packed: bool = False

    @property
    def name(self) -> str:
        return os.path.basename(self.base.rstrip("/") or os.path.abspath(self.path))

    @property
    def archive(self) -> bool:
        """Whether they lie in a zip or tar file."""
        return os.path.isfile(self.path)

    def below(self, folder: str) -> Files:
        """The files of one folder alone; ``folder`` ends in ``/``."""
        names = tuple(name.removeprefix(folder) for name in self.names if name.startswith(folder))
        return replace(self, names=names, base=self.base + folder)

    def top(self) -> list[str]:
        """The files that lie in no further folder."""
        return [name for name in self.names if "/" not in name]

    def gdal(self, name: str) -> str:
        """What GDAL opens the file by."""
        path = os.path.abspath(self.path)
        if not self.archive:
            return os.path.join(path, self.base + name)
        kind = "zip" if zipfile.is_zipfile(path) else "tar"
        return f"/vsi{kind}/{{{path}}}/{self.base}{name}"

    def shown(self, name: str) -> str:
        """What messages call the file."""
        return os.path.join(self.path, self.base + name)

    def read(self, name: str) -> bytes:
        """A small file's bytes; UserError where it cannot be read, or is none of the small ones."""
        try:
            with _opened(self.path, self.base + name) as file:
                data = file.read(LARGEST_TEXT + 1)
        except (OSError, KeyError, *_BROKEN) as error:
            raise UserError(f"{self.shown(name)} cannot be read ({error}); copy it again.") from error
        if len(data) > LARGEST_TEXT:
            raise UserError(f"{self.shown(name)} has more than {LARGEST_TEXT >> 20} MiB; metadata are smaller.")
        return data


def files_of(path: str) -> Files:
    """What lies below a folder, or in a zip or tar file.

    Raises:
      UserError: an archive that is damaged or unsafe, or far more files than a product has.
    """
    found = _folder(path) if os.path.isdir(path) else _members(path)
    names = tuple(itertools.islice(found, MOST_FILES + 1))
    if len(names) > MOST_FILES:
        raise UserError(f"{path} holds more than {MOST_FILES} files, which no product does; name the one to read.")
    return Files(path=path, names=tuple(sorted(names)), packed=_is_packed(path))


def _is_packed(path: str) -> bool:
    if os.path.isdir(path) or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(info.compress_type != zipfile.ZIP_STORED and info.file_size > SMALL for info in archive.infolist())


def _folder(path: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error

    for folder, inner, names in os.walk(path, onerror=fail):
        here = os.path.relpath(folder, path)
        parts = [] if here == "." else here.split(os.sep)
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if len(parts) < DEEPEST else []
        # A pipe would be waited for without end.
        kept = (name for name in names if not name.startswith(".") and os.path.isfile(os.path.join(folder, name)))
        yield from ("/".join((*parts, name)) for name in kept)


def _members(path: str) -> Iterator[str]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        _require_honest(path, info)
                        yield from _safe(path, info.filename)
            return
        with tarfile.open(path, "r:") as archive:  # a packed one could only be read from its start
            for member in archive:
                if member.isfile():
                    yield from _safe(path, member.name)
    except (OSError, *_BROKEN) as error:
        packed = tarfile.is_tarfile(path) if os.path.isfile(path) else False
        what = "is packed as a whole; unpack it" if packed else f"is no whole zip or tar file ({error}); copy it again"
        raise UserError(f"{path} {what}.") from error


def _safe(path: str, name: str) -> Iterator[str]:
    """The name of a member; none of what macOS adds."""
    name = name.removeprefix("./")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise UserError(f"{path} holds '{name}', a name that leads out of it; it is not safe to read.")
    if parts[0] != "__MACOSX" and not parts[-1].startswith("."):
        yield name


def _require_honest(path: str, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UserError(f"{path} is locked with a password; unpack it first.")
    if info.file_size > max(SMALL, info.compress_size * MOST_RATIO):
        raise UserError(
            f"{path} holds '{info.filename}', which would unpack to more than {MOST_RATIO} times its size; it is "
            "packed to fill memory."
        )


@contextmanager
def _opened(path: str, name: str) -> Iterator[IO[bytes]]:
    if os.path.isdir(path):
        with open(os.path.join(path, name), "rb") as file:
            yield file
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            spelt = name if name in packed.namelist() else f"./{name}"
            with packed.open(spelt) as file:
                yield file
    else:
        with tarfile.open(path, "r:") as archive:
            spelt = name if name in archive.getnames() else f"./{name}"
            file = archive.extractfile(spelt)
            assert file is not None  # only regular files are listed
            yield file
