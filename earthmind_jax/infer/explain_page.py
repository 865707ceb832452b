"""The page of an explanation: HTML with its pictures inside, nothing to fetch and nothing to run."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from earthmind_jax.geo.marks import Mark
from earthmind_jax.infer.explain import RUNS, Explanation
from earthmind_jax.infer.mark_lines import COLOUR, described, lines_of
from earthmind_jax.infer.result import Answer, Mask

SIDES = (720, 512, 384, 256, 160)  # longest side of a picture; the first with which all of them fit
BUDGET = 2_200_000  # bytes of all pictures, as text
LINED = 360  # pixels of the longest side that pictures with lines are brought near to
SHOWN = 24  # masks that have a picture; the others are in the table
MASK, OPTICAL, SAR, ABSENT, CLOUD = (
    (255, 0, 180),
    (214, 96, 30),
    (33, 102, 172),
    (120, 120, 120),
    (0, 200, 255),
)
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
        pictures = _Pictures(side)
        text = _page(explanation, pictures)
        if pictures.bytes <= BUDGET:
            break
    return text


def _page(e: Explanation, pictures: _Pictures) -> str:
    answer = e.answer
    title = answer.question or "What is pointed at"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<blockquote>{_text(answer.text)}</blockquote>" if answer.text else "",
        _pointed(answer),
        _said(e),
        _images(e, pictures),
        _masks(e, pictures),
        _fusion(answer, pictures),
        _seen(e, pictures),
        _list("Notes on the files", answer.notes),
        _times(e),
        _table("How it was made", ((name, value) for name, value in e.facts.items())),
    ]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style>'
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


def _images(e: Explanation, pictures: _Pictures) -> str:
    dated = {name: image for name, image in e.answer.pictures.items() if " " in name}
    undated = {n: i for n, i in e.answer.pictures.items() if not any(other.startswith(f"{n} ") for other in dated)}
    marks = e.answer.marks
    shown = [
        pictures.figure(image, name.replace("sar", "SAR"), marks=marks) for name, image in (undated | dated).items()
    ]
    return _section("What the model saw", _row(shown)) if shown else ""


def _masks(e: Explanation, pictures: _Pictures) -> str:
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


def _fusion(answer: Answer, pictures: _Pictures) -> str:
    if answer.fusion is None or not answer.pictures:
        return ""
    seen = answer.fusion.sum(-1) > 0
    share = np.where(seen, answer.fusion[..., 1] / np.maximum(answer.fusion.sum(-1), 1e-12), 0)
    colours = _ramp(share)
    colours[~seen] = ABSENT
    base = next(iter(answer.pictures.values()))
    title = "weight of SAR over the image (grey: no data, or not looked at)"
    shares = answer.sensor_shares
    bar = ",".join(f"rgb{tuple(int(v) for v in _ramp(np.array(x)))}" for x in (0, 0.25, 0.5, 0.75, 1))
    legend = (
        f'<div class="bar" style="background:linear-gradient(to right,{bar})"></div>'
        '<div class="ends"><span>optical 1</span><span>even</span><span>SAR 1</span></div>'
        f"<p>Mean weights: optical {shares['optical']:.3f}, SAR {shares['sar']:.3f}; "
        f"SAR from {share[seen].min() if seen.any() else 0:.3f} to {share[seen].max() if seen.any() else 0:.3f}.</p>"
    )
    return _section("Where each sensor counted", _row([pictures.figure(base, title, tint=colours)]) + legend)


def _seen(e: Explanation, pictures: _Pictures) -> str:
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
    return _section("What could not be seen", _row(figures) + f"<p>{_text(e.cloud_note)}.</p>")


def _times(e: Explanation) -> str:
    names = list(dict.fromkeys(step for times in e.times.values() for step in times.steps))
    rows = []
    for run, times in e.times.items():
        cells = [f"{times.steps[name]:.3f} s" if name in times.steps else "-" for name in names]
        rows.append((RUNS.get(run, run), *cells, f"{times.compiling:.1f} s"))
    return _table("Time", rows, ("run", *names, "compiling, once for each shape"))


class _Pictures:
    """Makes the page's pictures and counts their bytes.

    Attributes:
      side: longest side in pixels; larger images are averaged down.
    """

    def __init__(self, side: int) -> None:
        self.side, self.bytes = side, 0

    def figure(
        self,
        image: np.ndarray,
        title: str,
        *,
        overlay: np.ndarray | None = None,
        tint: np.ndarray | None = None,
        colour: tuple[int, int, int] = MASK,
        strength: float = 0.55,
        marks: Sequence[Mark] = (),
    ) -> str:
        """An image [H W 3] with a caption; ``overlay`` bool [h w] is painted over it, or colours ``tint`` [h w 3], and
        ``marks`` are drawn."""
        shape = self._size(image.shape[:2])
        pixels = _resized(image.astype(np.uint8), shape, Image.Resampling.BOX).astype(np.float32)
        if overlay is not None:
            cover = _resized(overlay.astype(np.uint8) * 255, shape, Image.Resampling.BOX)[..., None] / np.float32(255)
            pixels = pixels * (1 - strength * cover) + np.float32(colour) * strength * cover
        if tint is not None:
            over = _resized(tint, shape, Image.Resampling.NEAREST).astype(np.float32)
            pixels = 0.45 * pixels + 0.55 * over
        buffer = io.BytesIO()
        picture = _pointed_at(Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), marks)
        small = picture.width * picture.height <= 128 * 128  # where JPEG's blocks would show
        picture.save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 82}))
        data = base64.b64encode(buffer.getvalue()).decode()
        self.bytes += len(data)
        kind = "png" if small else "jpeg"
        source = f"data:image/{kind};base64,{data}"
        return f'<figure><img alt="{_text(title)}" src="{source}"><figcaption>{_text(title)}</figcaption></figure>'

    def _size(self, shape: Sequence[int]) -> tuple[int, int]:
        scale = min(1.0, self.side / max(shape))
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _pointed_at(picture: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A picture with what is pointed at; a small one is enlarged, so that lines do not cover what they surround."""
    if not marks:
        return picture
    times = max(1, LINED // max(picture.size))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for mark in marks:
        found = lines_of(mark, (picture.height, picture.width))
        for width, colour in ((4, (0, 0, 0)), (2, COLOUR)):
            for line in found.lines:
                pen.line([tuple(position) for position in line.tolist()], fill=colour, width=width)
        for (x, y), label in zip(found.points.tolist(), found.labels.tolist(), strict=True):
            fill = COLOUR if label else (0, 0, 0)
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=fill, outline=(0, 0, 0) if label else COLOUR)
        name = found.name.encode("ascii", "replace").decode()  # the font that is always there has no other letters
        pen.text((found.corner[0] + 3, found.corner[1] + 2), name, fill=COLOUR, stroke_width=1, stroke_fill=(0, 0, 0))
    return picture


