"""``EarthMind``: a checkpoint that answers questions about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.collate import Buckets
from earthmind_jax.data.pointed import visual_prompts
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.answer import Reply, answer
from earthmind_jax.infer.drawing import answer_of, pointed_at, target_mask, target_masks, windowed
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.many import Many
from earthmind_jax.infer.marks import Marks, name_marks, regions
from earthmind_jax.infer.pointing import Zoom
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.samples import dated_masks, sample_of
from earthmind_jax.infer.view import View, images_of, in_windows, outline, part_of, part_reader, view_of
from earthmind_jax.infer.windows import OVERLAP
from earthmind_jax.types import Params, VisualPrompts

if TYPE_CHECKING:
    from earthmind_jax.infer.conversation import Conversation
    from earthmind_jax.infer.explain import Explanation

Source = str | Path | np.ndarray
"""A file (GeoTIFF with named or recognisable bands, or an 8-bit picture) or an 8-bit picture [H W 3]."""

Sources = Source | Sequence[Source]
"""One image, or one for each date."""


@dataclass
class EarthMind:
    """A model ready to answer.

    >>> em = EarthMind.load("demo/checkpoint")
    >>> r = em.ask("Is there a ship in this image?", optical="s2.tif", sar="s1.tif")
    >>> r.text, r.masks, r.fusion
    """

    config: EarthMindConfig
    engine: Engine
    name: str = "earthmind"
    batch_size: int = 8  # windows of a large scene that go through the model at once
    buckets: Buckets | None = None  # shapes that requests are padded to; None: the usual ones
    sensors: tuple[str, ...] | None = None  # those that batches have room for; None: those that a request has
    path: str = ""  # of the checkpoint; empty for parameters in memory
    source: dict[str, Any] = field(default_factory=dict)  # what the checkpoint was made from, as it says itself
    many: Many | None = None  # the compiled functions of several targets at once, from the first time they are used

    @classmethod
    def load(cls, path: str | Path) -> EarthMind:
        """Load a checkpoint directory (or a training run: its latest step).

        Raises:
          UserError: the directory is missing, is no checkpoint, or does not fit its configuration.
        """
        config, params = checkpoint.load(path)
        model = cls.from_params(config, params, Tokenizer.load(Path(path) / checkpoint.TOKENIZER), Path(path).name)
        return replace(model, path=str(path), source=checkpoint.read_source(path))

    @classmethod
    def from_params(
        cls, config: EarthMindConfig, params: Params, tokenizer: Tokenizer, name: str = "earthmind"
    ) -> EarthMind:
        """A model from parameters in memory."""
        return cls(config, Engine(config, params, tokenizer), name)

    def ask(
        self,
        question: str,
        *,
        optical: Sources | None = None,
        sar: Sources | None = None,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        steer: bool = False,
        window: Zoom | None = None,
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = OVERLAP,
        told: Told = NOTHING,
    ) -> Answer:
        """Ask about an optical image, a SAR image, both, or neither.

        The answer is drawn from the whole image. If it holds ``[SEG]`` and the image is larger than the model's own
        window, the masks are drawn window by window at full resolution and blended. Rasters that do not fit into memory
        (33 million pixels), whole or as a window, are seen with fewer pixels, on whose grid masks then lie, as a note
        says. Of several dates the first five reach the language model; each ``[SEG]``
        has a mask on every date, those beyond the fifth followed by the tracker.

        Args:
          region: bool [H W] on the image's grid, what the question calls ``region1``.
          marks: what else the question points at (points, boxes, polygons, scribbles, masks): region1, region2, ... in
            their order, or ``{name}`` in the question for an object of that name.
          steer: the marks also prompt the mask decoder: a single one goes with every ``[SEG]``, else the first with the
            first, and so on.
          window: the part of the scene to ask about; masks then lie on its grid, and their boxes and polygons in the
            scene's pixels. None: all of it, or, where something is pointed at and the image is larger than the model's
            own window, the window around that. Of rasters with more than 4 million pixels nothing else is read.
          temperature: 0 is greedy.
          overlap: share of a window common to neighbours.
          told: what the files do not say themselves (sensor, scale, band names).

        Raises:
          UserError: a file cannot be used, or the pair does not overlap.
        """
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        view = self.part(optical, sar, told, region=region, marks=marks, window=window, closer=True, reduced=True)
        turn, prompts = self.about(question, view, steer)
        images = None if view is None else view.images
        answer = self.look(images, turn, max_new, temperature, overlap, prompts=prompts)
        return answer if view is None else view.placed(answer)

    def point(
        self,
        question: str,
        images: Images | None,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        window: Zoom | None = None,
        steer: bool = False,
        before: int = 0,
    ) -> tuple[View | None, Turn, VisualPrompts | None]:
        """The part of the scene that a question is about, its turn, and what prompts the mask decoder beside it;
        ``before`` regions were pointed at in earlier turns."""
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        if images is None:
            if not (region is None and marks is None and window is None):
                raise UserError("There is no image to point at; give an optical image, a SAR image, or both.")
            return None, *self.about(question, None)
        view = self.view(images, region, marks, window, closer=True, before=before)
        return view, *self.about(question, view, steer, before)

    def about(
        self, question: str, view: View | None, steer: bool = False, before: int = 0
    ) -> tuple[Turn, VisualPrompts | None]:
        """The turn of a question about a view, and what prompts the mask decoder beside it."""
        if view is None:
            return Turn(question), None
        prompts = None
        if steer and view.marks and self.config.grounding is not None:
            prompts = visual_prompts(view.marks, self.config.grounding)
        found = regions(view.marks, view.images, self.config)
        return Turn(name_marks(question, view.marks, before), region=found or None), prompts

    def turn(
        self, question: str, images: Images | None, *, region: np.ndarray | None = None, marks: Marks | None = None
    ) -> Turn:
        """A question about the images as a whole and what it points at on their grid, checked.

        Args:
          region, marks: as in :meth:`ask`.
        """
        if images is None:
            return self.point(question, images, region, marks)[1]
        whole = (0, 0, *images.shape)
        return self.point(question, images, region, marks, whole)[1]

    def look(
        self,
        images: Images | None,
        turn: Turn,
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = OVERLAP,
        *,
        before: Sequence[Turn] = (),
        prompts: VisualPrompts | None = None,
    ) -> Answer:
        """The answer to a turn about images that are read already, ``before`` being what was said earlier; ``prompts``
        go to the mask decoder together with every ``[SEG]``."""
        if images is None:
            reply = self.reply([Sample("ask", (*before, turn))], max_new, temperature)[0]
            return Answer(turn.question, reply.text, model=self.name)
        reply = self.reply([sample_of(images, *before, turn)], max_new, temperature, marks=prompts)[0]
        return self.answer(images, turn, reply, max_new, overlap)

    def answer(self, images: Images, turn: Turn, reply: Reply, max_new: int = 256, overlap: float = OVERLAP) -> Answer:
        """A reply as an answer: masks on the images' own grid, of a large scene drawn anew window by window, but where
        the question points at something."""
        if reply.masks and self.large(images) and turn.region is None:
            return windowed(self, turn.question, images, reply.text, max_new, overlap)
        return self.whole(images, turn, reply)

    def whole(self, images: Images, turn: Turn, reply: Reply) -> Answer:
        """A reply as an answer, masks as they were drawn from the image as a whole."""
        masks = [m for i in range(len(reply.masks)) for m in dated_masks(reply.mask(images.shape, i), images)]
        return answer_of(self, turn.question, reply.text, tuple(masks), reply.overview, images)

    def segment(
        self,
        target: str | Sequence[str] = "",
        *,
        optical: Sources | None = None,
        sar: Sources | None = None,
        marks: Marks | None = None,
        window: Zoom | None = None,
        max_new: int = 32,
        overlap: float = OVERLAP,
        told: Told = NOTHING,
    ) -> Answer:
        """Draw the mask of ``target`` ("water"); an image larger than the model's window is done window by window.

        The answer always has one mask (one for each date); it is empty where the model finds nothing. Of several
        targets it has one each, and the image is encoded once for all of them. A raster that does not fit into memory
        is refused: name a part, or draw to files (:func:`earthmind_jax.infer.scene.segment_scene`).

        Args:
          marks: draw what is pointed at instead, one mask for each object: from the marks alone, or, with a target,
            from its words and the mark together. The decoder looks at the window around each object.
          window: the part of the scene to look at, as in :meth:`ask`. Of rasters with more than 4 million pixels masks
            of what is pointed at lie on the part around it.
          told: what the files do not say themselves.
        """
        targets = (target,) if isinstance(target, str) else tuple(target)
        if len(targets) > 1 and marks is not None:
            raise UserError("What is pointed at is drawn with one target or none; ask for several targets alone.")
        if optical is None and sar is None:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        view = self.part(optical, sar, told, marks=marks, window=window)
        assert view is not None
        return self.drawn(view, target, max_new, overlap)

    def drawn(self, view: View, target: str | Sequence[str], max_new: int = 32, overlap: float = OVERLAP) -> Answer:
        """:meth:`segment` of a part of a scene that is read already."""
        if not view.marks and not (target.strip() if isinstance(target, str) else target):
            raise UserError("There is nothing to segment: no target is named.")
        self.require_masks()
        if view.marks:
            words = target if isinstance(target, str) else "".join(target)
            return view.placed(pointed_at(self, view.images, view.marks, words, max_new))
        if isinstance(target, str):
            return view.placed(target_mask(self, view.images, target, max_new, overlap))
        return view.placed(target_masks(self, view.images, tuple(target), max_new, overlap))

    def require_masks(self) -> None:
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")

    def part(self, optical: Sources | None, sar: Sources | None, told: Told = NOTHING, **options: Any) -> View | None:
        """The part of files that is asked about (see :func:`earthmind_jax.infer.view.part_of`); None without any."""
        return part_of(optical, sar, self.config, told, **options)

    def view(self, images: Images, *pointed: Any, **options: Any) -> View:
        """The part of a scene that is asked about (see :func:`earthmind_jax.infer.view.view_of`)."""
        return view_of(images, self.config.sensors.window, *pointed, **options)

    def conversation(
        self, *, optical: Sources | None = None, sar: Sources | None = None, told: Told = NOTHING
    ) -> Conversation:
        """Several questions about one image (see :class:`earthmind_jax.infer.conversation.Conversation`)."""
        from earthmind_jax.infer.conversation import Conversation

        reader = part_reader(optical, sar, self.config.sensors, told)
        if reader is not None:
            return Conversation(self, outline(reader), reader)
        return Conversation(self, self.images(optical, sar, told))

    def explain(self, question: str, **options: Any) -> Explanation:
        """Ask with the reason: :func:`earthmind_jax.infer.explain.explain`."""
        from earthmind_jax.infer.explain import explain

        return explain(self, question, **options)

    def images(self, optical: Sources | None, sar: Sources | None, told: Told = NOTHING) -> Images | None:
        """The images of a request, read, calibrated and aligned; None for a request without any."""
        return images_of(optical, sar, self.config.sensors, told)

    def reply(
        self,
        samples: Sequence[Sample],
        max_new: int,
        temperature: float = 0.0,
        batch_size: int = 1,
        marks: VisualPrompts | None = None,
    ) -> list[Reply]:
        made = answer(
            self.engine, samples, batch_size=batch_size, max_new=max_new, temperature=temperature,
            buckets=self.buckets, sensors=self.sensors, marks=marks,
        )  # fmt: skip
        return list(made)

    def large(self, images: Images) -> bool:
        """Whether masks of these images are drawn window by window."""
        return in_windows(images, self.config.sensors.window)
