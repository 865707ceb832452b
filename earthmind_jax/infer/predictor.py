"""``EarthMind``: a checkpoint that answers questions about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.collate import Buckets, sensor_frames
from earthmind_jax.data.dates import load_dates
from earthmind_jax.data.pointed import visual_prompts
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.answer import Reply, answer
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.many import Many
from earthmind_jax.infer.marks import Marks, gather, name_marks, regions
from earthmind_jax.infer.pointing import Zoom, closer_to, draw, surroundings, within, zoomed
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.samples import dated_masks, sample_of
from earthmind_jax.infer.view import View, outline, part_reader, read_part, seen
from earthmind_jax.infer.windows import OVERLAP, Blend, stretched, windows
from earthmind_jax.types import Params, VisualPrompts

if TYPE_CHECKING:
    from earthmind_jax.infer.conversation import Conversation
    from earthmind_jax.infer.explain import Explanation

Source = str | Path | np.ndarray
"""A file (GeoTIFF with named or recognisable bands, or an 8-bit picture) or an 8-bit picture [H W 3]."""

Sources = Source | Sequence[Source]
"""One image, or one for each date."""

UNPOINTED = "Where nothing is drawn, the model may not have learnt what marks mean (loss.mark); name the target, too."


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
        window, the masks are drawn window by window at full resolution and blended. Of several dates the first five
        reach the language model; each ``[SEG]`` has a mask on every date, those beyond the fifth followed by the
        tracker.

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
        view = self.part(optical, sar, told, region=region, marks=marks, window=window, closer=True)
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
            reply = self._reply([Sample("ask", (*before, turn))], max_new, temperature)[0]
            return Answer(turn.question, reply.text, model=self.name)
        reply = self._reply([sample_of(images, *before, turn)], max_new, temperature, marks=prompts)[0]
        return self.answer(images, turn, reply, max_new, overlap)

    def answer(self, images: Images, turn: Turn, reply: Reply, max_new: int = 256, overlap: float = OVERLAP) -> Answer:
        """A reply as an answer: masks on the images' own grid, of a large scene drawn anew window by window, but where
        the question points at something."""
        if reply.masks and self.large(images) and turn.region is None:
            return self._windowed(turn.question, images, reply.text, max_new, overlap)
        return self.whole(images, turn, reply)

    def whole(self, images: Images, turn: Turn, reply: Reply) -> Answer:
        """A reply as an answer, masks as they were drawn from the image as a whole."""
        masks = [m for i in range(len(reply.masks)) for m in dated_masks(reply.mask(images.shape, i), images)]
        return self._answer(turn.question, reply.text, tuple(masks), reply.overview, images)

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
        targets it has one each, and the image is encoded once for all of them.

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
        self._require_masks()
        if view.marks:
            words = target if isinstance(target, str) else "".join(target)
            return view.placed(self._drawn(view.images, view.marks, words, max_new))
        if isinstance(target, str):
            return view.placed(self.outline(view.images, target, max_new, overlap))
        return view.placed(self._outlines(view.images, tuple(target), max_new, overlap))

    def outline(self, images: Images, target: str, max_new: int = 32, overlap: float = OVERLAP) -> Answer:
        """:meth:`segment` of images that are read already."""
        self._require_masks()
        question = SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip())
        if self.large(images):
            return self._windowed(question, images, None, max_new, overlap)
        reply = self._reply([sample_of(images, Turn(question))], max_new)[0]
        probability = reply.mask(images.shape)
        if probability is None:
            probability = np.zeros((len(images.later) + 1, *images.shape), np.float32)
        return self._answer(question, reply.text, dated_masks(probability, images), reply.overview, images)

    def _drawn(self, images: Images, placed: Sequence[Mark], target: str, max_new: int) -> Answer:
        """One mask for each object that is pointed at."""
        found, said, fusion = draw(self.engine, images, placed, target.strip(), self.buckets, max_new, self.sensors)
        pairs = zip(found, placed, strict=True)
        masks = tuple(replace(mask, name=mark.name) for p, mark in pairs for mask in dated_masks(p, images))
        if not target.strip() and not all(mask.array.any() for mask in masks):
            images = replace(images, notes=(*images.notes, UNPOINTED))
        return self._answer(target.strip(), said, masks, fusion, images)

    def _require_masks(self) -> None:
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")

    def _outlines(self, images: Images, targets: tuple[str, ...], max_new: int, overlap: float) -> Answer:
        """:meth:`outline` of several targets; what does not depend on the question is computed once."""
        for target in targets:
            if not isinstance(target, str) or not target.strip():
                raise UserError(f"There is nothing to segment: one of the targets is {target!r}.")
        if self.large(images) or images.later:
            each = [self.outline(images, target, max_new, overlap) for target in targets]
            masks, texts, fusion = [a.masks for a in each], [a.text for a in each], each[0].fusion
        else:
            if self.many is None:
                self.many = Many(self.engine)
            questions = [SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip()) for target in targets]
            replies = self.many.answer(sample_of(images, Turn(questions[0])), questions, self.buckets, max_new)
            drawn = [reply.mask(images.shape) for reply in replies]
            masks = [dated_masks(np.zeros(images.shape) if p is None else p, images) for p in drawn]
            texts, fusion = [reply.text for reply in replies], replies[0].overview
        pairs = zip(masks, targets, strict=True)
        named = tuple(replace(mask, name=target.strip()) for several, target in pairs for mask in several)
        text = "\n".join(f"{target.strip()}: {text}" for target, text in zip(targets, texts, strict=True))
        return self._answer("; ".join(targets), text, named, fusion, images)

    def part(
        self,
        optical: Sources | None,
        sar: Sources | None,
        told: Told = NOTHING,
        *,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        window: Zoom | None = None,
        closer: bool = False,
    ) -> View | None:
        """:meth:`view` of files; None without any. Of a raster too large for memory nothing but the part is read, and
        where only something is pointed at, that is what the mask decoder looks at around it."""
        pointed = not (region is None and marks is None and window is None)
        reader = part_reader(optical, sar, self.config.sensors, told) if pointed else None
        if reader is not None:
            scene = outline(reader)
            if window is None and not closer:
                window = surroundings(gather(marks, region, scene)[0], self.config.sensors.window, scene.shape)
            return read_part(reader, self.view(scene, region, marks, window, closer))
        images = self.images(optical, sar, told)
        if images is None:
            if pointed:
                raise UserError("There is no image to point at; give an optical image, a SAR image, or both.")
            return None
        return self.view(images, region, marks, window, closer)

    def view(
        self,
        images: Images,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        window: Zoom | None = None,
        closer: bool = False,
        before: int = 0,
    ) -> View:
        """The part of a scene that is asked about, with what is pointed at on it; ``closer``: of an image larger than
        the model's own window the one around that, unless a window is named."""
        _check_region(region, images)
        placed, notes = gather(marks, region, images, before)
        if window is None and not (closer and placed and self.large(images)):
            return seen(View(replace(images, notes=(*images.notes, *notes)), images, marks=placed))
        part, said = zoomed(window, images) if window is not None else closer_to(placed, self.config.sensors.window)
        crop = images.crop(part)
        crop = replace(crop, notes=(*images.notes, *said, *notes))
        return seen(View(crop, images, (part[0].start, part[1].start), within(placed, part)))

    def conversation(
        self, *, optical: Sources | None = None, sar: Sources | None = None, told: Told = NOTHING
    ) -> Conversation:
        """Several questions about one image (see :class:`earthmind_jax.infer.conversation.Conversation`)."""
        from earthmind_jax.infer.conversation import Conversation

        return Conversation(self, self.images(optical, sar, told))

    def explain(self, question: str, **options: Any) -> Explanation:
        """Ask with the reason: :func:`earthmind_jax.infer.explain.explain`."""
        from earthmind_jax.infer.explain import explain

        return explain(self, question, **options)

    def images(self, optical: Sources | None, sar: Sources | None, told: Told = NOTHING) -> Images | None:
        """The images of a request, read, calibrated and aligned; None for a request without any."""
        given = {name: source for name, source in (("optical", optical), ("sar", sar)) if source is not None}
        told.require_files(given)
        sources = {name: list(s) if isinstance(s, list | tuple) else [s] for name, s in given.items()}
        for name, several in sources.items():
            if not several:
                raise UserError(f"The list of {name} images is empty; give at least one, or leave it out.")
        return load_dates(sources, self.config.sensors, told) if sources else None

    def _reply(
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
        window = self.config.sensors.window
        return window > 0 and max(images.shape) > window

    def _windowed(self, question: str, images: Images, text: str | None, max_new: int, overlap: float) -> Answer:
        """Ask the same of every window, and blend their masks and fusion weights over the scene."""
        places = [w for w in windows(images.shape, self.config.sensors.window, overlap) if images.valid[w].any()]
        samples = [sample_of(images.crop(w), Turn(question)) for w in places]
        dates = len(images.later) + 1
        mask, fusion = Blend(images.shape, dates), Blend(images.shape, 2)
        best = ""
        for place, reply in zip(places, self._reply(samples, max_new, batch_size=self.batch_size), strict=True):
            shape = (place[0].stop - place[0].start, place[1].stop - place[1].start)
            probability = reply.mask(shape)
            # A window without [SEG] says that the object is not there.
            if probability is None:
                probability = np.zeros((dates, *shape), np.float32)
            mask.add(place, np.moveaxis(probability.reshape(dates, *shape), 0, -1))
            if reply.masks or not best:
                best = reply.text
            if reply.weights is not None:
                weights = stretched(reply.weights[0], shape)
                fusion.add(place, weights, weights.sum(-1) > 0)
        drawn = dated_masks(np.moveaxis(mask.mean(), -1, 0), images)
        return self._answer(question, text or best, drawn, fusion.mean(), images)

    def _answer(
        self, question: str, text: str, masks: tuple[Mask, ...], fusion: np.ndarray | None, images: Images
    ) -> Answer:
        pictures = {}
        sources: dict[str, str] = {}
        for each in (images, *images.later):
            for name, (picture, valid) in each.pictures.items():
                frame = sensor_frames(picture, valid, name, self.config.sensors)[0][0]
                pictures.setdefault(name, frame)
                if images.later:
                    pictures[f"{name} {each.date}"] = frame
            sources |= {f"{name} {each.date}" if images.later else name: p for name, p in each.sources.items()}
        return Answer(question, text, masks, fusion, pictures, tuple(images.notes), self.name, sources)


def _check_region(region: np.ndarray | None, images: Images) -> None:
    if region is not None and region.shape != images.shape:
        raise UserError(f"The region has {region.shape} pixels (rows, columns) but the image has {images.shape}.")
