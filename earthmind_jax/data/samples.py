"""What the data pipeline encodes: samples, each one scene as arrays with the questions and answers about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from earthmind_jax.errors import UserError

if TYPE_CHECKING:
    from earthmind_jax.geo.marks import Mark

SENSORS = ("optical", "sar")

Picture = np.ndarray | Mapping[str, np.ndarray]
"""One sensor's image: 8-bit [H W], [H W 3] (a finished picture), or band name -> float [H W] (reflectance, or dB)."""


@dataclass(frozen=True, eq=False)
class Dated:
    """One object's masks [h w] on each date, None where it is not known."""

    masks: tuple[np.ndarray | None, ...]


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer.

    Attributes:
      answer: None where the model is to answer.
      mask: [h w], or [k h w] for the k ``[SEG]`` of the answer, any size, nonzero is the object; or a tuple of k, each
        [h w] (on every date) or :class:`Dated`.
      marks: what points the mask decoder at the masks of the answer, in pixels of the reference image: one for all of
        them, or one for each.
      region: [h w], the part of the image that the question asks about (``region1``, counted over the conversation; a
        ``{region}`` in the question becomes that name); or a tuple of several, whose names the question's ``{region}``
        become one after the other.
    """

    question: str
    answer: str | None = None
    mask: np.ndarray | tuple[np.ndarray | Dated, ...] | None = None
    region: np.ndarray | tuple[np.ndarray, ...] | None = None
    marks: tuple[Mark, ...] = ()

    @property
    def regions(self) -> tuple[np.ndarray, ...]:
        """The parts of the image that the question asks about."""
        if self.region is None:
            return ()
        return self.region if isinstance(self.region, tuple) else (self.region,)

    @property
    def masks(self) -> tuple[np.ndarray | Dated, ...]:
        """One mask for each ``[SEG]`` of the answer."""
        if self.mask is None:
            return ()
        if isinstance(self.mask, tuple):
            return self.mask
        return (self.mask,) if self.mask.ndim == 2 else tuple(self.mask)


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene as arrays. Both sensors cover the same ground; ``None`` is a missing sensor, a tuple several dates.

    Validity is [H W], None for valid everywhere; of several dates a tuple of these.
    """

    id: str
    turns: tuple[Turn, ...]
    optical: Picture | tuple[Picture, ...] | None = None
    sar: Picture | tuple[Picture, ...] | None = None
    optical_valid: np.ndarray | tuple[np.ndarray | None, ...] | None = None
    sar_valid: np.ndarray | tuple[np.ndarray | None, ...] | None = None

    def images(self, sensor: str) -> tuple[tuple[Picture, np.ndarray | None], ...]:
        """Image and validity on each date of ``optical`` or ``sar``; empty where the sensor is missing."""
        pictures, valid = getattr(self, sensor), getattr(self, f"{sensor}_valid")
        if pictures is None:
            return ()
        if not isinstance(pictures, tuple):
            return ((pictures, valid),)
        marks = valid if isinstance(valid, tuple) else (valid,) * len(pictures)
        if len(marks) != len(pictures):
            raise UserError(f"there are {len(pictures)} {sensor} images but {len(marks)} validity masks.")
        return tuple(zip(pictures, marks, strict=True))
