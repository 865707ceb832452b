"""Many questions about many images: each image is read and encoded once, questions go through the model together.
Stacks of dates, parts of scenes, and files that do not fit into memory go one by one
(:mod:`earthmind_jax.infer.batch_single`).

The answers are those of single questions (:meth:`EarthMind.ask`); only what is computed together differs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from earthmind_jax import __version__
from earthmind_jax.checkpoint import fingerprint
from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.read import Images, decode_regions
from earthmind_jax.data.records import SENSORS, Sample, Turn
from earthmind_jax.data.tokenizer import SEG
from earthmind_jax.errors import UserError
from earthmind_jax.infer.batch_scene import Scene
from earthmind_jax.infer.batch_single import Single, read_images, single
from earthmind_jax.infer.batch_together import together
from earthmind_jax.infer.journal import Journal, opened
from earthmind_jax.infer.pointing import paste
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import QUESTIONS, Request
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.samples import sample_of

if TYPE_CHECKING:
    from rich.progress import TaskID

AHEAD = 2  # scenes that are read before they are needed


def run(
    model: EarthMind,
    requests: Sequence[Request],
    out: str | Path,
    *,
    maps: str | Path | None = None,
    batch_size: int = 8,
    max_new: int = 128,
    skip_broken: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Answer the requests and append the answers to ``out``, in the order in which they are finished.

    A line of ``out`` has ``id``, ``line`` (of the file of questions), ``question``, ``answer``, ``masks`` (COCO
    run-length codes with ``score`` and ``share``), ``fusion``, ``notes`` and ``key``; that of a broken request has
    ``error`` in place of the answer. Answers that are there already are kept.

    Args:
      maps: directory for what :meth:`Answer.save` writes of each answer with a mask, below its id.
      batch_size: questions that go through the model at once.
      skip_broken: a request whose files turn out to be broken becomes an error line; else the work stops there.

    Returns:
      ``answers`` and ``broken``, how many were written now, ``kept`` from before, ``seconds``, and ``encoded`` scenes.

    Raises:
      UserError: ``out`` belongs to another model or other settings, or a file of a request cannot be used.
      WorkError: the answers cannot be written.
    """
    began = time.perf_counter()
    settings = {"weights": _fingerprint(model), "max_new": max_new, "version": __version__}
    with opened(Path(out), settings) as journal:
        pending = _pending(requests, journal)
        work = _Work(model, journal, None if maps is None else Path(maps), batch_size, max_new, skip_broken)
        kept = len(requests) - len(pending)
        with _progress(console) as bar:
            task = bar.add_task("answering", total=len(requests), completed=kept, rate="")
            work.bar = (bar, task)
            work.broken([request for request in pending if request.problem])
            work.answer([request for request in pending if not request.problem])
    return {**work.counts, "kept": kept, "seconds": round(time.perf_counter() - began, 3)}


def _fingerprint(model: EarthMind) -> str:
    return fingerprint(model.config, model.engine.params, model.engine.tokenizer)


def _pending(requests: Sequence[Request], journal: Journal) -> list[Request]:
    answered = {id: key for key, id in journal.done.items() if id is not None}
    for request in requests:
        if answered.get(request.id, request.key) != request.key:
            raise UserError(
                f"Line {request.number} (id '{request.id}') is not what it was when {journal.path} answered it; give "
                "it a new id, or choose another file."
            )
    return [request for request in requests if request.key not in journal.done]


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )


class _Work:
    """The way of the requests through the model."""

    def __init__(
        self, model: EarthMind, journal: Journal, maps: Path | None, batch_size: int, max_new: int, skip: bool
    ) -> None:
        self.model, self.journal, self.maps = model, journal, maps
        self.batch_size, self.max_new, self.skip = batch_size, max_new, skip
        self.buckets = model.buckets or Buckets()
        self.counts = {"answers": 0, "broken": 0, "encoded": 0}
        self.bar: tuple[Progress, TaskID] | None = None
        self._began = time.perf_counter()

    def broken(self, requests: Sequence[Request]) -> None:
        """Write the error line of each request."""
        lines = [{"id": r.id, "line": r.number, "error": r.problem, "key": r.key} for r in requests]
        if lines:
            self._write(lines, "broken")

    def answer(self, requests: Sequence[Request]) -> None:
        """Answer requests, those of a like shape together."""
        scenes = self._ordered(requests)
        with ThreadPoolExecutor(1, "reading") as reader:
            ahead: list[Future[Scene]] = []
            try:
                ready: list[tuple[Request, Scene, Sample]] = []
                for i, group in enumerate(scenes):
                    while len(ahead) < AHEAD and i + len(ahead) < len(scenes):
                        ahead.append(reader.submit(self._read, scenes[i + len(ahead)][0]))
                    if ready and self._kind(group[0]) != self._kind(ready[0][0]):
                        self._together(ready)
                        ready = []
                    for item in self._samples(group, ahead.pop(0)):
                        ready.append(item)
                        if len(ready) == self.batch_size:
                            self._together(ready)
                            ready = []
                if ready:
                    self._together(ready)
            finally:
                reader.shutdown(wait=True, cancel_futures=True)

    def _ordered(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Requests by scene; scenes of one kind one after another, short prompts first."""
        by_scene = sorted(requests, key=lambda r: (str(r.sources), bool(r.places)))
        scenes = [list(group) for _, group in groupby(by_scene, key=lambda r: r.sources)]
        return sorted(scenes, key=lambda scene: (self._kind(scene[0]), max(r.shape.text for r in scene)))

    def _kind(self, request: Request) -> tuple[Any, ...]:
        """What requests of one batch have in common: sensors, dates, tiles (as their bucket)."""
        assert request.shape is not None
        there = tuple(bool(images) for images in request.sources)
        if self.model.sensors is not None:  # every batch has room for the same sensors
            there = (any(there),)
        dates = max(len(images) for images in request.sources)
        return there, dates, self.buckets.fit_tiles(max(1, request.shape.tiles))

    def _read(self, request: Request) -> Scene:
        """The images of a request, and their tiles."""
        images, large = read_images(self.model, request)
        sample = self._sample(request, images)
        if images is None or images.later or large or request.places:
            return Scene(images, None, alone=True)
        words = (self.model.config, QUESTIONS, self.model.engine.tokenizer, self.buckets)
        return Scene(images, encode_sample(sample, *words, sensors=self.model.sensors or SENSORS))

    def _sample(self, request: Request, images: Images | None) -> Sample:
        assert request.record is not None
        shape = (1, 1) if images is None else images.shape
        turns = []
        for i, turn in enumerate(request.record.turns):
            # What earlier answers drew is not shown to the model; only their number has to be right.
            count = (turn.answer or "").count(SEG)
            drawn = np.zeros((count, *shape), bool) if count else None
            parts = decode_regions(turn, shape, request.record.root, i)
            turns.append(Turn(turn.question, turn.answer, drawn, parts or None))
        return Sample("ask", tuple(turns)) if images is None else sample_of(images, *turns)

    def _samples(self, group: list[Request], reading: Future[Scene]) -> Iterator[tuple[Request, Scene, Sample]]:
        try:
            scene = reading.result()
        except UserError as error:
            self._failed(group, error)
            return
        for request in group:
            try:
                yield request, scene, self._sample(request, scene.images)
            except UserError as error:
                self._failed([request], error)

    def _failed(self, requests: list[Request], error: UserError) -> None:
        """An error that only the pixels tell."""
        if not self.skip:
            first = requests[0]
            raise UserError(f"Line {first.number} (id '{first.id}'): {error}") from error
        self.broken([replace(r, problem=f"Line {r.number} (id '{r.id}'): {error}") for r in requests])

    def _together(self, items: Sequence[tuple[Request, Scene, Sample]]) -> None:
        """Answer one batch and write it down."""
        same = [item for item in items if not self._alone(*item)]
        answers = self._shared([(scene, sample) for _, scene, sample in same]) if same else ()
        lines = [self._line(item[0], Single(answer)) for item, answer in zip(same, answers, strict=True)]
        lines += self._singly([item for item in items if self._alone(*item)])
        self._write(lines, "answers")

    def _alone(self, request: Request, scene: Scene, sample: Sample) -> bool:
        """Whether nothing is shared with other questions: stacks of dates and files that do not fit into memory, which
        are large, and parts of scenes; any is rarely asked about more than once."""
        if scene.images is None or scene.alone or request.places:
            return scene.images is not None
        return len(sample.turns) == 1 and sample.turns[-1].region is not None and self.model.large(scene.images)

    def _singly(self, items: Sequence[tuple[Request, Scene, Sample]]) -> list[dict[str, Any]]:
        lines = []
        for request, scene, sample in items:
            assert scene.images is not None
            try:
                found = single(self.model, request, scene.images, sample, self.max_new, self._place(request))
                lines.append(self._line(request, found, scene.images.shape))
            except UserError as error:
                self._failed([request], error)
        return lines

    def _shared(self, items: Sequence[tuple[Scene, Sample]]) -> list[Answer]:
        answers, encoded = together(self.model, items, self.buckets, self.batch_size, self.max_new)
        self.counts["encoded"] += encoded
        return answers

    def _place(self, request: Request) -> Path | None:
        """The directory for the maps of a request."""
        return request.maps or (None if self.maps is None else self.maps / directory_of(str(request.id)))

    def _line(self, request: Request, found: Single, shape: tuple[int, int] | None = None) -> dict[str, Any]:
        """What is written of an answer; of one about a part of a scene of ``shape`` with masks of the scene."""
        answer, place, files, more = found.answer, self._place(request), found.files, {}
        if found.scene is not None:
            more = {"scene": found.scene}
        elif place is not None and answer.masks:
            files = answer.save(place, maps=all(mask.crs is not None for mask in answer.masks))
        facts = answer.to_dict()
        drawn = [mask.array for mask in answer.masks]
        if shape is not None and found.window is not None:
            drawn = [paste(mask, found.window, shape) for mask in drawn]
        masks = [{**encode_rle(mask), **fact} for mask, fact in zip(drawn, facts["masks"], strict=True)]
        line = {"id": request.id, "line": request.number, **facts, "masks": masks, **more}
        return line | {"files": [str(file) for file in files], "key": request.key}

    def _write(self, lines: Sequence[dict[str, Any]], kind: str) -> None:
        self.journal.add(lines)
        self.counts[kind] += len(lines)
        if self.bar is not None:
            bar, task = self.bar
            rate = self.counts["answers"] / max(time.perf_counter() - self._began, 1e-9)
            bar.update(task, advance=len(lines), rate=f"{rate:.2f} answers/s")


def directory_of(name: str) -> str:
    """An id as the name of one directory: nothing in it leads elsewhere, and no two ids share one."""
    safe = quote(name, safe=" ")
    return "%2E" + safe[1:] if safe.startswith(".") else safe
