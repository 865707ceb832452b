"""The page of an explanation: HTML with its pictures inside, nothing to fetch and nothing to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from earthmind_jax.infer.explain import RUNS, Explanation
from earthmind_jax.infer.explain_pictures import ABSENT, CLOUD, Pictures, plain, ramp
from earthmind_jax.infer.mark_lines import described
from earthmind_jax.infer.result import Answer, Mask

SIDES = (720, 512, 384, 256, 160)  # longest side of a picture; the first with which all of them fit
BUDGET = 2_200_000  # bytes of all pictures, as text
SHOWN = 24  # masks that have a picture; the others are in the table
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:74rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
blockquote{margin:.5rem 0;padding:.5rem 1rem;border-left:4px solid #2166ac;background:#f2f6fa;white-space:pre-wrap}
td,code,li,figcaption{overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0 0 1rem;max-width:23rem}
img{width:23rem;max-width:100%;image-rendering:pixelated;display:block}figcaption{color:#555}
.bar{width:23rem;max-width:100%;height:1rem}.ends{display:flex;justify-content:space-between;max-width:23rem;color:#555}
.key{display:inline-block;width:.9em;height:.9em;margin-right:.3em;vertical-align:-.1em;border:1px solid #888}
"""


def page(explanation: Explanation) -> str:
    """The page as text; pictures as large as the budget allows."""
    for side in SIDES:
        pictures = Pictures(side)
        text = _page(explanation, pictures)
        if pictures.bytes <= BUDGET:
            break
    return text


def _page(e: Explanation, pictures: Pictures) -> str:
    answer = e.answer
    title = answer.question or "What is pointed at"
    parts = [
        f"<h1>{plain(title)}</h1>",
        f"<blockquote>{plain(answer.text)}</blockquote>" if answer.text else "",
        _pointed(answer),
        _said(e),
        _images(e, pictures),
        _masks(e, pictures),
        _fusion(answer, pictures),
        _seen(e, pictures),
        _list("Notes on the files", answer.notes),
        _times(e),
        _table("How it was made", ((name, value) for name, value in e.facts.items() if name != "seen")),
    ]
    head = f'<meta charset="utf-8"><title>{plain(title)}</title><style>{STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(filter(None, parts))
        + ("\n</body></html>\n")
    )


def _pointed(answer: Answer) -> str:
    """What the marks in the pictures are."""
    rows = []
    for mark in answer.marks:
        x0, y0, x1, y1 = np.round(np.array(mark.bounds) + np.tile(answer.offset[::-1], 2), 1).tolist()
        rows.append((mark.name, described(mark), f"{y0:g} to {y1:g}, {x0:g} to {x1:g}"))
    return _table("What is pointed at", rows, ("name", "marked with", "rows, columns")) if rows else ""


def _said(e: Explanation) -> str:
    if not e.alone:
        return ""
    rows = [(RUNS[name], a.text, _shares(a.masks)) for name, a in e.runs.items()]
    said = _table("What each sensor said", rows, ("asked", "answer", "masks (share of the image, score)"))
    rows = []
    for pair, found in e.agreement.items():
        first, second = (RUNS[name] for name in pair.split(" - "))
        iou = ", ".join(f"{v:.3f}" for v in found["iou"]) or "no masks"
        same = "yes" if found["same_words"] else "no"
        silent = not (e.runs[pair.split(" - ")[0]].text or e.runs[pair.split(" - ")[1]].text)
        rows.append((f"{first} and {second}", "no words" if silent else same, iou))
    return said + _table("Agreement", rows, ("between", "same words", "IoU of the masks"))


def _images(e: Explanation, pictures: Pictures) -> str:
    dated = {name: image for name, image in e.answer.pictures.items() if " " in name}
    undated = {n: i for n, i in e.answer.pictures.items() if not any(other.startswith(f"{n} ") for other in dated)}
    marks = e.answer.marks
    shown = [
        pictures.figure(image, name.replace("sar", "SAR"), marks=marks) for name, image in (undated | dated).items()
    ]
    reduced = f"<p>{plain(e.facts['seen'])}.</p>" if "seen" in e.facts else ""
    return _section("What the model saw", reduced + _row(shown)) if shown else ""


def _masks(e: Explanation, pictures: Pictures) -> str:
    shown = []
    for name, run in e.runs.items():
        for label, mask in zip(run.names, run.masks, strict=True):
            what = f"{label.replace('_', ' ')}{f' ({mask.name})' if mask.name else ''}"
            title = f"{what}, {RUNS.get(name, name)}: {mask.array.mean():.1%} of the image"
            shown.append((_under(run, mask), mask.array, title))
    if not shown:
        return ""
    marks = e.answer.marks
    figures = [pictures.figure(image, title, overlay=mask, marks=marks) for image, mask, title in shown[:SHOWN]]
    more = f"<p>{len(shown) - SHOWN} further masks are not drawn here.</p>" if len(shown) > SHOWN else ""
    rows = []
    for label, mask in zip(e.answer.names, e.answer.masks, strict=True):
        what = f"{label.replace('_', ' ')}{f' ({mask.name})' if mask.name else ''}"
        rows.append((what, f"{int(mask.array.sum())}", f"{mask.score:.3f}", *_where(mask)))
    head = ("mask", "pixels", "score", "rows, columns", "centre (longitude, latitude)")
    return _section("Masks", _row(figures) + more) + _table("", rows, head)


