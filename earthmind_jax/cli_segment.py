"""``earthmind segment``: masks from words, on an image of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from earthmind_jax.cli_info import TOLD
from earthmind_jax.cli_marks import NOWHERE, Pointing
from earthmind_jax.cli_paths import COMMAND, check_directory, check_page, limit_cache, words_after
from earthmind_jax.cli_scene import large, segment_large, tell_of_reading
from earthmind_jax.cli_truth import Truth, shown
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

Named = tyro.conf.arg


def segment(
    targets: tuple[str, ...],
    /,
    checkpoint: Path = Path("demo/checkpoint"),
    optical: tuple[Path, ...] = (),
    sar: tuple[Path, ...] = (),
    out: Path = Path("segment"),
    window: int | None = None,
    overlap: float | None = None,
    weights: bool = False,
    picture: bool = False,
    truth: Path | None = None,
    truth_value: tuple[int, ...] = (),
    pointing: Pointing = NOWHERE,
    told: Annotated[Told, TOLD] = NOTHING,
    explain: Path | None = None,
    as_json: Annotated[bool, Named(name="json")] = False,
) -> None:
    """Draw the masks of things and write them as Cloud-Optimized GeoTIFFs and GeoJSON that land on the input.

    One target on a small image makes a picture (panel.png), too. Several targets, an image of more than 4 million
    pixels (or dates of more than 33 million together), or one of the options --window, --overlap and --weights take the
    road for large scenes: window by window, from file to file. That road keeps what is finished; the same command goes
    on where a broken-off one was.

    Example: earthmind segment water forest --optical s2.tif --sar s1.tif --out results

    Example: earthmind segment --optical s2.tif --point 120,85 --box 10,10,60,40

    Args:
        targets: what to draw, e.g. "water"; all of them in one go. None where something is pointed at.
        checkpoint: checkpoint directory.
        optical: GeoTIFF of Sentinel-2 or another sensor (see info), a product as downloaded (.SAFE folder or zip,
            Landsat folder or tar, folder of band files), or an 8-bit picture; of a time series one for each date, all
            of which get a mask on the grid of the first.
        sar: Sentinel-1 GeoTIFF (VV, VH), or a GRD product as downloaded (.SAFE folder or zip); as many as optical, or
            one.
        out: directory for the results.
        window: side of windows in pixels, a multiple of the model's own.
        overlap: share of a window common to neighbours, 0 to 0.9 (large scenes: 0.5).
        weights: also write the fusion weight of SAR as a GeoTIFF, one pixel a token; of several dates one for all.
        picture: write plain PNG masks (for images without georeference).
        truth: raster of labels to compare with, on any grid that covers the image; prints the foreground IoU.
        truth_value: the value in truth of each mask, in the order of the targets (1 for a single one).
        pointing: draw what is pointed at, one mask for each object.
        told: what the files do not say themselves.
        explain: HTML page that says what each sensor alone would have drawn, and where each counted; of a large image
            from one look at the whole.
        as_json: print JSON.
    """
    limit_cache()
    from earthmind_jax.infer.predictor import EarthMind

    places = pointing.options()
    if not targets:
        targets, (optical, sar) = words_after(optical, sar)
    if not targets and "marks" not in places:
        raise UserError("There is nothing to segment: name a target, such as water, or point at something.")
    check_directory(out, *optical, *sar, truth)
    check_page(explain)
    windowed = window is not None or overlap is not None or weights
    several = len(targets) > 1 and explain is None
    scene = windowed or (not (places or picture) and (several or large(optical, sar)))
    if scene and (places or picture or (explain and not large(optical, sar))):
        raise UserError("Windows belong to large scenes: leave out what points at places, --explain and --picture.")
    if len(targets) > 1 and explain is not None:
        raise UserError("A page is about one target; name one.")
    labels = Truth.of(truth, truth_value, () if "marks" in places else targets)
    model = EarthMind.load(checkpoint)
    given = {"optical": optical or None, "sar": sar or None, "told": told}
    page = []
    if explain is not None:
        if not places:
            tell_of_reading(optical, sar)
        reason = model.explain("".join(targets), **given, **places, segment=True, command=COMMAND.get())
        answer, page = reason.answer, [reason.save_page(explain)]
    if scene:
        segment_large(model, targets, optical, sar, out, window, overlap, weights, labels, told, page, as_json)
        return
    from earthmind_jax.cli_print import print_answer

    if explain is None:
        answer = model.segment(targets if len(targets) > 1 else "".join(targets), **given, **places)
    pairs = zip(answer.names, answer.masks, strict=True)
    names = [f"{mask.name} {mask.date}".strip() if mask.name else label.replace("_", " ") for label, mask in pairs]
    extra = {} if labels is None else {"iou": shown(names, labels.compare(answer.masks, _size(optical, sar)))}
    files = [*answer.save(out, maps=not picture), *page]
    print_answer(answer, files, as_json, extra)


def _size(optical: tuple[Path, ...], sar: tuple[Path, ...]) -> tuple[int, int]:
    """Rows and columns of the image that masks are drawn on."""
    from earthmind_jax.data.read import picture_header

    return picture_header(str((optical or sar)[0])).shape
