"""Scenes of any size: masks of several targets, window by window, from files to files.

Memory holds a band of rows and never the scene. Reading, preparing, the model and writing go on at the same time. What
is finished is kept (:mod:`earthmind_jax.infer.scene_store`), so a run that was killed goes on where it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from earthmind_jax import __version__
from earthmind_jax.config import require, to_json
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.errors import UserError
from earthmind_jax.geo.opening import file_stamp
from earthmind_jax.infer.ahead import ahead
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.scene_maps import SceneResult, write_maps
from earthmind_jax.infer.scene_model import Window, WindowModel
from earthmind_jax.infer.scene_read import Rows, SceneReader
from earthmind_jax.infer.scene_store import Done, Store, finished, held
from earthmind_jax.infer.windows import OVERLAP, Blend, Lattice
from earthmind_jax.types import Params

WIDE = 4  # times the model's own, from which on a window loses what is small in it
NODATA = 255
DEPTH = 4  # batches of windows prepared in advance

Report = Callable[[int, int, float, float], None]
"""Told (windows done, windows in all, seconds, square kilometres) after every row of windows, of this start alone."""


def segment_scene(
    model: EarthMind,
    targets: Sequence[str],
    *,
    optical: str | Path | None = None,
    sar: str | Path | None = None,
    out: str | Path,
    window: int | None = None,
    overlap: float = OVERLAP,
    weights: bool = False,
    report: Report | None = None,
    **options: Any,
) -> SceneResult:
    """Draw the masks of ``targets`` over a scene of any size into the directory ``out``.

    For each target a probability and a mask (Cloud-Optimized GeoTIFF on the reference image's grid) and its polygons.
    Each window is seen once for all targets; windows without data are left out. Started again with the same arguments,
    it goes on where it was, and the files are the same as without the interruption.

    Args:
      window: side in pixels, a multiple of the model's own; None is the model's own.
      overlap: share of a window common to neighbours, 0 to 0.9.
      weights: also write the weight of SAR on the token grid.
      options: what is known about the files, as of :func:`earthmind_jax.data.read.load_images`.

    Raises:
      UserError: a file or an argument cannot be used, or ``out`` holds another run or is in use.
      WorkError: the files could not be written.
    """
    names = [target.strip() for target in targets]
    if not names or not all(names):
        raise UserError("There is nothing to segment: name a target, such as water.")
    if len(set(names)) < len(names):
        raise UserError("A target is named twice; name each once.")
    questions = [SEGMENTATION_QUESTIONS[0].replace("{c}", name) for name in names]
    return ask_scene(
        model, questions, names=names, optical=optical, sar=sar, out=out, window=window, overlap=overlap,
        weights=weights, report=report, **options,
    )  # fmt: skip


def ask_scene(
    model: EarthMind,
    questions: Sequence[str],
    *,
    names: Sequence[str],
    optical: str | Path | None,
    sar: str | Path | None,
    out: str | Path,
    window: int | None = None,
    overlap: float = OVERLAP,
    weights: bool = False,
    report: Report | None = None,
    max_new: int = 32,
    **options: Any,
) -> SceneResult:
    """:func:`segment_scene` of any questions whose answers draw a mask; ``names`` are what the results call them."""
    side = window_side(model, window)
    require(0 <= overlap <= 0.9, f"The overlap of windows must be 0 to 0.9, not {overlap}.")
    sources = {name: path for name, path in (("optical", optical), ("sar", sar)) if path is not None}
    started, out = perf_counter(), Path(out)
    reader = SceneReader(sources, model.config.sensors, **options)
    windows = WindowModel(model.engine, questions, side, reader.frames, max_new=max_new)
    lattice = Lattice.of(reader.shape, side, overlap, windows.grid)
    work = {
        **{name: _file(path) for name, path in reader.sources.items()},
        "model": f"{model.name} {digest(model)}",
        "targets": list(names),
        "questions": list(questions),
        "window": side,
        "overlap": overlap,
        "weights": weights,
        "options": {name: str(value) for name, value in sorted(options.items())},
        "batch": windows.batch_size,
        "version": __version__,
    }
    with held(out):
        answer = finished(out, work)
        if answer is not None:
            return SceneResult(out, answer)
        store = Store(out, work, len(questions), lattice.shape, lattice.tokens, tuple(reader.sources))
        with closing(store):
            seconds = {}
            if store.done.pixels < lattice.shape[0]:
                seconds = _Run(windows, reader, lattice, store, report, window_note(model, side)).go()
            result = write_maps(out, work, store, reader, lattice, model.name, names, questions, seconds, weights)
        store.remove()
    result.seconds["all"] = perf_counter() - started
    return result


def window_side(model: EarthMind, window: int | None) -> int:
    """The side of windows in pixels; UserError unless it is a multiple of the model's own."""
    own = model.config.sensors.window or model.config.vision.image_size
    if window is None:
        return own
    require(
        window > 0 and window % own == 0, f"A window must be a multiple of the model's own {own} pixels, not {window}."
    )
    return window


def window_note(model: EarthMind, side: int) -> str | None:
    """What is to be said about windows much larger than the model's own."""
    own = window_side(model, None)
    if side < WIDE * own:
        return None
    return (
        f"windows of {side} pixels have {side / own:.0f} times the side of the model's own ({own}): what is small in "
        "them is lost and edges are coarse; leave out --window for full detail"
    )


def digest(model: EarthMind) -> str:
    """A short name of what the model computes: its configuration and a sample of every weight."""
    return f"{zlib.crc32(to_json(model.config).encode(), _sampled(model.engine.params)):08x}"


def _sampled(params: Params, most: int = 1024) -> int:
    value = 0
    for path in sorted(params):
        flat = params[path].reshape(-1)
        part = np.asarray(flat[:: max(1, flat.size // most)])
        value = zlib.crc32(part.tobytes(), zlib.crc32(f"{path} {flat.shape} {flat.dtype}".encode(), value))
    return value


def _file(path: Path) -> dict[str, Any]:
    changed, size = file_stamp(path) or (0, 0)
    return {"path": str(path.absolute()), "bytes": size, "changed": changed}


@dataclass(frozen=True)
class _Work:
    """A batch of windows (None: no data) of one row of windows, at the columns ``lefts``; the last one of its row has
    the row's ``band``."""

    row: int
    lefts: tuple[int, ...]
    batch: Window | None
    band: Rows | None = None


class _Run:
    """One start of a run."""

    def __init__(
        self,
        windows: WindowModel,
        reader: SceneReader,
        lattice: Lattice,
        store: Store,
        report: Report | None,
        note: str | None = None,
    ) -> None:
        self.notes = () if note is None else (note,)
        self.windows, self.reader, self.lattice, self.store, self.report = windows, reader, lattice, store, report
        self.first = lattice.first_row(store.done.pixels)
        self.done = store.done
        top, count = lattice.rows[self.first], windows.count
        height, width = lattice.shape
        self.blend = Blend((min(lattice.side, height), width), count, top)
        # Cells may begin within a window, so that a band of windows touches one more than a window has.
        self.fusion = Blend((windows.grid + 2, lattice.tokens[1]), count, lattice.token(top))
        self.seconds = {"waiting": 0.0, "model": 0.0, "blending": 0.0, "writing": 0.0}

    def go(self) -> dict[str, float]:
        """To the last row; returns the seconds that the parts took."""
        started = perf_counter()
        with ThreadPoolExecutor(1, "write") as pool, closing(ahead(self._works(), DEPTH)) as works:
            written: Future[None] | None = None
            while (work := self._timed("waiting", next, works, None)) is not None:
                if work.batch is not None:
                    probability, weights = self._timed("model", self.windows, work.batch)
                    self._timed("blending", self._add, work, probability, weights)
                if work.band is None:
                    continue
                finished = self._timed("blending", self._finish, work)
                if finished is not None:
                    if written is not None:
                        written.result()
                    written = pool.submit(self._timed, "writing", self.store.add, *finished)
                if self.report is not None:
                    self._tell(perf_counter() - started)
            if written is not None:
                written.result()
        return self.seconds | {"reading": self.reader.seconds, "rows": perf_counter() - started}

    def _timed(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter()
        try:
            return work(*arguments)
        finally:
            self.seconds[name] += perf_counter() - started

    def _works(self) -> Generator[_Work]:
        """All windows from ``first`` on, in batches that never hold windows of two rows."""
        rows = range(self.first, len(self.lattice.rows))
        bands = self.reader.rows(self.lattice.band(row) for row in rows)
        for row, band in zip(rows, bands, strict=True):
            seen = band.valid
            lefts = [x for x in self.lattice.columns if seen[:, x : x + self.lattice.side].any()]
            size = self.windows.batch_size
            groups = [tuple(lefts[i : i + size]) for i in range(0, len(lefts), size)]
            for group in groups:
                yield _Work(row, group, self.windows.stack([self._window(band, left) for left in group]))
            yield _Work(row, (), None, band)

    def _window(self, band: Rows, left: int) -> Window:
        columns = slice(left, left + self.lattice.side)
        return self.windows.window(
            {name: (frames[:, :, columns], valid[:, columns]) for name, (frames, valid) in band.frames.items()}
        )

    def _add(self, work: _Work, probability: np.ndarray, weights: np.ndarray) -> None:
        """Blend what was drawn in a batch."""
        lattice = self.lattice
        top, bottom = lattice.band(work.row)
        for i, left in enumerate(work.lefts):
            right = min(left + lattice.side, lattice.shape[1])
            self.blend.add((slice(top, bottom), slice(left, right)), probability[i, : bottom - top, : right - left])
            cells = [
                np.arange(lattice.token(first), min(lattice.token(last), count))
                for first, last, count in zip((top, left), (bottom, right), lattice.tokens, strict=True)
            ]
            if not all(map(len, cells)):
                continue
            tokens = [
                (((c + 0.5) * lattice.cell - first) / lattice.cell).astype(int)
                for c, first in zip(cells, (top, left), strict=True)
            ]
            both = weights[i][tokens[0][:, None], tokens[1]]  # [h w 2 K]
            place = slice(cells[0][0], cells[0][-1] + 1), slice(cells[1][0], cells[1][-1] + 1)
            self.fusion.add(place, both[:, :, 1], both.sum(2)[..., 0] > 0)
        if work.row > self.done.row:
            self.done = replace(self.done, windows=self.done.windows + len(work.lefts))

    def _finish(self, work: _Work) -> tuple[Done, np.ndarray, np.ndarray, int, dict[str, np.ndarray]] | None:
        """What :meth:`Store.add` takes of the rows that are finished now; None if an earlier start has added them."""
        lattice, done = self.lattice, self.done
        top, until = self.blend.top, lattice.next_top(work.row)
        probability = self.blend.finish(until)
        token_top = self.fusion.top
        token_until = min(lattice.token(until), lattice.tokens[0]) if until < lattice.shape[0] else lattice.tokens[0]
        known = self.fusion.weight[: token_until - token_top, :, 0] > 0
        weight = self.fusion.finish(token_until)
        if until <= done.pixels:
            return None
        assert work.band is not None
        fresh = max(top, done.pixels)
        band = work.band.part(fresh, until)
        percent = to_percent(probability[fresh - top :], band.valid)
        begun = max(token_top, min(lattice.token(done.pixels), lattice.tokens[0]) if done.pixels else 0) - token_top
        weight, known = weight[begun:], known[begun:]
        sensors = [valid for _, valid in band.frames.values()]
        counts = tuple(int(x.sum()) for x in (sensors[0], np.logical_and.reduce(sensors), band.valid))
        if work.row > done.row:
            missing = len(lattice.columns) * (work.row + 1) - done.windows - done.empty
            done = replace(done, row=work.row, empty=done.empty + missing)
        self.done = replace(
            done,
            pixels=until,
            weights=tuple(a + float(b) for a, b in zip(done.weights, weight[known].sum(0, np.float64), strict=True)),
            tokens=tuple(n + int(known.sum()) for n in done.tokens),
            seen=tuple(a + b for a, b in zip(done.seen, counts, strict=True)),
            notes=(*self.notes, *(self.reader.notes or ())),
        )
        pictures = {name: frames[0] for name, (frames, _) in band.frames.items()}
        return self.done, percent, to_percent(weight, known), token_top + begun, pictures

    def _tell(self, seconds: float) -> None:
        assert self.report is not None
        before = len(self.lattice.columns) * self.first
        windows = len(self.lattice.columns) * (self.done.row + 1) - before
        total = len(self.lattice.columns) * len(self.lattice.rows) - before
        rows = self.done.pixels - self.lattice.rows[self.first]
        area = rows * self.lattice.shape[1] * (self.reader.grid.gsd or 0.0) ** 2 / 1e6
        self.report(windows, total, seconds, area)


def to_percent(probability: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Probability [h w K] in percent, uint8: above 50 exactly where it is above one half; 255 where not ``valid``."""
    percent = np.rint(probability * 100).astype(np.uint8)
    percent[(probability > 0.5) & (percent == 50)] = 51
    percent[~valid] = NODATA
    return percent
