"""One self-contained HTML page: pictures, tables, and the fusion weights under cloud."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from earthmind_jax.evaluate.simulated import Summary

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{margin:1.5rem 0}
figcaption{color:#555}.note{background:#fff6dc;padding:.6rem 1rem;border-left:4px solid #e0a800}
"""


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class ModeResult:
    """Evaluation of one fusion mode: rows of the table, and the mean weight of SAR under cloud and elsewhere."""

    mode: str
    rows: Sequence[Summary]
    sar_cloud: float
    sar_clear: float


def render(
    title: str, note: str, results: Sequence[ModeResult], pictures: Sequence[Picture], facts: Sequence[str]
) -> str:
    """The page as text; nothing is fetched from anywhere."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    ]
    parts.append(f"<h1>{html.escape(title)}</h1><p class=note>{html.escape(note)}</p>")
    for result in results:
        parts.append(f"<h2>Fusion mode <code>{html.escape(result.mode)}</code></h2>{_table(result)}")
    parts.append("<h2>Unseen scenes</h2>")
    for picture in pictures:
        data = base64.b64encode(picture.png).decode()
        parts.append(
            f"<figure><img alt='{html.escape(picture.caption, quote=True)}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        )
    parts.append("<h2>How it was made</h2><ul>" + "".join(f"<li>{html.escape(f)}" for f in facts) + "</ul></html>")
    return "\n".join(parts)


def _table(result: ModeResult) -> str:
    head = (
        "<tr><th>sky<th>sensors<th>foreground mIoU (strict)<th>masks<th>mIoU with background (as the released script)"
        "<th>answers right<th>questions<th>absent targets left empty<th>single objects, mIoU<th>objects"
    )
    rows = [
        f"<tr><td>{row.sky}<td>{row.setting}<td>{row.iou}<td>{row.iou.count}<td>{row.official:.3f}"
        f"<td>{row.accuracy}<td>{row.accuracy.count}<td>{row.absent}"
        f"<td>{row.objects}<td>{row.objects.count}"
        for row in result.rows
    ]
    weights = (
        f"<p>Mean weight of SAR with both sensors: <b>{result.sar_cloud:.2f}</b> under cloud, "
        f"<b>{result.sar_clear:.2f}</b> where the ground is visible.</p>"
    )
    return f"<table>{head}{''.join(rows)}</table><p>Means with 95 % bootstrap intervals.</p>{weights}"
