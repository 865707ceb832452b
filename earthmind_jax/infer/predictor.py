"""``EarthMind``: a checkpoint that answers questions about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.answer import Reply, answer
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.windows import Blend, windows
from earthmind_jax.types import Params

Source = str | Path | np.ndarray
"""A file (GeoTIFF with named or recognisable bands, or an 8-bit picture) or an 8-bit picture [H W 3]."""


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
        max_new: int = 256,
        temperature: float = 0.0,
        overlap: float = 0.5,
        told: Told = NOTHING,
    ) -> Answer:
        """Ask about an optical image, a SAR image, both, or neither.

        The answer is drawn from the whole image. If it holds ``[SEG]`` and the image is larger than the model's own
        window, the masks are drawn window by window at full resolution and blended.

        Args:
          region: bool [H W] on the image's grid, what the question calls ``region1``.
          temperature: 0 is greedy.
          overlap: share of a window common to neighbours.
          told: what the files do not say themselves (sensor, scale, band names).

        Raises:
          UserError: a file cannot be used, or the pair does not overlap.
        """
        if not question.strip():
            raise UserError("The question is empty; ask something.")
        images = self._images(optical, sar, told)
        if images is None:
            reply = self._reply([Sample("ask", (Turn(question),))], max_new, temperature)[0]
            return Answer(question, reply.text, model=self.name)
        self._check_region(region, images)
        sample = _sample(images, Turn(question, region=region))
        reply = self._reply([sample], max_new, temperature)[0]
        if reply.masks and self._large(images):
            return self._windowed(question, images, reply.text, max_new, overlap)
        masks = tuple(self._mask(reply.mask(images.shape, i), images) for i in range(len(reply.masks)))
        return self._answer(question, reply.text, masks, self._mosaic(reply, images), images)

    def segment(
        self,
        target: str,
        *,
        optical: Source | None = None,
        sar: Source | None = None,
        max_new: int = 32,
        overlap: float = 0.5,
        told: Told = NOTHING,
    ) -> Answer:
        """Draw the mask of ``target`` ("water"); an image larger than the model's window is done window by window.

        The answer always has one mask; it is empty where the model finds nothing.
        """
        if not target.strip():
            raise UserError("There is nothing to segment: the target is empty.")
        images = self._images(optical, sar, told)
        if images is None:
            raise UserError("Give an optical image, a SAR image, or both to segment.")
        if self.config.grounding is None:
            raise UserError(f"Model '{self.name}' has no mask decoder; it answers in text only.")
        question = SEGMENTATION_QUESTIONS[0].replace("{c}", target.strip())
        if self._large(images):
            return self._windowed(question, images, None, max_new, overlap)
        reply = self._reply([_sample(images, Turn(question))], max_new)[0]
        probability = reply.mask(images.shape)
        mask = self._mask(np.zeros(images.shape, np.float32) if probability is None else probability, images)
        return self._answer(question, reply.text, (mask,), self._mosaic(reply, images), images)

    def _images(self, optical: Source | None, sar: Source | None, told: Told = NOTHING) -> Images | None:
        given = {name: source for name, source in (("optical", optical), ("sar", sar)) if source is not None}
        return load_images(given, self.config.sensors, told) if given else None

    def _reply(
        self, samples: Sequence[Sample], max_new: int, temperature: float = 0.0, batch_size: int = 1
    ) -> list[Reply]:
        made = answer(
            self.engine, samples, batch_size=batch_size, max_new=max_new, temperature=temperature,
            buckets=self.buckets, sensors=self.sensors,
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
        return Answer(question, text, masks, fusion, pictures, tuple(images.notes), self.name, dict(images.sources))

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