def _resized(image: np.ndarray, shape: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), method))


def _ramp(share: np.ndarray) -> np.ndarray:
    """uint8 [... 3]: the colour of optical at 0, white in the middle, that of SAR at 1."""
    x = np.asarray(share, np.float32)[..., None]
    low, middle, high = (np.array(c, np.float32) for c in (OPTICAL, (255, 255, 255), SAR))
    colour = np.where(x < 0.5, low + (middle - low) * 2 * x, middle + (high - middle) * (2 * x - 1))
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def _under(run: Answer, mask: Mask) -> np.ndarray:
    sensor, base = next(iter(run.pictures.items()))
    return run.pictures.get(f"{sensor} {mask.date}", base)


def _where(mask: Mask) -> tuple[str, str]:
    """Where a mask lies, in pixels of the scene and on Earth."""
    inside = np.argwhere(mask.array)
    if not len(inside):
        return "empty", "-"
    (top, left), (bottom, right) = inside.min(0) + mask.offset, inside.max(0) + mask.offset
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
    return f"<h2>{_text(title)}</h2>{inner}"


def _row(figures: Iterable[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _list(title: str, items: Sequence[str]) -> str:
    return _section(title, f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>") if items else ""


def _table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    top = f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table>{top}{body}</table>"
    return _section(title, table) if title else table


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def _text(words: object) -> str:
    """Anything as text of the page; whatever could be markup or no character is made harmless."""
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(words)), quote=True)
