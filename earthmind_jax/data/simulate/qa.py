"""What the question makers share: a question with its answer, the words for things, and which sensor could tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from earthmind_jax.data.simulate.materials import Cover
from earthmind_jax.data.simulate.scene import Scene

MIN_SHARE = 0.02  # of the image: an area smaller than this is not asked for
HIDDEN_SHARE = 0.25  # of a target under cloud: then the optical image alone cannot tell

NOUNS: dict[Cover, tuple[str, str]] = {
    Cover.WATER: ("water", "water"),
    Cover.FOREST: ("forest", "forest"),
    Cover.FIELD: ("field", "fields"),
    Cover.GRASSLAND: ("grassland", "grassland"),
    Cover.BARE: ("bare ground", "bare ground"),
    Cover.ASPHALT: ("asphalt", "asphalt"),
    Cover.ROAD: ("road", "roads"),
    Cover.BUILDING: ("building", "buildings"),
    Cover.SHIP: ("ship", "ships"),
    Cover.BRIDGE: ("bridge", "bridges"),
}
_COUNTABLE = (Cover.FIELD, Cover.ROAD, Cover.BUILDING, Cover.SHIP, Cover.BRIDGE)


@dataclass(frozen=True, eq=False)
class QA:
    """A question and its answer.

    Attributes:
      task: a key of ``questions.TASKS``.
      question: without options; ``{region}`` stands for the marked region's name.
      answer: for multiple choice the full text of an option; ``[SEG]`` stands for the mask.
      options: lettered, or None.
      mask: bool [H W], the target of ``[SEG]``.
      region: bool [H W], what the question marks.
      needs: the sensors each of which could tell by itself; empty where it takes both together.
    """

    task: str
    question: str
    answer: str
    options: tuple[str, ...] | None = None
    mask: Bool[np.ndarray, "H W"] | None = None
    region: Bool[np.ndarray, "H W"] | None = None
    needs: tuple[str, ...] = ("optical", "sar")

    @property
    def prompt(self) -> str:
        """The question, and its options in lines below."""
        return "\n".join((self.question, *(self.options or ())))


def have(cover: Cover) -> str:
    """``a ship``, ``water``: a class after "there is"."""
    return f"a {NOUNS[cover][0]}" if cover in _COUNTABLE else NOUNS[cover][0]


def list_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)


def place_in_words(bbox: tuple[int, int, int, int], shape: tuple[int, int]) -> str:
    """The part of the image (of nine) that the middle of a box lies in, e.g. ``in the upper left``."""
    x = int(1.5 * (bbox[0] + bbox[2]) / shape[1])
    y = int(1.5 * (bbox[1] + bbox[3]) / shape[0])
    return _PLACES[min(y, 2)][min(x, 2)]


def sensors_for(scene: Scene, cover: Cover) -> tuple[str, ...]:
    """The sensors that could find a class by themselves (everything of it, and nothing else for it).

    Optical: unless a quarter of the target, or of the scene where it is absent, is under cloud or missing. SAR: unless
    other ground has the backscatter (VV and VH, speckle-free, 10 - 90 % of the target's) that the target has; for an
    absent class, only objects, which would shine, can be ruled out.
    """
    if cover not in scene.sensors:
        scene.sensors[cover] = _able(scene, cover)
    return scene.sensors[cover]


def _able(scene: Scene, cover: Cover) -> tuple[str, ...]:
    target = scene.class_map == cover
    size = int(target.sum())
    hidden = scene.cloud | ~scene.optical_valid
    unseen = ~scene.sar_valid
    able = []
    if (int((hidden & target).sum()) if size else int(hidden.sum())) <= HIDDEN_SHARE * (size or target.size):
        able.append("optical")
    if (int((unseen & target).sum()) if size else int(unseen.sum())) <= HIDDEN_SHARE * (size or target.size):
        if not size:
            told = cover in (Cover.SHIP, Cover.BUILDING, Cover.BRIDGE)
        else:
            inside = scene.sar_mean[:, target]
            first, last = size // 10, (9 * size) // 10
            ordered = np.partition(inside, (first, last), axis=1)
            low, high = ordered[:, first], ordered[:, last]
            vv, vh = scene.sar_mean
            alike = (vv >= low[0]) & (vv <= high[0]) & (vh >= low[1]) & (vh <= high[1])
            told = int((alike & ~target).sum()) <= 0.25 * int(alike.sum())
        if told:
            able.append("sar")
    return tuple(able)
