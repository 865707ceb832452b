"""Questions of a batch that share nothing with others, answered as ``earthmind ask`` answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earthmind_jax.data.read import Images, described_images
from earthmind_jax.data.records import Sample
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING
from earthmind_jax.infer.pointing import Window
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import Request
from earthmind_jax.infer.result import Answer
from earthmind_jax.infer.scene_ask import ask_large
from earthmind_jax.infer.view import outline, part_reader


@dataclass(frozen=True, eq=False)
class Single:
    """An answer.

    Attributes:
      window: the part of the scene that its masks lie on, where it is one.
      scene: of an image that does not fit into memory, what was drawn of it, with its ``files``.
    """

    answer: Answer
    window: Window | None = None
    scene: dict[str, Any] | None = None
    files: Sequence[Path] = ()


def read_images(model: EarthMind, request: Request) -> tuple[Images | None, bool]:
    """The images of a request, and whether they do not fit into memory; then it is their outline."""
    assert request.record is not None
    files = request.files
    if files is None:
        return described_images(request.record, model.config.sensors), False
    reader = _reader(model, files)
    return (model.images(files.get("optical"), files.get("sar")), False) if reader is None else (outline(reader), True)


def single(
    model: EarthMind, request: Request, images: Images, sample: Sample, max_new: int, place: Path | None
) -> Single:
    """The answer to the last question of a sample.

    Args:
      images: as of :func:`read_images`.
      place: directory for the maps of an image that does not fit into memory.
    """
    *before, turn = sample.turns
    files = request.files or {}
    optical, sar = files.get("optical"), files.get("sar")
    large = bool(files) and _reader(model, files) is not None
    if before:
        if large:
            raise UserError("The image is too large for a conversation in a batch; cut out the part that is meant.")
        return Single(model.look(images, turn, max_new, before=before))
    options = dict(request.places)
    steer = options.pop("steer", False)
    if turn.regions:
        options["marks"] = turn.regions
    if not large:
        view = model.view(images, **options, closer=True)
    elif options:
        view = model.part(optical, sar, closer=True, reduced=True, **options)
    else:
        answer, drawn = ask_large(model, turn.question, **files, out=place, max_new=max_new)
        return Single(answer) if drawn is None else Single(answer, None, drawn.first, drawn.files)
    assert view is not None
    asked, prompts = model.about(turn.question, view, steer)
    answer = view.placed(model.look(view.images, asked, max_new, prompts=prompts))
    part = view.images.shape != images.shape and not view.images.reduced
    return Single(answer, view.window if part else None)


def _reader(model: EarthMind, files: dict[str, list[Path]]) -> Any:
    return part_reader(files.get("optical"), files.get("sar"), model.config.sensors, NOTHING)
