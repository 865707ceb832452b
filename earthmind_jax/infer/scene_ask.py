"""A question about an image that is too large for memory: the words from a view of the whole, masks from all of it."""

from __future__ import annotations

from pathlib import Path

from earthmind_jax.data.records import Turn
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.overview import look_side, overview
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.scene import Report, ask_scene
from earthmind_jax.infer.scene_maps import SceneResult
from earthmind_jax.infer.scene_read import SceneReader
from earthmind_jax.infer.view import View, outline, seen


def ask_large(
    model: EarthMind,
    question: str,
    *,
    optical: str | Path | None = None,
    sar: str | Path | None = None,
    out: str | Path | None = None,
    max_new: int = 256,
    temperature: float = 0.0,
    report: Report | None = None,
    told: Told = NOTHING,
) -> tuple[Answer, SceneResult | None]:
    """Ask about rasters of any size.

    The words are about the whole scene seen with fewer pixels (:mod:`earthmind_jax.infer.overview`). If they hold
    ``[SEG]`` and ``out`` is given, the mask is drawn at full resolution into that directory, as
    :func:`earthmind_jax.infer.scene.segment_scene` does.

    Returns:
      The answer, with masks and weights on these pixels, and what was drawn.

    Raises:
      UserError: as of ``EarthMind.ask`` and ``segment_scene``.
    """
    sources = {name: path for name, path in (("optical", optical), ("sar", sar)) if path is not None}
    reader = SceneReader(sources, model.config.sensors, told=told)
    view = seen(View(overview(reader, look_side(model.config)), outline(reader)))
    answer = model.look(view.images, Turn(question), max_new, temperature)
    if not answer.masks or out is None:
        return view.placed(answer), None
    drawn = ask_scene(
        model,
        [question],
        names=[question],
        optical=optical,
        sar=sar,
        out=out,
        report=report,
        max_new=max_new,
        told=told,
    )
    return answer, drawn
