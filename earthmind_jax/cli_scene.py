"""Commands about images of any size, from file to file: what they print, how they go on, how they stop."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earthmind_jax.cli_paths import COMMAND
from earthmind_jax.cli_truth import Truth, shown
from earthmind_jax.geo.told import Told

if TYPE_CHECKING:
    from earthmind_jax.infer.result import Answer, Mask

EVERY = 2.0  # seconds between progress lines


def segment_large(
    model: Any,
    targets: tuple[str, ...],
    optical: tuple[Path, ...],
    sar: tuple[Path, ...],
    out: Path,
    window: int | None,
    overlap: float | None,
    weights: bool,
    truth: Truth | None,
    told: Told,
    page: Sequence[Path],
    as_json: bool,
) -> None:
    """``earthmind segment`` from file to file; ``page`` are files that were written already."""
    from earthmind_jax.cli_print import print_rest
    from earthmind_jax.infer.scene import OVERLAP, segment_scene, window_note, window_side

    share = OVERLAP if overlap is None else overlap
    if (note := window_note(model, window_side(model, window))) is not None:
        print(f"warning: {note}", file=sys.stderr, flush=True)
    with stopping(out):
        result = segment_scene(
            model, targets, optical=optical or None, sar=sar or None, out=out, window=window, overlap=share,
            weights=weights, report=progress(), told=told,
        )  # fmt: skip
    facts: dict[str, Any] = {**result.answer, "files": [str(f) for f in (*result.files, *page)]}
    facts["seconds"] = {name: round(value, 2) for name, value in result.seconds.items()}
    extra = {}
    if truth is not None:
        values = dict(zip(facts["targets"], truth.values, strict=True))
        wanted = [values[mask["target"]] for mask in facts["masks"]]
        scores = truth.compare_each(map(_drawn, result.masks), wanted)
        extra = {"iou": shown([_title(mask) for mask in facts["masks"]], scores)}
    if as_json:
        print(json.dumps(facts | extra, indent=2, ensure_ascii=False))
        return
    for mask in facts["masks"]:
        shares = mask["fusion"]
        weighed = f"; weights: optical {shares['optical']:.2f}, SAR {shares['sar']:.2f}" if shares else ""
        print(f"{_title(mask)}: {mask['share']:.1%} of the scene, score {mask['score']:.2f}{weighed}")
    print_rest(extra, facts["notes"], [*result.files, *page])


def ask_large(
    model: Any,
    question: str,
    optical: tuple[Path, ...],
    sar: tuple[Path, ...],
    out: Path | None,
    explain: Path | None,
    max_new: int,
    temperature: float,
    told: Told,
    as_json: bool,
) -> None:
    """``earthmind ask`` about an image for which :func:`large` holds."""
    from earthmind_jax.cli_print import print_answer
    from earthmind_jax.infer import scene_ask

    sources = {"optical": optical or None, "sar": sar or None}
    given = {**sources, "max_new": max_new, "temperature": temperature, "told": told}
    page, extra = [], {}
    tell_of_reading(optical, sar)
    if explain is None:
        answer = scene_ask.look_at(model, question, **given)
    else:
        answer, page, extra = explained(model, question, explain, as_json, **given)
    files: Sequence[Path] = []
    if out is not None and answer.masks:
        with stopping(out):
            drawn = scene_ask.draw(model, answer, **sources, out=out, max_new=max_new, report=progress(), told=told)
        files, extra = drawn.files, extra | {"scene": drawn.first}
    elif out is not None:
        files = answer.save(out)
    print_answer(answer, [*files, *page], as_json, extra)


def explained(
    model: Any, question: str, page: Path, as_json: bool, **options: Any
) -> tuple[Answer, list[Path], dict[str, Any]]:
    """An answer with its reason written to ``page``: the answer, that file, and what to print beside it."""
    reason = model.explain(question, **options, command=COMMAND.get())
    beside = {"reason": reason.to_dict()} if as_json else {f"{n} alone": a.text for n, a in reason.alone.items()}
    return reason.answer, [reason.save_page(page)], beside


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


def large(optical: tuple[Path, ...], sar: tuple[Path, ...], mapped: bool = False) -> bool:
    """Whether the image that masks are drawn on is a raster too large for the small road, with all of its dates;
    ``mapped``: and has a place on the map, which the road for large ones needs."""
    from earthmind_jax.data.read import is_raster
    from earthmind_jax.geo.control import place_of
    from earthmind_jax.geo.raster import open_raster
    from earthmind_jax.infer.view import most_whole

    path = next(iter(optical or sar), None)
    if path is None or not is_raster(path):
        return False
    most = most_whole(max(len(optical), len(sar)))
    with open_raster(path) as dataset:
        return dataset.height * dataset.width > most and not (mapped and place_of(dataset) is None)


def tell_of_reading(optical: tuple[Path, ...], sar: tuple[Path, ...]) -> None:
    """Say on the error stream that a look at the whole of a large image reads all of it, which takes its time."""
    if large(optical, sar, mapped=True):
        path = next(iter(optical or sar))
        print(f"{path} is large: for a look at the whole, all of it is read once", file=sys.stderr, flush=True)


def _title(mask: dict[str, Any]) -> str:
    """What a mask of a scene is called in print, from what ``answer.json`` says of it."""
    return f"{mask['target']} {mask.get('date', '')}".strip()


def _drawn(path: Path) -> Mask:
    """The mask of a scene, as it was written."""
    import rasterio

    from earthmind_jax.infer.result import Mask

    with rasterio.open(path) as dataset:
        drawn = dataset.read(1)
        return Mask((drawn == 1).astype("float32"), drawn != 255, dataset.transform, dataset.crs)
