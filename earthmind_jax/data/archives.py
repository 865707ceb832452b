"""Archives that data sets come in, unpacked where they lie and nowhere else.

What is in an archive was written by others: names that lead out of the directory, links, devices, files that were
packed to fill a disk, and a second file of the same name are refused before or while they are written, and nothing of
the archive is left then.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from earthmind_jax.errors import UserError, WorkError

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OTHER = (".tar.zst", ".7z", ".rar", ".gz")
MOST_FILES = 10_000_000
MOST_RATIO = 200  # bytes out of one byte in: pictures and measurements reach 20
SMALL = 1 << 26  # bytes; below them a ratio tells nothing (label maps of one class)
BLOCK = 1 << 20
MACOS = "__MACOSX"  # attributes that macOS adds to an archive, nothing of the data set
DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError,
    RuntimeError, NotImplementedError,
)  # fmt: skip

Entry = tuple[str, int, Callable[[], IO[bytes]]]
"""Name, declared size, what opens it."""


class AlreadyThere(UserError):
    """What an archive holds is in its directory already: it was unpacked before, or shares a name with another."""


def is_archive(path: Path) -> bool:
    """Whether there is a file with the ending of an archive, known here or not; hidden files are none of the user's."""
    return path.name.lower().endswith(ENDINGS + OTHER) and not path.name.startswith(".") and path.is_file()


def unpack(archive: Path, progress: Callable[[int], None] = lambda size: None) -> list[Path]:
    """Unpacks a zip or tar file into its own directory.

    Args:
      progress: called with the number of bytes written since.

    Returns:
      What came out at the top.

    Raises:
      AlreadyThere: as soon as a name at the top is found in the directory.
      UserError: an archive that is empty, damaged, unsafe or larger than the disk.
      WorkError: the writing failed.
    """
    name = archive.name.lower()
    if not archive.is_file():
        raise UserError(f"There is no archive '{archive}'.")
    if not name.endswith(ENDINGS):
        raise UserError(f"'{archive}' is not a zip or tar file that is read here; unpack it with its own program.")
    folder = archive.parent
    try:
        with _beside(archive) as beside:
            _write(archive, beside, progress)
            made = sorted(beside.iterdir())
            if not made:
                raise UserError(f"'{archive}' holds no files; get it again.")
            return [path.rename(folder / path.name) for path in made]
    except DAMAGED as error:
        raise UserError(f"'{archive}' is damaged, cut short or encrypted ({error}); get it again.") from error
    except OSError as error:
        # A place before the beginning of the file, a name that is a file and a folder, or one that is too long.
        if error.errno in (errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise UserError(f"'{archive}' is damaged ({error.strerror}); get it again.") from error
        raise WorkError(f"'{archive}' could not be unpacked ({error}); nothing of it was kept.") from error


@contextmanager
def _beside(archive: Path) -> Iterator[Path]:
    """An empty directory beside the archive, gone at the end; what a killed run left in it goes first."""
    path = archive.parent / f".unpacking-{archive.name}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write(archive: Path, folder: Path, progress: Callable[[int], None]) -> None:
    packed, room, total = archive.stat().st_size, shutil.disk_usage(folder).free, 0
    with _entries(archive) as entries:
        for count, (name, size, opened) in enumerate(entries, 1):
            if count > MOST_FILES:
                raise UserError(f"'{archive}' holds more than {MOST_FILES:,} files; that is no data set.")
            parts = _parts(archive, name)
            if parts[0] == MACOS:
                continue
            path = folder.joinpath(*parts)
            if (archive.parent / parts[0]).exists():
                raise AlreadyThere(f"'{archive}' holds '{parts[0]}', which is there already; move one of them away.")
            if path.exists():
                raise UserError(f"'{archive}' holds '{name}' twice; it is not safe to unpack.")
            _room(archive, total + size, packed, room)
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, path.open("wb") as target:
                # The size that is declared may be a lie.
                while block := source.read(BLOCK):
                    total += len(block)
                    _room(archive, total, packed, room)
                    target.write(block)
                    progress(len(block))


def _room(archive: Path, total: int, packed: int, room: int) -> None:
    if total > max(SMALL, packed * MOST_RATIO):
        raise UserError(
            f"'{archive}' would unpack to more than {MOST_RATIO} times its size; it is packed to fill a disk."
        )
    if total > room:
        raise UserError(f"'{archive}' needs more than the {room:,} bytes that are free beside it; make room.")


def _parts(archive: Path, name: str) -> tuple[str, ...]:
    """The parts of a name that stays inside the directory."""
    path = PurePosixPath(name)
    parts = path.parts
    unsafe = path.is_absolute() or not parts or ".." in parts
    if unsafe or any("\\" in part or ":" in part or "\0" in part for part in parts):
        raise UserError(
            f"'{archive}' holds '{name}', a name that leads out of the directory; it is not safe to unpack."
        )
    return parts


@contextmanager
def _entries(archive: Path) -> Iterator[Iterator[Entry]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield (_zip_entry(archive, file, info) for info in file.infolist() if not info.is_dir())
        return
    with tarfile.open(archive, "r|*") as file:
        yield (_tar_entry(archive, file, info) for info in file if not info.isdir())


def _zip_entry(archive: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    if (info.external_attr >> 16) & 0o170000 == 0o120000:
        raise UserError(f"'{archive}' holds the link '{info.filename}'; it is not safe to unpack.")
    return info.filename, info.file_size, lambda: file.open(info)


def _tar_entry(archive: Path, file: tarfile.TarFile, info: tarfile.TarInfo) -> Entry:
    if not info.isreg():
        raise UserError(f"'{archive}' holds '{info.name}', a link or device; it is not safe to unpack.")
    found: Any = file.extractfile(info)
    return info.name, info.size, lambda: found
