"""Scenes of any size: masks of several targets, on one date or several, window by window, from files to files.

Memory holds a band of rows and never the scene. Reading, preparing, the model and writing go on at the same time. What
is finished is kept (:mod:`earthmind_jax.infer.scene_store`), so a run that was killed goes on where it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from earthmind_jax import __version__
from earthmind_jax.config import require, to_json
from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.errors import UserError
from earthmind_jax.geo.opening import file_stamp
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.scene_maps import SceneResult, write_maps
from earthmind_jax.infer.scene_model import WindowModel
from earthmind_jax.infer.scene_read import Files, SceneReader
from earthmind_jax.infer.scene_run import Report, SceneRun
from earthmind_jax.infer.scene_store import Store, finished, held
from earthmind_jax.infer.windows import OVERLAP, Lattice
from earthmind_jax.types import Params

WIDE = 4  # times the model's own, from which on a window loses what is small in it


def segment_scene(
    model: EarthMind,
    targets: Sequence[str],
    *,
    optical: Files | None = None,
    sar: Files | None = None,
    out: str | Path,
    window: int | None = None,
    overlap: float = OVERLAP,
    weights: bool = False,
    report: Report | None = None,
    **options: Any,
) -> SceneResult:
    """Draw the masks of ``targets`` over a scene of any size into the directory ``out``.

    For each target a probability and a mask (Cloud-Optimized GeoTIFF on the reference image's grid) and its polygons;
    of several dates one for each, on the grid of the first. Each window is seen once for all targets, with all dates
    together; windows without data are left out. Started again with the same arguments, it goes on where it was, and the
    files are the same as without the interruption.

    Args:
      optical, sar: a file, or one for each date; a sensor with a single one shows it beside every date of the other.
      window: side in pixels, a multiple of the model's own; None is the model's own.
      overlap: share of a window common to neighbours, 0 to 0.9.
      weights: also write the weight of SAR on the token grid, of several dates one for all.
      options: what is known about the files, as of :func:`earthmind_jax.data.read.load_images`.

    Raises:
      UserError: a file or an argument cannot be used, or ``out`` holds another run or is in use.
      WorkError: the files could not be written.
    """
    names = [target.strip() for target in targets]
    if not names or not all(names):
        raise UserError("There is nothing to segment: name a target, such as water.")
    if len(set(names)) < len(names):
        raise UserError("A target is named twice; name each once.")
    questions = [SEGMENTATION_QUESTIONS[0].replace("{c}", name) for name in names]
    return ask_scene(
        model, questions, names=names, optical=optical, sar=sar, out=out, window=window, overlap=overlap,
        weights=weights, report=report, **options,
    )  # fmt: skip


def ask_scene(
    model: EarthMind,
    questions: Sequence[str],
    *,
    names: Sequence[str],
    optical: Files | None,
    sar: Files | None,
    out: str | Path,
    window: int | None = None,
    overlap: float = OVERLAP,
    weights: bool = False,
    report: Report | None = None,
    max_new: int = 32,
    **options: Any,
) -> SceneResult:
    """:func:`segment_scene` of any questions whose answers draw a mask; ``names`` are what the results call them."""
    side = window_side(model, window)
    require(0 <= overlap <= 0.9, f"The overlap of windows must be 0 to 0.9, not {overlap}.")
    sources = {name: files for name, files in (("optical", optical), ("sar", sar)) if files is not None}
    started, out = perf_counter(), Path(out)
    reader = SceneReader(sources, model.config.sensors, **options)
    windows = WindowModel(model.engine, questions, side, reader.views, max_new=max_new)
    lattice = Lattice.of(reader.shape, side, overlap, windows.grid)
    work = {
        **{name: _stamp(paths) for name, paths in reader.dates.items()},
        "model": f"{model.name} {digest(model)}",
        "targets": list(names),
        "questions": list(questions),
        "window": side,
        "overlap": overlap,
        "weights": weights,
        "options": {name: str(value) for name, value in sorted(options.items())},
        "batch": windows.batch_size,
        "version": __version__,
    }
    with held(out):
        answer = finished(out, work)
        if answer is not None:
            return SceneResult(out, answer)
        sizes = lattice.shape, lattice.tokens
        store = Store(out, work, len(questions), *sizes, reader.pictures, windows.dates)
        with closing(store):
            seconds = {}
            if store.done.pixels < lattice.shape[0]:
                seconds = SceneRun(windows, reader, lattice, store, report, window_note(model, side)).go()
            result = write_maps(out, work, store, reader, lattice, model.name, names, questions, seconds, weights)
        store.remove()
    result.seconds["all"] = perf_counter() - started
    return result


def window_side(model: EarthMind, window: int | None) -> int:
    """The side of windows in pixels; UserError unless it is a multiple of the model's own."""
    own = model.config.sensors.window or model.config.vision.image_size
    if window is None:
        return own
    require(
        window > 0 and window % own == 0, f"A window must be a multiple of the model's own {own} pixels, not {window}."
    )
    return window


def window_note(model: EarthMind, side: int) -> str | None:
    """What is to be said about windows much larger than the model's own."""
    own = window_side(model, None)
    if side < WIDE * own:
        return None
    return (
        f"windows of {side} pixels have {side / own:.0f} times the side of the model's own ({own}): what is small in "
        "them is lost and edges are coarse; leave out --window for full detail"
    )


def digest(model: EarthMind) -> str:
    """A short name of what the model computes: its configuration and a sample of every weight."""
    return f"{zlib.crc32(to_json(model.config).encode(), _sampled(model.engine.params)):08x}"


def _sampled(params: Params, most: int = 1024) -> int:
    value = 0
    for path in sorted(params):
        flat = params[path].reshape(-1)
        part = np.asarray(flat[:: max(1, flat.size // most)])
        value = zlib.crc32(part.tobytes(), zlib.crc32(f"{path} {flat.shape} {flat.dtype}".encode(), value))
    return value


def _stamp(paths: Sequence[Path]) -> Any:
    """What tells the files of a sensor from others, those of several dates in their order."""
    return [_file(path) for path in paths] if len(paths) > 1 else _file(paths[0])


def _file(path: Path) -> dict[str, Any]:
    changed, size = file_stamp(path) or (0, 0)
    return {"path": str(path.absolute()), "bytes": size, "changed": changed}
