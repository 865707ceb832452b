"""The lines of a data set written as a record file: what a run reads is then one file that can be looked at and cut."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from earthmind_jax.data.records import SENSORS, Line, Record, RecordTurn, write_jsonl
from earthmind_jax.errors import UserError


def write_records(
    out: Path, lines: Iterable[Line], report: Callable[[str], None], *, skip_broken: bool = False
) -> tuple[int, int]:
    """Writes the records of the good lines, with paths relative to ``out``.

    Args:
      report: gets what is wrong with each other line.

    Returns:
      Records written, and broken lines left out.

    Raises:
      UserError: the first broken line, unless ``skip_broken``; or none is left. Nothing is written then.
    """
    if not out.parent.is_dir():
        raise UserError(f"The folder '{out.parent}' of '{out.name}' does not exist; create it first.")
    if out.is_dir():
        raise UserError(f"'{out}' is a folder; give the name of the record file to write.")
    written = broken = 0

    def records() -> Iterator[Record]:
        nonlocal written, broken
        for line in lines:
            if line.record is not None:
                written += 1
                yield relocated(line.record, out.parent)
                continue
            broken += 1
            told = "; ".join(f"{line.where}{problem}" for problem in line.problems)
            if not skip_broken:
                raise UserError(f"{told} (--skip-broken leaves such lines out)")
            report(f"skipped: {told}")
        if not written:
            raise UserError(f"No record for '{out}': the data set has no good line.")

    write_jsonl(out, records())
    return written, broken


def relocated(record: Record, root: Path) -> Record:
    """The record with its paths from another directory."""

    def path(name: str) -> str:
        return Path(os.path.relpath(record.root / name, root)).as_posix()

    def image(written: Any) -> Any:
        if isinstance(written, str):
            return path(written)
        moved = dict(written)
        for key in ("file", "array"):
            if key in moved:
                moved[key] = path(moved[key])
        if isinstance(moved.get("bands"), Mapping):
            moved["bands"] = {band: path(file) for band, file in moved["bands"].items()}
        return moved

    def mask(spec: Any) -> Any:
        if isinstance(spec, str):
            return path(spec)
        if isinstance(spec, dict) and "file" in spec:
            return spec | {"file": path(spec["file"])}
        if isinstance(spec, dict) and "dates" in spec:
            return spec | {"dates": [mask(one) for one in spec["dates"]]}
        return spec

    def turn(given: RecordTurn) -> RecordTurn:
        several = isinstance(given.region, tuple)
        region = tuple(map(mask, given.region)) if several else mask(given.region)
        return dataclasses.replace(given, masks=tuple(map(mask, given.masks)), region=region)

    images = {}
    for sensor in SENSORS:
        given = getattr(record, sensor)
        images[sensor] = (
            tuple(map(image, given)) if isinstance(given, tuple) else None if given is None else image(given)
        )
    return dataclasses.replace(record, **images, turns=tuple(map(turn, record.turns)), root=root)
