"""Record files checked line by line before a run depends on them, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import DataConfig, EarthMindConfig, SensorConfig
from earthmind_jax.data.buckets import TRAINING, TRAINING_WINDOW, Buckets, Shape, bucketed
from earthmind_jax.data.datasets import lines as read_any
from earthmind_jax.data.images import Image
from earthmind_jax.data.layout import MOST_DATES, measure, record_views, tiling
from earthmind_jax.data.pipeline import training_buckets
from earthmind_jax.data.read import check_marks, image_header, load_record, picture_header
from earthmind_jax.data.records import SENSORS, Line, Record
from earthmind_jax.data.repeated import Ids, tell
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.data.windows import padding_share
from earthmind_jax.errors import UserError

MOST_PROBLEMS = 10_000
"""Problems that are kept: half of a large data set may be missing."""


@dataclass(frozen=True, eq=False)
class Report:
    """What a record file holds.

    Attributes:
      problems: one sentence for each, beginning with file, line and field; the first :data:`MOST_PROBLEMS`.
      broken: lines with a problem.
      counts: what the good lines hold: ``lines``, ``turns``, ``masks``, ``regions``, and by kind ``sensors``, ``dates``
        and ``tiles``.
      tokens: ``least``, ``median``, ``most`` of a sample, without the questions that ``data.turns`` leaves out; None
        without a tokenizer.
      padding: share of padding in training: with ``fixed`` length, with the run's own ``buckets`` and with those of
        :data:`earthmind_jax.data.buckets.TRAINING`; None without a tokenizer.
      untold: problems beyond those kept.
      repeated: a sentence for each line whose id an earlier line has already, the first :data:`MOST_PROBLEMS` of them;
        ``counts["repeated"]`` has their number. Such lines are not broken: a run learns from both.
    """

    problems: tuple[str, ...]
    broken: int
    counts: dict[str, Any]
    tokens: dict[str, int] | None = None
    padding: dict[str, float] | None = None
    untold: int = 0
    repeated: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "broken": self.broken,
            "problems": list(self.problems),
            **({"untold": self.untold} if self.untold else {}),
            **({"repeated ids": list(self.repeated)} if self.repeated else {}),
            **self.counts,
            "tokens": self.tokens,
            "padding": self.padding,
        }


def check_records(
    path: str | Path,
    cfg: EarthMindConfig,
    data: DataConfig,
    tokenizer: Tokenizer | None = None,
    *,
    dataset: str = "",
    split: str = "",
    pixels: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Every line of a record file, or of a data set in a directory, checked and counted.

    Images are opened as far as their headers, masks and regions are read.

    Args:
      tokenizer: measures the conversations, too; those too long for ``data.text_length`` are problems.
      dataset, split: name and split of a data set; recognised, and its first split, where they are empty.
      pixels: read every image as training would.
      progress: called after each line.

    Raises:
      UserError: the file cannot be read or has no line.
    """
    found: list[str] = []
    broken = lines = untold = 0
    totals: Counter[str] = Counter()
    kinds: dict[str, Counter[Any]] = {"sensors": Counter(), "dates": Counter(), "tiles": Counter()}
    shapes: list[Shape] = []
    ids = Ids()
    for line in read_any(path, dataset, split):
        lines += 1
        if line.record is not None:
            ids.add(line.record.id)
        wrong = list(line_problems(line, cfg.sensors, pixels=pixels))
        if line.record is not None and not wrong:
            try:
                count, shape = _size(line.record, cfg, data, tokenizer)
            except UserError as error:
                wrong = [str(error)]
        progress()
        if wrong:
            broken += 1
            kept = wrong[: MOST_PROBLEMS - len(found)]
            found += kept
            untold += len(wrong) - len(kept)
            continue
        record = line.record
        assert record is not None
        totals["turns"] += len(record.turns)
        totals["masks"] += sum(len(turn.masks) for turn in record.turns)
        totals["steered"] += sum(len(turn.masks) for turn in record.turns if turn.steer)
        totals["regions"] += sum(len(turn.regions) for turn in record.turns)
        kinds["sensors"][" and ".join(name for name in SENSORS if record.paths(name)) or "none"] += 1
        kinds["dates"][record.dates] += 1
        kinds["tiles"][count] += 1
        shapes += [] if shape is None else [shape]
    if not lines:
        raise UserError(f"{called(path)} has no records.")
    again, hashes = ids.repeated(MOST_PROBLEMS)
    told: Iterable[str] = ()
    if again and _stays(path):
        told = tell(read_any(path, dataset, split), hashes, min(again, MOST_PROBLEMS))
    counts = {
        "lines": lines,
        "repeated": again,
        **{name: totals[name] for name in ("turns", "masks", "regions", "steered")},
        **{
            name: {str(k): v for k, v in sorted(kind.items(), key=lambda kv: str(kv[0]).zfill(9))}
            for name, kind in kinds.items()
        },
    }
    return Report(tuple(found), broken, counts, *_lengths(shapes, data), untold, tuple(told))


