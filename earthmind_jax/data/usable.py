"""The records that a run reads: the good lines of a file or data set, or none unless all are good."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from earthmind_jax.config import SensorConfig
from earthmind_jax.data.check import called, line_problems
from earthmind_jax.data.datasets import lines as read_any
from earthmind_jax.data.records import SENSORS, Record
from earthmind_jax.data.sources import Packed
from earthmind_jax.errors import UserError


def usable(
    path: str | Path, sensors: SensorConfig, report: Callable[[str], None], *, dataset: str = "", split: str = ""
) -> Sequence[Record] | Packed:
    """The records of the good lines; what is wrong with each other line goes to ``report``.

    Raises:
      UserError: no line is left.
    """
    broken = 0

    def good() -> Iterator[Record]:
        nonlocal broken
        for line in read_any(path, dataset, split):
            wrong = list(line_problems(line, sensors))
            broken += bool(wrong)
            for problem in wrong:
                report(f"skipped: {problem}")
            if line.record is not None and not wrong:
                yield line.record

    records = _held(path, good())
    if broken:
        report(f"skipped {broken} broken lines of '{path}', {len(records)} are left.")
    if not len(records):
        raise UserError(f"{called(path)} has no good line; see: earthmind data check {path}")
    return records


def sound(path: str | Path, *, dataset: str = "", split: str = "") -> Sequence[Record] | Packed:
    """The records of a file, or of a data set in a directory; UserError names the first broken line or missing file."""

    def records() -> Iterator[Record]:
        for line in read_any(path, dataset, split):
            if line.record is None:
                raise UserError(f"{line.where}{line.problems[0]}")
            yield line.record

    held = _held(path, records())
    if not len(held):
        raise UserError(f"{called(path)} has no records.")
    require_files(held)
    return held


def _held(path: str | Path, records: Iterator[Record]) -> Sequence[Record] | Packed:
    return Packed(records) if Path(path).is_dir() else list(records)


def require_files(records: Iterable[Record] | Packed) -> None:
    """UserError naming the first image that is not there."""
    for record in records:
        for name in SENSORS:
            for path in record.paths(name):
                if not path.exists():
                    raise UserError(f"{record.where}: field '{name}': there is no file '{path}'.")
