"""``earthmind segment``: masks from words, on an image of any size."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from earthmind_jax.cli_info import TOLD
from earthmind_jax.cli_marks import NOWHERE, Pointing
from earthmind_jax.cli_paths import COMMAND, check_directory, check_page, limit_cache
from earthmind_jax.cli_truth import Truth, shown
from earthmind_jax.errors import UserError
from earthmind_jax.geo.told import NOTHING, Told

if TYPE_CHECKING:
    from earthmind_jax.infer.result import Mask

Named = tyro.conf.arg
EVERY = 2.0  # seconds between progress lines


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
    pixels, or one of the options --window, --overlap and --weights take the road for large scenes: window by window,
    from file to file. That road keeps what is finished; the same command goes on where a broken-off one was.

    Example: earthmind segment water forest --optical s2.tif --sar s1.tif --out results

    Example: earthmind segment --optical s2.tif --point 120,85 --box 10,10,60,40

    Args:
        targets: what to draw, e.g. "water"; all of them in one go. None where something is pointed at.
        checkpoint: checkpoint directory.
        optical: GeoTIFF of Sentinel-2 or another sensor (see info), or an 8-bit picture; of a time series one for each
            date, all of which get a mask on the grid of the first.
        sar: Sentinel-1 GeoTIFF (VV, VH); as many as optical, or one.
        out: directory for the results.
        window: side of windows in pixels, a multiple of the model's own.
        overlap: share of a window common to neighbours, 0 to 0.9 (large scenes: 0.5).
        weights: also write the fusion weight of SAR as a GeoTIFF, one pixel a token.
        picture: write a plain PNG mask (for images without georeference).
        truth: raster of labels to compare with, on any grid that covers the image; prints the foreground IoU.
        truth_value: the value in truth of each mask, in the order of the targets (1 for a single one).
        pointing: draw what is pointed at, one mask for each object.
        told: what the files do not say themselves.
        explain: HTML page that says what each sensor alone would have drawn, and where each counted.
        as_json: print JSON.
    """
    limit_cache()
    from earthmind_jax.infer.predictor import EarthMind

    places = pointing.options()
    if not targets and "marks" not in places:
        raise UserError("There is nothing to segment: name a target, such as water, or point at something.")
    check_directory(out, *optical, *sar, truth)
    check_page(explain)
    one = [next(iter(images), None) for images in (optical, sar)]
    windowed = window is not None or overlap is not None or weights
    several = max(len(optical), len(sar)) > 1
    if several:
        _check_dates(optical, sar, out, windowed, whole=not (places or explain))
    alone = not (places or explain or picture or several)
    scene = windowed or (alone and (len(targets) > 1 or large(*one)))
    if scene and (places or explain or picture):
        raise UserError("Windows belong to large scenes: leave out what points at places, --explain and --picture.")
    if len(targets) > 1 and explain is not None:
        raise UserError("A page is about one target; name one.")
    labels = Truth.of(truth, truth_value, () if "marks" in places else targets)
    model = EarthMind.load(checkpoint)
    if scene:
        _scene(model, targets, *one, out, window, overlap, weights, labels, told, as_json)
        return
    from earthmind_jax.cli_print import print_answer

    target = targets if len(targets) > 1 else "".join(targets)
    given = {"optical": optical or None, "sar": sar or None, "told": told}
    if explain is None:
        answer, page = model.segment(target, **given, **places), []
    else:
        reason = model.explain("".join(targets), **given, **places, segment=True, command=COMMAND.get())
        answer, page = reason.answer, [reason.save_page(explain)]
    names = [f"{mask.name or f'mask {i}'} {mask.date}".strip() for i, mask in enumerate(answer.masks, 1)]
    extra = {} if labels is None else {"iou": shown(names, labels.compare(answer.masks, _size(*one)))}
    files = [*answer.save(out, maps=not picture), *page]
    print_answer(answer, files, as_json, extra)


def _check_dates(optical: tuple[Path, ...], sar: tuple[Path, ...], out: Path, windowed: bool, whole: bool) -> None:
    """UserError where several dates cannot be drawn in one go, which takes all of them in memory."""
    from earthmind_jax.data.dates import count_dates
    from earthmind_jax.data.read import MOST_PIXELS, picture_header

    count = count_dates({name: given for name, given in (("optical", optical), ("sar", sar)) if given})
    first = (*optical, *sar)[0]
    rows, columns = picture_header(str(first)).shape
    way = f"draw date by date, each into a directory of its own ({out / 'date_1'}), or name a part with --crop"
    if windowed:
        raise UserError(f"--window, --overlap and --weights are for scenes of one date, and there are {count}; {way}.")
    if whole and rows * columns * count > MOST_PIXELS:
        raise UserError(
            f"{first} has {rows} x {columns} pixels, too many to hold {count} dates in memory at once; {way}."
        )


