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
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.answer import Reply, answer
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.windows import Blend, windows
from earthmind_jax.types import Params

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
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = 0.5,
        told: Told = NOTHING,
        **options: Any,
    ) -> Answer:
        """Ask about an optical image, a SAR image, both, or neither.

        The answer is drawn from the whole image. If it holds ``[SEG]`` and the image is larger than the model's own
        window, the masks are drawn window by window at full resolution and blended. Of several dates the first five
        reach the language model; each ``[SEG]`` has a mask on every date, those beyond the fifth followed by the
        tracker.

        Args:
          temperature: 0 is greedy.
          overlap: share of a window common to neighbours.
          told: what the files do not say themselves (sensor, scale, band names).
          options: what the question points at, see :meth:`turn`.

        Raises:
          UserError: a file cannot be used, or the pair does not overlap.
        """
        images = self.images(optical, sar, told)
        return self.look(images, self.turn(question, images, **options), max_new, temperature, overlap)

    def turn(self, question: str, images: Images | None, *, region: np.ndarray | None = None) -> Turn:
        """A question and what it points at, checked against the images: the one place where a turn is made.

        Args:
          region: bool [H W] on the images' grid, what the question calls ``region1``.
        """
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        if region is not None and images is None:
            raise UserError("A region needs an image; give one, or ask without the region.")
        if region is not None and region.shape != images.shape:
            raise UserError(f"The region has {region.shape} pixels (rows, columns) but the image has {images.shape}.")
        return Turn(question, region=region)

    def look(
        self,
        images: Images | None,
        turn: Turn,
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = 0.5,
        *,
        before: Sequence[Turn] = (),
    ) -> Answer:
        """The answer to a turn about images that are read already, ``before`` being what was said earlier."""
        if images is None:
            reply = self._reply([Sample("ask", (*before, turn))], max_new, temperature)[0]
            return Answer(turn.question, reply.text, model=self.name)
        reply = self._reply([sample_of(images, *before, turn)], max_new, temperature)[0]
        return self.answer(images, turn, reply, max_new, overlap)

    def answer(self, images: Images, turn: Turn, reply: Reply, max_new: int = 256, overlap: float = 0.5) -> Answer:
        """A reply as an answer: masks on the images' own grid, of a large scene drawn anew window by window."""
        if reply.masks and self.large(images):
            return self._windowed(turn.question, images, reply.text, max_new, overlap)
        return self.whole(images, turn, reply)

    def whole(self, images: Images, turn: Turn, reply: Reply) -> Answer:
        """A reply as an answer, masks as they were drawn from the image as a whole."""
        masks = [m for i in range(len(reply.masks)) for m in dated_masks(reply.mask(images.shape, i), images)]
        return self._answer(turn.question, reply.text, tuple(masks), self._mosaic(reply, images), images)

    def segment(
        self,
        target: str,
        *,
        optical: Sources | None = None,
        sar: Sources | None = None,
        max_new: int = 32,
        overlap: float = 0.5,
        told: Told = NOTHING,
    ) -> Answer:
        """Draw the mask of ``target`` ("water"); an image larger than the model's window is done window by window.

        The answer always has one mask (one for each date); it is empty where the model finds nothing.
        """
        if not target.strip():
            raise UserError("There is nothing to segment: the target is empty.")
        images = self.images(optical, sar, told)
        if images is None:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        return self.outline(images, target, max_new, overlap)

    def outline(self, images: Images, target: str, max_new: int = 32, overlap: float = 0.5) -> Answer:
        """:meth:`segment` of images that are read already."""
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")
        question = SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip())
        if self.large(images):
            return self._windowed(question, images, None, max_new, overlap)
        reply = self._reply([sample_of(images, Turn(question))], max_new)[0]
        probability = reply.mask(images.shape)
        if probability is None:
            probability = np.zeros((len(images.later) + 1, *images.shape), np.float32)
        return self._answer(question, reply.text, dated_masks(probability, images), self._mosaic(reply, images), images)

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
        self, samples: Sequence[Sample], max_new: int, temperature: float = 0.0, batch_size: int = 1
    ) -> list[Reply]:
        made = answer(
            self.engine, samples, batch_size=batch_size, max_new=max_new, temperature=temperature,
            buckets=self.buckets, sensors=self.sensors,
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
                weights = _stretch(reply.weights[0], shape)
                fusion.add(place, weights, weights.sum(-1) > 0)
        drawn = dated_masks(np.moveaxis(mask.mean(), -1, 0), images)
        return self._answer(question, text or best, drawn, fusion.mean(), images)

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
        sources: dict[str, str] = {}
        for each in (images, *images.later):
            for name, (picture, valid) in each.pictures.items():
                frame = sensor_frames(picture, valid, name, self.config.sensors)[0][0]
                pictures.setdefault(name, frame)
                if images.later:
                    pictures[f"{name} {each.date}"] = frame
            sources |= {f"{name} {each.date}" if images.later else name: p for name, p in each.sources.items()}
        return Answer(question, text, masks, fusion, pictures, tuple(images.notes), self.name, sources)


def sample_of(images: Images, *turns: Turn) -> Sample:
    """The images with a conversation about them; a sensor with several dates becomes a tuple."""
    fields: dict[str, Any] = {}
    for name in images.pictures:
        dates = [each.pictures[name] for each in (images, *images.later) if name in each.pictures]
        pictures, valid = zip(*dates, strict=True)
        one = len(dates) == 1
        fields |= {name: pictures[0] if one else pictures, f"{name}_valid": valid[0] if one else valid}
    return Sample("ask", turns, **fields)


def dated_masks(probability: np.ndarray | None, images: Images) -> tuple[Mask, ...]:
    """One mask [H W], or of several dates one for each [F H W], on the images' grid."""
    assert probability is not None
    each = probability.reshape(-1, *images.shape).astype(np.float32)
    return tuple(
        Mask(p, i.valid if i.pictures else images.valid, images.transform, images.crs, i.date)
        for p, i in zip(each, (images, *images.later), strict=True)
    )


def _stretch(weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Token grid [n n 2] onto pixels [h w 2], nearest."""
    rows = np.arange(shape[0]) * weights.shape[0] // shape[0]
    columns = np.arange(shape[1]) * weights.shape[1] // shape[1]
    return weights[rows[:, None], columns[None, :]]
