"""``EarthMind``: a checkpoint that answers questions about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.collate import Buckets, sensor_frames
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.read import Images, load_images
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.answer import Reply, answer
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.many import Many
from earthmind_jax.infer.marks import Marks, gather, name_marks, regions, visual_prompts
from earthmind_jax.infer.pointing import Zoom, closer_to, draw, within, zoomed
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.windows import Blend, windows
from earthmind_jax.types import Params, VisualPrompts

Source = str | Path | np.ndarray
"""A file (GeoTIFF with named or recognisable bands, or an 8-bit picture) or an 8-bit picture [H W 3]."""


@dataclass(frozen=True, eq=False)
class View:
    """The part of a scene that is asked about, and the (row, column) where it begins."""

    images: Images
    offset: tuple[int, int] = (0, 0)

    def placed(self, answer: Answer) -> Answer:
        """The answer with its masks at their place in the scene."""
        return replace(answer, masks=tuple(replace(mask, offset=self.offset) for mask in answer.masks))


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
    many: Many | None = None  # the compiled functions of several targets at once, from the first time they are used

    @classmethod
    def load(cls, path: str | Path) -> EarthMind:
        """Load a checkpoint directory (or a training run: its latest step).

        Raises:
          UserError: the directory is missing, is no checkpoint, or does not fit its configuration.
        """
        config, params = checkpoint.load(path)
        return cls.from_params(config, params, Tokenizer.load(Path(path) / checkpoint.TOKENIZER), Path(path).name)

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
        optical: Source | None = None,
        sar: Source | None = None,
        region: np.ndarray | None = None,
        marks: Marks | None = None,
        steer: bool = False,
        window: Zoom | None = None,
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = 0.5,
    ) -> Answer:
        """Ask about an optical image, a SAR image, both, or neither.

        The answer is drawn from the whole image. If it holds ``[SEG]`` and the image is larger than the model's own
        window, the masks are drawn window by window at full resolution and blended.

        Args:
          region: bool [H W] on the image's grid, what the question calls ``region1``.
          marks: what else the question points at (points, boxes, polygons, scribbles, masks): region1, region2, ... in
            their order, or ``{name}`` in the question for an object of that name.
          steer: the marks also prompt the mask decoder: a single one goes with every ``[SEG]``, else the first with the
            first, and so on.
          window: the part of the scene to ask about; masks then lie on its grid, and their boxes and polygons in the
            scene's pixels. None: all of it, or, where something is pointed at and the image is larger than the model's
            own window, the window around that.
          temperature: 0 is greedy.
          overlap: share of a window common to neighbours.

        Raises:
          UserError: a file cannot be used, or the pair does not overlap.
        """
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        images = self._images(optical, sar)
        if images is None:
            if not (region is None and marks is None and window is None):
                raise UserError("There is no image to point at; give an optical image, a SAR image, or both.")
            reply = self._reply([Sample("ask", (Turn(question),))], max_new, temperature)[0]
            return Answer(question, reply.text, model=self.name)
        view, placed = self._view(images, region, marks, window, closer=True)
        images = view.images
        reply = self._pointed(question, images, placed, steer, max_new, temperature)
        if reply.masks and self._large(images) and not placed:
            return view.placed(self._windowed(question, images, reply.text, max_new, overlap))
        masks = tuple(self._mask(reply.mask(images.shape, i), images) for i in range(len(reply.masks)))
        return view.placed(self._answer(question, reply.text, masks, self._mosaic(reply, images), images))

    def segment(
        self,
        target: str | Sequence[str] = "",
        *,
        optical: Source | None = None,
        sar: Source | None = None,
        marks: Marks | None = None,
        window: Zoom | None = None,
        max_new: int = 32,
        overlap: float = 0.5,
    ) -> Answer:
        """Draw the mask of ``target`` ("water"); an image larger than the model's window is done window by window.

        The answer always has one mask; it is empty where the model finds nothing. Of several targets it has one each,
        and the image is encoded once for all of them.

        Args:
          marks: draw what is pointed at instead, one mask for each object: from the marks alone, or, with a target,
            from its words and the mark together. The decoder looks at the window around each object.
          window: the part of the scene to look at, as in :meth:`ask`.
        """
        if not isinstance(target, str):
            return self._segment_targets(tuple(target), optical, sar, window, max_new, overlap)
        if not target.strip() and marks is None:
            raise UserError("There is nothing to segment: the target is empty.")
        images = self._images(optical, sar)
        if images is None:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")
        view, placed = self._view(images, None, marks, window)
        images = view.images
        if placed:
            found, said = draw(self.engine, images, placed, target.strip(), self.buckets, max_new)
            masks = tuple(replace(self._mask(p, images), name=mark.name) for p, mark in zip(found, placed, strict=True))
            return view.placed(self._answer(target.strip(), said, masks, None, images))
        question = SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip())
        if self._large(images):
            return view.placed(self._windowed(question, images, None, max_new, overlap))
        reply = self._reply([_sample(images, Turn(question))], max_new)[0]
        probability = reply.mask(images.shape)
        mask = self._mask(np.zeros(images.shape, np.float32) if probability is None else probability, images)
        return view.placed(self._answer(question, reply.text, (mask,), self._mosaic(reply, images), images))

    def _segment_targets(
        self,
        targets: tuple[str, ...],
        optical: Source | None,
        sar: Source | None,
        window: Zoom | None,
        max_new: int,
        overlap: float,
    ) -> Answer:
        for target in targets:
            if not isinstance(target, str) or not target.strip():
                raise UserError(f"There is nothing to segment: one of the targets is {target!r}.")
        if not targets:
            raise UserError("There is nothing to segment: no target is named.")
        images = self._images(optical, sar)
        if images is None:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")
        view, _ = self._view(images, None, None, window)
        images = view.images
        questions = [SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip()) for target in targets]
        if self._large(images):
            each = [self._windowed(question, images, None, max_new, overlap) for question in questions]
            masks, texts, fusion = [a.masks[0] for a in each], [a.text for a in each], each[0].fusion
        else:
            if self.many is None:
                self.many = Many(self.engine)
            replies = self.many.answer(_sample(images, Turn(questions[0])), questions, self.buckets, max_new)
            drawn = [reply.mask(images.shape) for reply in replies]
            masks = [self._mask(np.zeros(images.shape, np.float32) if p is None else p, images) for p in drawn]
            texts, fusion = [reply.text for reply in replies], self._mosaic(replies[0], images)
        named = tuple(replace(mask, name=target.strip()) for mask, target in zip(masks, targets, strict=True))
        text = "\n".join(f"{target.strip()}: {text}" for target, text in zip(targets, texts, strict=True))
        return view.placed(self._answer("; ".join(targets), text, named, fusion, images))

    def _view(
        self,
        images: Images,
        region: np.ndarray | None,
        marks: Marks | None,
        window: Zoom | None,
        closer: bool = False,
    ) -> tuple[View, tuple[Mark, ...]]:
        """The part of the scene that is asked about, and what is pointed at on it."""
        self._check_region(region, images)
        placed, notes = gather(marks, region, images)
        if window is None and not (closer and placed and self._large(images)):
            return View(replace(images, notes=(*images.notes, *notes))), placed
        part, said = zoomed(window, images) if window is not None else closer_to(placed, self.config.sensors.window)
        crop = images.crop(part)
        view = View(replace(crop, notes=(*images.notes, *said, *notes)), (part[0].start, part[1].start))
        return view, within(placed, part)

    def _pointed(
        self, question: str, images: Images, marks: Sequence[Mark], steer: bool, max_new: int, temperature: float
    ) -> Reply:
        turn = Turn(name_marks(question, marks), region=regions(marks, images, self.config) or None)
        prompts = None
        if steer and marks and self.config.grounding is not None:
            prompts = visual_prompts(marks, self.config.grounding)
        return self._reply([_sample(images, turn)], max_new, temperature, marks=prompts)[0]

    def _images(self, optical: Source | None, sar: Source | None) -> Images | None:
        given = {name: source for name, source in (("optical", optical), ("sar", sar)) if source is not None}
        return load_images(given, self.config.sensors) if given else None

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

    def _large(self, images: Images) -> bool:
        window = self.config.sensors.window
        return window > 0 and max(images.shape) > window

    def _windowed(self, question: str, images: Images, text: str | None, max_new: int, overlap: float) -> Answer:
        """Ask the same of every window, and blend their masks and fusion weights over the scene."""
        places = [w for w in windows(images.shape, self.config.sensors.window, overlap) if images.valid[w].any()]
        samples = [_sample(images.crop(w), Turn(question)) for w in places]
        mask, fusion = Blend(images.shape, 1), Blend(images.shape, 2)
        best = ""
        for place, reply in zip(places, self._reply(samples, max_new, batch_size=self.batch_size), strict=True):
            shape = (place[0].stop - place[0].start, place[1].stop - place[1].start)
            probability = reply.mask(shape)
            # A window without [SEG] says that the object is not there.
            mask.add(place, np.zeros((*shape, 1), np.float32) if probability is None else probability[..., None])
            if reply.masks or not best:
                best = reply.text
            if reply.weights is not None:
                weights = _stretch(reply.weights[0], shape)
                fusion.add(place, weights, weights.sum(-1) > 0)
        drawn = self._mask(mask.mean()[..., 0], images)
        return self._answer(question, text or best, (drawn,), fusion.mean(), images)

    def _mask(self, probability: np.ndarray | None, images: Images) -> Mask:
        assert probability is not None
        return Mask(probability.astype(np.float32), images.valid, images.transform, images.crs)

    def _mosaic(self, reply: Reply, images: Images) -> np.ndarray | None:
        """Weights of the tile that shows the whole image: the last one with data (thumbnail, or the only tile)."""
        if reply.weights is None:
            return None
        shown = [tile for tile in reply.weights if tile.sum() > 0]
        return shown[-1] if shown else reply.weights[0]

    def _answer(
        self, question: str, text: str, masks: tuple[Mask, ...], fusion: np.ndarray | None, images: Images
    ) -> Answer:
        pictures = {}
        for name, (picture, valid) in images.pictures.items():
            pictures[name] = sensor_frames(picture, valid, name, self.config.sensors)[0][0]
        return Answer(question, text, masks, fusion, pictures, tuple(images.notes), self.name)

    def _check_region(self, region: np.ndarray | None, images: Images) -> None:
        if region is not None and region.shape != images.shape:
            raise UserError(f"The region has {region.shape} pixels (rows, columns) but the image has {images.shape}.")


def _sample(images: Images, turn: Turn) -> Sample:
    fields: dict[str, Any] = {}
    for name, (picture, valid) in images.pictures.items():
        fields |= {name: picture, f"{name}_valid": valid}
    return Sample("ask", (turn,), **fields)


def _stretch(weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Token grid [n n 2] onto pixels [h w 2], nearest."""
    rows = np.arange(shape[0]) * weights.shape[0] // shape[0]
    columns = np.arange(shape[1]) * weights.shape[1] // shape[1]
    return weights[rows[:, None], columns[None, :]]