def line_problems(line: Line, sensors: SensorConfig, *, pixels: bool = False) -> Iterator[str]:
    """What is wrong with a line, a sentence each that names file, line and field."""
    yield from (f"{line.where}{problem}" for problem in line.problems)
    if line.record is not None:
        wrong = list(file_problems(line.record, sensors))
        yield from (f"{line.where}: {problem}" for problem in wrong)
        if pixels and not wrong:
            yield from _attempt(lambda: load_record(line.record, sensors), "")


def file_problems(record: Record, sensors: SensorConfig) -> Iterator[str]:
    """What is wrong with the files of a record, by their headers, and with its masks and regions."""
    shapes = {}
    for name in SENSORS:
        images = record.images(name)
        for i, image in enumerate(images):
            field = f"field '{name}[{i}]': " if len(images) > 1 else f"field '{name}': "
            wrong = list(_attempt(lambda image=image, name=name: _check_image(image, name, sensors), field))
            yield from wrong
            if wrong:
                continue
            shape = image_header(image, name, sensors)[0]
            if shapes.setdefault(name, shape) != shape and (name == "optical" or "optical" not in shapes):
                first = " x ".join(map(str, shapes[name]))
                yield f"{field}'{image.name}' is {shape[0]} x {shape[1]} pixels but the first date {first}."
    reference = shapes.get("optical" if record.optical is not None else "sar")
    for i, turn in enumerate(record.turns):
        for what, check in check_marks(turn, reference, record.root, i):
            yield from _attempt(check, f"field '{what}': ")


def _check_image(image: Image, name: str, sensors: SensorConfig) -> None:
    if not image.plain:
        from earthmind_jax.data import imagery

        for path in image.paths:  # those of bands that this model does not use, too
            if not path.exists():
                raise UserError(f"there is no file '{path}'.")
            if path.is_file() and path.stat().st_size == 0:
                raise UserError(f"'{path}' is empty (0 bytes); copy it again.")
        imagery.check(image, name, sensors)
        return
    path = image.paths[0]
    header = picture_header(str(path))
    if header.is_raster(name):
        from earthmind_jax.geo.align import check_header

        wanted = sensors.optical_bands if name == "optical" else sensors.sar_bands
        check_header(path, name, None if header.finished else wanted)


def _attempt(check: Callable[[], Any], field: str) -> Iterator[str]:
    try:
        check()
    except UserError as error:
        yield f"{field}{error}"


def _size(
    record: Record, cfg: EarthMindConfig, data: DataConfig, tokenizer: Tokenizer | None
) -> tuple[int, Shape | None]:
    buckets = training_buckets(data, MOST_DATES)
    if any(turn.steer for turn in record.turns):
        _check_room(record, cfg.sensors, data.prompt_points)
    if tokenizer is not None:
        shape = measure(record, cfg, data, tokenizer, buckets).shape
        return shape.tiles, shape
    count = tiling(record_views(record, cfg.sensors), cfg)[-1]
    try:
        buckets.fit_tiles(max(1, count))
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from error
    return count, None


def _check_room(record: Record, sensors: SensorConfig, room: int) -> None:
    from earthmind_jax.data.pointed import check_room, steering

    views = record_views(record, sensors)
    shape = views["optical" if "optical" in views else "sar"].shape
    for i, turn in enumerate(record.turns):
        try:
            check_room(steering(turn, shape, record.root, i), room)
        except UserError as error:
            raise UserError(f"{record.where}: turns[{i}].region: {error}") from error


def _lengths(shapes: list[Shape], data: DataConfig) -> tuple[dict[str, int] | None, dict[str, float] | None]:
    if not shapes:
        return None, None
    lengths = [shape.text for shape in shapes]
    tokens = {"least": min(lengths), "median": int(np.median(lengths)), "most": max(lengths)}
    tiles, dates = (max(getattr(s, name) for s in shapes) for name in ("tiles", "dates"))
    tables = {"fixed": (data.text_length,), "training": bucketed(data).text_buckets}
    if data.text_buckets:
        tables["buckets"] = data.text_buckets
    padding = {}
    for name, text in tables.items():
        known = TRAINING.tiles if name == "training" else data.tile_buckets or Buckets().tiles
        table = Buckets(
            tiles=tuple(sorted({*(t for t in known if t < tiles), max(tiles, 1)})),
            text=text,
            dates=tuple(sorted({1, dates})),
        )
        window = TRAINING_WINDOW if name == "training" else data.window
        padding[name] = round(padding_share(shapes, table, data.batch_size, window), 4)
    return tokens, padding


def _stays(path: str | Path) -> bool:
    """Whether it can be read again, unlike a pipe."""
    return Path(path).is_file() or Path(path).is_dir()


def called(path: str | Path) -> str:
    """What messages call a record file or data set."""
    return f"The data set '{path}'" if Path(path).is_dir() else f"The record file '{path}'"
