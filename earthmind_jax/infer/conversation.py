"""Several questions about one image, with its features and the key/value cache kept between them.

How a conversation is shown to the model: as one prompt, the image in front of the first question and every turn after
it, exactly as a record with several turns. Of a window (:meth:`Conversation.zoom`) the pixels of the window stand where
those of the whole image stood, and what was said before stays said: the model reads the conversation as if it had been
about the window from the start, which is the only form it knows from training. The first question that is asked about
a view guides the fusion of its two sensors, and the fused tokens are then kept for the view.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.config import DataConfig
from earthmind_jax.data.collate import Buckets, stack
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.layout import measure
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import SENSORS, Turn
from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.place import Window, window_of, window_of_box
from earthmind_jax.infer.answer import replies
from earthmind_jax.infer.conversation_views import View, Views, seen_from, slices
from earthmind_jax.infer.engine import Generated
from earthmind_jax.infer.marks import Marks, gather
from earthmind_jax.infer.overview import tile_side
from earthmind_jax.infer.pointing import around, within
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.samples import sample_of
from earthmind_jax.infer.view import View as Part
from earthmind_jax.infer.view import at_one_look, seen
from earthmind_jax.types import Batch

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind
    from earthmind_jax.infer.scene_read import SceneReader

_DATA = DataConfig(batch_size=1, masks_per_sample=1, turns=2**30)


class Conversation:
    """A conversation about one image, or without an image.

    Of a raster of more than 4 million pixels nothing but the window in view is read, and the whole, or a window as
    large, is seen with fewer pixels (:mod:`earthmind_jax.infer.overview`). Where something is pointed at in such a
    view, the question is about the window around it, in full resolution.

    >>> chat = em.conversation(optical="s2.tif", sar="s1.tif")
    >>> chat.ask("Is there water?").text
    >>> chat.zoom((120, 200, 64, 64)).ask("And here?").text
    >>> chat.zoom_out().ask("Please segment the water.").masks

    Attributes:
      images: the whole; of a scene that is read in parts its outline.
      turns: what was asked and answered, regions on the grid of the view that it was asked about.
      answers: of every turn, on that grid, too.
    """

    def __init__(self, model: EarthMind, images: Images | None, reader: SceneReader | None = None) -> None:
        self.model, self.images = model, images
        self.turns: list[Turn] = []
        self.answers: list[Answer] = []
        self._windows: list[Window | None] = []  # in which each turn was asked
        self._path: list[Window | None] = [None]
        self._views = Views(model.config, images, reader)

    @property
    def window(self) -> Window | None:
        """The window in view; None for the whole image."""
        return self._path[-1]

    def ask(self, question: str, *, max_new: int = 256, temperature: float = 0.0, **options: Any) -> Answer:
        """The answer to the next question, masks on the grid of the view.

        Masks are drawn from the view as a whole; of a large scene zoom in for full resolution.

        Args:
          options: what the question points at (:meth:`EarthMind.turn`), in pixels of the file from the view's first.
            Regions are counted through the whole conversation: the first of a second turn may be region2.

        Raises:
          UserError: the conversation is longer than the model can read.
        """
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        window, said = self.window, ()
        options = {name: value for name, value in options.items() if value is not None}
        if options and self._views.reduced(window):
            options, said = self._closer(**options)
        try:
            return self._ask(question, max_new, temperature, said, options)
        finally:
            if self.window != window:
                self.zoom_out()

    def _ask(
        self, question: str, max_new: int, temperature: float, said: tuple[str, ...], options: dict[str, Any]
    ) -> Answer:
        """:meth:`ask` about the view."""
        view = self._views.of(self.window)
        turn, marks = self._turn(question, view, **options)
        turns = [self._shown(t, i) for i, t in enumerate(self.turns, 1)] + [turn]
        batch = self._prompt(view, turns)
        kept, view.kept = view.kept, None  # used up, and not there any more if this turn is interrupted
        made = self.model.engine.generate(
            batch, view.fused, max_new=max_new, temperature=temperature, seed=len(self.turns), keep=True, kept=kept
        )
        answer = self._answer(view, turn, batch, made)
        # Boxes and polygons are told in pixels of the whole image.
        offset = self.window[:2] if self.window is not None else (0, 0)
        masks = tuple(dataclasses.replace(mask, offset=offset) for mask in answer.masks)
        notes = (*answer.notes, *said)
        if masks and (view.images.reduced or self.model.large(view.images)):
            notes = (*notes, f"{at_one_look(view.images)} zoom in for sharper ones.")
        answer = dataclasses.replace(answer, masks=masks, marks=marks, offset=offset, notes=notes)
        view.kept = made.kept
        self.turns.append(dataclasses.replace(turn, answer=made.texts[0]))
        self.answers.append(answer)
        self._windows.append(self.window)
        return answer

    def zoom(self, place: Sequence[float], *, crs: Any = None) -> Conversation:
        """Look at a window; what was said stays.

        Args:
          place: first row, first column, rows and columns in pixels of the whole image; with ``crs`` the box west,
            south, east, north in that coordinate system ("EPSG:4326": degrees).

        Raises:
          UserError: the window is empty or not inside the image, or the image has no georeference.
        """
        if self.images is None:
            raise UserError("This conversation has no image to zoom into; start it with one.")
        window = self._place(place, crs)
        self._move([*self._path, window])
        return self

    def zoom_out(self) -> Conversation:
        """Back to what was in view before the last zoom."""
        if len(self._path) == 1:
            raise UserError("The whole image is in view already; there is nothing to zoom out of.")
        self._move(self._path[:-1])
        return self

    def whole(self) -> Conversation:
        """Back to the whole image."""
        self._move([None])
        return self

    def save(self, directory: str | Path) -> list[Path]:
        """Write ``conversation.json``, and what :meth:`Answer.save` writes of each turn below ``turn_1``, ``turn_2``...

        Masks become maps where the image has a georeference, else pictures.

        Raises:
          WorkError: the files could not be written.
        """
        directory = Path(directory)
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file; name a directory to write the conversation to.")
        written: list[Path] = []
        for i, answer in enumerate(self.answers, 1):
            maps = all(mask.crs is not None for mask in answer.masks)
            written += answer.save(directory / f"turn_{i}", maps=maps)
        turns = [
            {"window": None if window is None else list(window), **answer.to_dict()}
            for window, answer in zip(self._windows, self.answers, strict=True)
        ]
        path = directory / "conversation.json"
        with writing(directory):
            write_text(path, json.dumps({"turns": turns}, indent=2, ensure_ascii=False))
        return [*written, path]

    def _turn(
        self,
        question: str,
        view: View,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        near: tuple[Mark, ...] = (),
    ) -> tuple[Turn, tuple[Mark, ...]]:
        """A question about the view, and what it points at there; ``near``: on its pixels already."""
        if self.images is None:
            return self.model.turn(question, None, region=region, marks=marks), ()
        before = self._before
        if near:
            part = seen(Part(view.images, view.images, marks=near))
            return self.model.about(question, part, before=before)[0], near
        whole = (0, 0, *view.images.shape)
        part, turn, _ = self.model.point(question, view.images, region, marks, whole, before=before)
        assert part is not None
        return turn, part.marks

    @property
    def _before(self) -> int:
        """Regions that were pointed at so far."""
        return sum(len(turn.regions) for turn in self.turns)

    def _place(self, place: Sequence[float], crs: Any) -> Window:
        assert self.images is not None
        if crs is None:
            return window_of(place, self.images.shape)
        grid = Grid(self.images.transform, self.images.crs, *self.images.shape)
        return window_of_box(place, crs, grid)

    def _move(self, path: list[Window | None]) -> None:
        # Keys and values are the largest part of a view: only the one in sight keeps them.
        if path[-1] != self.window:
            self._views.forget(self.window)
        self._path = path

    def _closer(
        self, region: np.ndarray | None = None, marks: Marks | None = None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Zoom to what is pointed at in a reduced view; what it is there, and what to say about it."""
        assert self.images is not None
        top, left, height, width = self._views.extent(self.window)
        view = self.images.crop(slices((top, left, height, width)))
        if region is not None and region.shape != view.shape:
            raise UserError(f"The region has {region.shape} pixels (rows, columns) but the view has {view.shape}.")
        placed, notes = gather(marks, region, view, self._before)
        if not placed:
            return {}, notes
        rows, columns = around(placed, tile_side(self.model.config))
        window = (top + rows.start, left + columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if self._views.reduced(window):
            size = f"{window[2]} x {window[3]} pixels around it are too many"
            raise UserError(f"What is pointed at lies too far apart: {size}; point at things one after the other.")
        self.zoom(window)
        across = f"columns {window[1]} to {window[1] + window[3]}"
        said = f"Answered from rows {window[0]} to {window[0] + window[2]} and {across}, around what is pointed at."
        return {"near": within(placed, (rows, columns))}, (*notes, said)

    def _prompt(self, view: View, turns: list[Turn]) -> Batch:
        """The whole conversation as a batch of one, without pixels; a view is encoded when it is first asked about."""
        model = self.model
        config, buckets = model.config, model.buckets or Buckets()
        limit = min(config.max_length, buckets.text[-1])
        sample = sample_of(view.images, *turns)
        words = (config, _DATA, model.engine.tokenizer, buckets)
        sensors = model.sensors or SENSORS
        try:
            layout = measure(sample, *words, sensors=sensors)
        except UserError as error:
            raise _longer(error, limit, bool(self.turns)) from error
        if len(layout.prompt) >= limit:
            raise _longer(None, limit, bool(self.turns))
        if view.example is None:
            first = dataclasses.replace(sample, turns=tuple(turns[-1:]))
            example = encode_sample(first, *words, sensors=sensors, follow=True)
            batch = stack([example], config, _DATA, buckets, sensors=model.sensors)
            view.fused = model.engine.encode(batch)
            if config.grounding is not None and view.fused is not None and example.followed == 1:
                view.pyramids = model.engine.pyramids(batch)
                batch = batch.replace(ground_optical=None, ground_sar=None)
            view.example = dataclasses.replace(example, pixels={}, valid={}, ground={})
            view.batch = batch.replace(optical=None, sar=None)
        assert view.batch is not None
        spoken = stack([dataclasses.replace(view.example, prompt=layout.prompt)], config, _DATA, buckets, sensors=())
        names = ("tokens", "visual_index", "lengths", "question", "loss_mask")
        return view.batch.replace(**{name: getattr(spoken, name) for name in names})

    def _answer(self, view: View, turn: Turn, batch: Batch, made: Generated) -> Answer:
        if view.fused is None:
            return Answer(turn.question, made.texts[0], model=self.model.name)
        dates = len(view.images.later) + 1
        reply = next(replies(self.model.engine, batch, view.fused, made, [dates], pyramids=view.pyramids))
        return self.model.whole(view.images, turn, reply)

    def _shown(self, turn: Turn, number: int) -> Turn:
        """An earlier turn, its regions on the grid of the view."""
        asked = self._windows[number - 1]
        if turn.region is None or asked == self.window:
            return turn
        places = self._views.extent(asked), self._views.extent(self.window)
        shape = self._views.of(self.window).images.shape
        shown = tuple(seen_from(region, *places, shape) for region in turn.regions)
        if not all(region.any() for region in shown):
            raise UserError(
                f"Question {number} speaks of a region that lies outside the window {self.window}; zoom out, or "
                "start a new conversation."
            )
        return dataclasses.replace(turn, region=shown)


def _longer(error: UserError | None, limit: int, begun: bool) -> UserError:
    if error is not None and "is the most" not in str(error):
        return error
    what = "start a new conversation" if begun else "ask a shorter question"
    return UserError(f"The conversation has reached the {limit} tokens that the model can read; {what}.")
