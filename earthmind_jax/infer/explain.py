"""An answer with its reason: what each sensor said alone, where each counted, what was not seen, how it was made."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.data.read import Images
from earthmind_jax.data.records import SENSORS
from earthmind_jax.data.tiles import nearest_resize
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.clouds import clouds
from earthmind_jax.infer.explain_facts import facts_of
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.timed import Timed, Times
from earthmind_jax.infer.windows import OVERLAP

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind, Sources

RUNS = {"both": "both sensors", "optical": "optical alone", "sar": "SAR alone"}


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer and its reason.

    Attributes:
      answer: of all the sensors that there are, the same as :meth:`EarthMind.ask` gives of what fits into memory.
      alone: of each sensor by itself, where there are two, on the same grid.
      valid: of each sensor where it has data, bool [H W].
      cloud: bool [H W], None where the files do not tell; ``cloud_note`` says which.
      times: seconds by run and step; ``read`` stands under ``both``.
      facts: checkpoint, versions and the like, by name.
    """

    answer: Answer
    alone: dict[str, Answer]
    valid: dict[str, np.ndarray]
    cloud: np.ndarray | None
    cloud_note: str
    times: dict[str, Times]
    facts: dict[str, str]

    @property
    def runs(self) -> dict[str, Answer]:
        """The answers by run, see :data:`RUNS`; a single sensor is its own run."""
        if self.alone:
            return {"both": self.answer, **self.alone}
        return {next(iter(self.valid), "text"): self.answer}

    @property
    def agreement(self) -> dict[str, dict[str, Any]]:
        """For each two runs: whether they said the same, and the IoU of their masks, pairwise in order.

        Words are compared without case, space and punctuation at their ends. Two empty masks agree (1); a mask that
        only one of them drew has none (0).
        """
        names = list(self.runs)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return {f"{a} - {b}": _agreement(self.runs[a], self.runs[b]) for a, b in pairs}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.answer.to_dict(),
            "alone": {name: answer.to_dict() for name, answer in self.alone.items()},
            "agreement": self.agreement,
            "valid": {name: float(valid.mean()) for name, valid in self.valid.items()},
            "cloud": None if self.cloud is None else float(self.cloud.mean()),
            "seconds": {name: {**t.steps, "compiling": t.compiling} for name, t in self.times.items()},
            "facts": self.facts,
        }

    def save_page(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing but itself.

        Raises:
          UserError: the folder does not exist.
          WorkError: it could not be written.
        """
        from earthmind_jax.geo.write import written_beside
        from earthmind_jax.infer.explain_page import page

        text = page(self)
        with written_beside(path) as beside:
            Path(beside).write_text(text, encoding="utf-8", errors="replace")
        return Path(path)


def explain(
    model: EarthMind,
    question: str,
    *,
    optical: Sources | None = None,
    sar: Sources | None = None,
    segment: bool = False,
    max_new: int | None = None,
    temperature: float = 0.0,
    overlap: float = OVERLAP,
    told: Told = NOTHING,
    command: str = "",
    **options: Any,
) -> Explanation:
    """Ask with the reason; of a pair each sensor is asked alone, too, about the same part of the scene.

    The whole of a raster with more than 4 million pixels is seen with fewer (:mod:`earthmind_jax.infer.overview`), and
    the masks are those of that look.

    Args:
      segment: ``question`` names what to draw (:meth:`EarthMind.segment`), or nothing where something is pointed at.
      max_new: 256, of a target 32.
      told: what the files do not say themselves.
      command: what to say about how this was called.
      options: what the question points at and the part of the scene that it is about (:meth:`EarthMind.part`), and
        ``steer``.

    Raises:
      UserError: as of :meth:`EarthMind.ask`.
    """
    if segment and temperature:
        raise UserError("A target to segment is not drawn at random; ask a question instead.")
    began = time.perf_counter()
    named = question.strip() or (segment and options.get("marks") is not None)
    if segment and not (named and (optical is not None or sar is not None)):
        raise UserError("Name something to segment, and give an optical image, a SAR image, or both.")
    if not named:
        raise UserError("The question is empty; ask something.")
    steer = options.pop("steer", False)
    view = model.part(optical, sar, told, closer=not segment, reduced=True, light=True, **options)
    reading = time.perf_counter() - began
    turn, prompts = (None, None) if segment else model.about(question, view, steer)
    images = None if view is None else view.images

    def ask(timed: EarthMind, seen: Images | None) -> Answer:
        if turn is None:
            assert view is not None
            assert seen is not None
            return timed.drawn(dataclasses.replace(view, images=seen), question, max_new or 32, overlap)
        answer = timed.look(seen, turn, max_new or 256, temperature, overlap, prompts=prompts)
        return answer if view is None else view.placed(answer)

    sensors = () if images is None else tuple(name for name in SENSORS if name in images.pictures)
    views = {"both" if len(sensors) > 1 else (sensors or ("text",))[0]: images}
    if len(sensors) > 1:
        views |= {name: images.only(name) for name in sensors}
    # With room for both sensors in every run, one compiled program serves all three.
    room = SENSORS if len(sensors) > 1 else model.sensors
    answers, times = {}, {}
    for name, seen in views.items():
        engine = Timed(model.engine)
        answers[name] = ask(dataclasses.replace(model, engine=engine, sensors=room), seen)
        times[name] = engine.times
    first = next(iter(views))
    times[first].steps = {"read": reading, **times[first].steps}
    placed = images is not None and images.crs is not None
    cloud, note = clouds(optical, images if placed or view is None else view.scene, told)
    if cloud is not None and view is not None and not placed:
        cloud = cloud[view.window]
    valid = {} if images is None else {name: images.only(name).valid for name in sensors}
    answer = answers.pop(first)
    return Explanation(answer, answers, valid, cloud, note, times, facts_of(model, images, command, optical, sar))


def _agreement(first: Answer, second: Answer) -> dict[str, Any]:
    def words(answer: Answer) -> str:
        return " ".join(answer.text.casefold().split()).strip(" .,;:!?")

    ious = []
    for i in range(max(len(first.masks), len(second.masks))):
        if i >= min(len(first.masks), len(second.masks)):
            ious.append(0.0)
            continue
        a, b = first.masks[i].array, second.masks[i].array
        a, b = (a, b) if a.shape == b.shape else (a, nearest_resize(b, a.shape))
        union = int((a | b).sum())
        ious.append(float((a & b).sum() / union) if union else 1.0)
    return {"same_words": words(first) == words(second), "iou": ious}
