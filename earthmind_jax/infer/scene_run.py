"""One start of a run over a large scene: windows read, drawn and blended, and finished rows handed to the store."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from earthmind_jax.infer.ahead import ahead
from earthmind_jax.infer.scene_maps import NODATA
from earthmind_jax.infer.scene_model import Window, WindowModel
from earthmind_jax.infer.scene_read import Rows, SceneReader
from earthmind_jax.infer.scene_store import Done, Store
from earthmind_jax.infer.windows import Blend, Lattice

DEPTH = 4  # batches of windows prepared in advance

Report = Callable[[int, int, float, float], None]
"""Told (windows done, windows in all, seconds, square kilometres) after every row of windows, of this start alone."""


@dataclass(frozen=True)
class _Work:
    """A batch of windows (None: no data) of one row of windows, at the columns ``lefts``; the last one of its row has
    the row's ``band``."""

    row: int
    lefts: tuple[int, ...]
    batch: Window | None
    band: Rows | None = None


class SceneRun:
    """One start of a run: what ``store`` has is left out, and what is finished now goes there."""

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
        # What earlier starts found out holds where these parts say so, too.
        reader.notes = tuple(n for n in self.done.notes if n not in self.notes) if self.done.row >= 0 else None
        top, count = lattice.rows[self.first], windows.count
        height, width = lattice.shape
        self.blend = Blend((min(lattice.side, height), width), count * windows.dates, top)
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
                    drawn = self._timed("model", self.windows, work.batch)
                    self._timed("blending", self._add, work, drawn.probability, drawn.weights)
                if work.band is None:
                    continue
                finished = self._timed("blending", self._finish, work)
                if finished is not None:
                    if written is not None:
                        written.result()
                    written = pool.submit(self._timed, "writing", self.store.add, *finished)
                if self.report is not None:
                    self._tell(work.row, perf_counter() - started)
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
            seen = band.valid.any(0)
            lefts = [x for x in self.lattice.columns if seen[:, x : x + self.lattice.side].any()]
            size = self.windows.batch_size
            groups = [tuple(lefts[i : i + size]) for i in range(0, len(lefts), size)]
            for group in groups:
                yield _Work(row, group, self.windows.stack([self._window(band, left) for left in group]))
            yield _Work(row, (), None, band)

    def _window(self, band: Rows, left: int) -> Window:
        return self.windows.window(band.window(slice(None), slice(left, left + self.lattice.side)))

    def _add(self, work: _Work, probability: np.ndarray, weights: np.ndarray) -> None:
        """Blend what was drawn in a batch."""
        lattice = self.lattice
        top, bottom = lattice.band(work.row)
        for i, left in enumerate(work.lefts):
            right = min(left + lattice.side, lattice.shape[1])
            self.blend.add((slice(top, bottom), slice(left, right)), probability[i])
            spans = enumerate(((top, bottom), (left, right)))
            cells = [
                np.arange(lattice.token(first, axis), min(lattice.token(last, axis), lattice.tokens[axis]))
                for axis, (first, last) in spans
            ]
            if not all(map(len, cells)):
                continue
            tokens = [
                (((c + 0.5) * cell - first) / cell).astype(int)
                for c, first, cell in zip(cells, (top, left), lattice.cell, strict=True)
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
        valid = band.valid
        dated = probability[fresh - top :].reshape(*valid.shape[1:], -1, len(valid))
        percent = np.stack([to_percent(dated[..., i], there) for i, there in enumerate(valid)], -1)
        begun = max(token_top, min(lattice.token(done.pixels), lattice.tokens[0]) if done.pixels else 0) - token_top
        weight, known = weight[begun:], known[begun:]
        sensors = [first[1] for first, *_ in band.frames.values()]
        counts = tuple(int(x.sum()) for x in (sensors[0], np.logical_and.reduce(sensors), valid.any(0)))
        if work.row > done.row:
            missing = len(lattice.columns) * (work.row + 1) - done.windows - done.empty
            done = replace(done, row=work.row, empty=done.empty + missing)
        self.done = replace(
            done,
            pixels=until,
            weights=tuple(a + float(b) for a, b in zip(done.weights, weight[known].sum(0, np.float64), strict=True)),
            tokens=tuple(n + int(known.sum()) for n in done.tokens),
            seen=tuple(a + b for a, b in zip(done.seen, counts, strict=True)),
            valid=tuple(n + int(there.sum()) for n, there in zip(done.valid, valid, strict=True)),
            notes=(*self.notes, *(self.reader.notes or ())),
        )
        pictures = {
            self.reader.picture(name, i): frames[0]
            for name, dates in band.frames.items()
            for i, (frames, _) in enumerate(dates)
        }
        percent = percent.reshape(*valid.shape[1:], -1)
        return self.done, percent, to_percent(weight, known), token_top + begun, pictures

    def _tell(self, row: int, seconds: float) -> None:
        assert self.report is not None
        lattice = self.lattice
        windows, total = (len(lattice.columns) * (last - self.first) for last in (row + 1, len(lattice.rows)))
        pixels = (lattice.next_top(row) - lattice.rows[self.first]) * lattice.shape[1]
        self.report(windows, total, seconds, pixels * (self.reader.grid.gsd or 0.0) ** 2 / 1e6)


def to_percent(probability: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Probability [h w K] in percent, uint8: above 50 exactly where it is above one half; 255 where not ``valid``."""
    percent = np.rint(probability * 100).astype(np.uint8)
    percent[(probability > 0.5) & (percent == 50)] = 51
    percent[~valid] = NODATA
    return percent