def _scene(
    model: Any,
    targets: tuple[str, ...],
    optical: Path | None,
    sar: Path | None,
    out: Path,
    window: int | None,
    overlap: float | None,
    weights: bool,
    truth: Truth | None,
    told: Told,
    as_json: bool,
) -> None:
    from earthmind_jax.cli_print import print_rest
    from earthmind_jax.infer.scene import OVERLAP, segment_scene, window_note, window_side

    share = OVERLAP if overlap is None else overlap
    if (note := window_note(model, window_side(model, window))) is not None:
        print(f"warning: {note}", file=sys.stderr, flush=True)
    with stopping(out):
        result = segment_scene(
            model, targets, optical=optical, sar=sar, out=out, window=window, overlap=share, weights=weights,
            report=progress(), told=told,
        )  # fmt: skip
    facts: dict[str, Any] = {**result.answer, "files": [str(f) for f in result.files]}
    facts["seconds"] = {name: round(value, 2) for name, value in result.seconds.items()}
    extra = {}
    if truth is not None:
        masks = [_drawn(out / f"mask_{i}.tif", name) for i, name in enumerate(targets, 1)]
        extra = {"iou": shown(targets, truth.compare(masks, None))}
    if as_json:
        print(json.dumps(facts | extra, indent=2, ensure_ascii=False))
        return
    for mask in facts["masks"]:
        shares = mask["fusion"]
        weighed = f"; weights: optical {shares['optical']:.2f}, SAR {shares['sar']:.2f}" if shares else ""
        print(f"{mask['target']}: {mask['share']:.1%} of the scene, score {mask['score']:.2f}{weighed}")
    print_rest(extra, facts["notes"], result.files)


def ask_large(
    model: Any,
    question: str,
    optical: Path | None,
    sar: Path | None,
    out: Path | None,
    max_new: int,
    temperature: float,
    told: Told,
    as_json: bool,
) -> None:
    """``earthmind ask`` about an image for which :func:`large` holds."""
    from earthmind_jax.cli_print import print_answer
    from earthmind_jax.infer import scene_ask

    with stopping(out):
        answer, drawn = scene_ask.ask_large(
            model, question, optical=optical, sar=sar, out=out, max_new=max_new, temperature=temperature,
            report=progress(), told=told,
        )  # fmt: skip
    files = [] if drawn is None else drawn.files
    print_answer(answer, files, as_json, {} if drawn is None else {"scene": drawn.answer["masks"][0]})


@contextlib.contextmanager
def stopping(out: Path | None) -> Iterator[None]:
    """A request to end (SIGTERM) is taken as Ctrl-C is, and what becomes of the work is said."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        if out is not None and out.exists():
            print(f"\nwhat is finished is kept in {out}; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def progress() -> Callable[[int, int, float, float], None]:
    """A reporter that prints a line now and then: windows, speed, and the time that is left."""
    last, live = [0.0], sys.stderr.isatty()

    def report(done: int, total: int, seconds: float, area: float) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < (EVERY if live else 15 * EVERY):
            return
        last[0] = now
        speed = done / max(seconds, 1e-9)
        left = (total - done) / max(speed, 1e-9)
        line = (
            f"{done} of {total} windows, {speed:.1f} windows/s, {area / max(seconds, 1e-9):.2f} km2/s, "
            f"{_duration(left)} left"
        )
        print(f"\r{line}   " if live else line, end="" if live and done < total else "\n", file=sys.stderr, flush=True)

    return report


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes}:{seconds:02d} min"


def large(optical: Path | None, sar: Path | None) -> bool:
    """Whether the image that masks are drawn on is a raster too large for the small road."""
    from earthmind_jax.data.read import RASTERS
    from earthmind_jax.geo.raster import open_raster
    from earthmind_jax.infer.view import WHOLE

    path = optical if optical is not None else sar
    if path is None or path.suffix.lower() not in RASTERS:
        return False
    with open_raster(path) as dataset:
        return dataset.height * dataset.width > WHOLE


def _size(optical: Path | None, sar: Path | None) -> tuple[int, int]:
    """Rows and columns of the image that masks are drawn on."""
    from earthmind_jax.data.read import picture_header

    return picture_header(str(optical if optical is not None else sar)).shape


def _drawn(path: Path, name: str) -> Mask:
    """The mask of a scene, as it was written."""
    import rasterio

    from earthmind_jax.infer.result import Mask

    with rasterio.open(path) as dataset:
        drawn = dataset.read(1)
        return Mask((drawn == 1).astype("float32"), drawn != 255, dataset.transform, dataset.crs, name=name)