def _fusion(answer: Answer, pictures: Pictures) -> str:
    if answer.fusion is None or not answer.pictures:
        return ""
    seen = answer.fusion.sum(-1) > 0
    share = np.where(seen, answer.fusion[..., 1] / np.maximum(answer.fusion.sum(-1), 1e-12), 0)
    colours = ramp(share)
    colours[~seen] = ABSENT
    base = next(iter(answer.pictures.values()))
    title = "weight of SAR over the image (grey: no data, or not looked at)"
    shares = answer.sensor_shares
    bar = ",".join(f"rgb{tuple(int(v) for v in ramp(np.array(x)))}" for x in (0, 0.25, 0.5, 0.75, 1))
    legend = (
        f'<div class="bar" style="background:linear-gradient(to right,{bar})"></div>'
        '<div class="ends"><span>optical 1</span><span>even</span><span>SAR 1</span></div>'
        f"<p>Mean weights: optical {shares['optical']:.3f}, SAR {shares['sar']:.3f}; "
        f"SAR from {share[seen].min() if seen.any() else 0:.3f} to {share[seen].max() if seen.any() else 0:.3f}.</p>"
    )
    return _section("Where each sensor counted", _row([pictures.figure(base, title, tint=colours)]) + legend)


def _seen(e: Explanation, pictures: Pictures) -> str:
    if not e.valid:
        return ""
    figures = []
    for name, valid in e.valid.items():
        title = f"{'SAR' if name == 'sar' else 'optical'}: {1 - valid.mean():.1%} without data"
        image = e.answer.pictures[name]
        figures.append(pictures.figure(image, title, overlay=~valid, colour=ABSENT, strength=0.85))
    if e.cloud is not None:
        title = f"cloud and its shadow: {e.cloud.mean():.1%}"
        figures.append(pictures.figure(e.answer.pictures["optical"], title, overlay=e.cloud, colour=CLOUD))
    return _section("What could not be seen", _row(figures) + f"<p>{plain(e.cloud_note)}.</p>")


def _times(e: Explanation) -> str:
    names = list(dict.fromkeys(step for times in e.times.values() for step in times.steps))
    rows = []
    for run, times in e.times.items():
        cells = [f"{times.steps[name]:.3f} s" if name in times.steps else "-" for name in names]
        rows.append((RUNS.get(run, run), *cells, f"{times.compiling:.1f} s"))
    return _table("Time", rows, ("run", *names, "compiling, once for each shape"))


def _under(run: Answer, mask: Mask) -> np.ndarray:
    sensor, base = next(iter(run.pictures.items()))
    return run.pictures.get(f"{sensor} {mask.date}", base)


def _where(mask: Mask) -> tuple[str, str]:
    """Where a mask lies, in pixels of the scene and on Earth."""
    inside = np.argwhere(mask.array)
    if not len(inside):
        return "empty", "-"
    first, last = inside.min(0) * mask.scale, (inside.max(0) + 1) * mask.scale - 1
    (top, left), (bottom, right) = (np.rint(v + mask.offset).astype(int) for v in (first, last))
    pixels = f"{top} to {bottom}, {left} to {right}"
    if mask.crs is None or mask.transform is None:
        return pixels, "no georeference"
    from earthmind_jax.geo.grid import WGS84, project, to_map

    row, column = inside.mean(0) + 0.5
    x, y = to_map(mask.transform, np.array([column]), np.array([row]))
    longitude, latitude = (float(v[0]) for v in project(mask.crs, WGS84, x, y))
    return pixels, f"{longitude:.6f}, {latitude:.6f}"


def _shares(masks: Sequence[Mask]) -> str:
    return ", ".join(f"{m.array.mean():.1%} ({m.score:.2f})" for m in masks) or "none"


def _section(title: str, inner: str) -> str:
    return f"<h2>{plain(title)}</h2>{inner}"


def _row(figures: Iterable[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _list(title: str, items: Sequence[str]) -> str:
    return _section(title, f"<ul>{''.join(f'<li>{plain(item)}</li>' for item in items)}</ul>") if items else ""


def _table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    top = f"<tr>{''.join(f'<th>{plain(cell)}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{plain(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table>{top}{body}</table>"
    return _section(title, table) if title else table
