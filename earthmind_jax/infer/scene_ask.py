"""A question about an image that is too large for memory: the words from a view of the whole, masks from all of it."""

from __future__ import annotations

from pathlib import Path

from earthmind_jax.data.records import Turn
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.scene import Report, ask_scene
from earthmind_jax.infer.scene_maps import SceneResult
from earthmind_jax.infer.scene_read import Files, SceneReader
from earthmind_jax.infer.view import look


def ask_large(
    model: EarthMind,
    question: str,
    *,
    optical: Files | None = None,
    sar: Files | None = None,
    out: str | Path | None = None,
    max_new: int = 256,
    temperature: float = 0.0,
    report: Report | None = None,
    told: Told = NOTHING,
) -> tuple[Answer, SceneResult | None]:
    """Ask about rasters of any size, of one date or several.

    The words are about the whole scene seen with fewer pixels (:mod:`earthmind_jax.infer.overview`). If they hold
    ``[SEG]`` and ``out`` is given, the mask is drawn at full resolution into that directory, as
    :func:`earthmind_jax.infer.scene.segment_scene` does.

    Returns:
      The answer, with masks and weights on these pixels, and what was drawn.

    Raises:
      UserError: as of ``EarthMind.ask`` and ``segment_scene``.
    """
    given = {"optical": optical, "sar": sar, "told": told}
    answer = look_at(model, question, max_new=max_new, temperature=temperature, **given)
    if not answer.masks or out is None:
        return answer, None
    return answer, draw(model, answer, optical, sar, out, max_new, report, told)


def look_at(
    model: EarthMind,
    question: str,
    *,
    optical: Files | None,
    sar: Files | None,
    max_new: int,
    temperature: float,
    told: Told,
) -> Answer:
    """The answer to a question about the whole of a raster, seen with fewer pixels."""
    sources = {name: files for name, files in (("optical", optical), ("sar", sar)) if files is not None}
    reader = SceneReader(sources, model.config.sensors, told=told)
    view = look(reader, model.config)
    return view.placed(model.look(view.images, Turn(question), max_new, temperature))


def draw(
    model: EarthMind,
    answer: Answer,
    optical: Files | None,
    sar: Files | None,
    out: str | Path,
    max_new: int,
    report: Report | None,
    told: Told,
) -> SceneResult:
    """The mask of a question that was answered by a look, at full resolution."""
    return ask_scene(
        model, [answer.question], names=[answer.question], optical=optical, sar=sar, out=out, report=report,
        max_new=max_new, told=told,
    )  # fmt: skip
