"""The picture of an answer: optical, SAR, mask, what was pointed at, and the fusion weights."""

from __future__ import annotations

import io
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.geo.write import written_beside
from earthmind_jax.infer.mark_lines import COLOUR, lines_of
from earthmind_jax.infer.result import Answer


def panel(answer: Answer) -> bytes:
    """PNG bytes: one row of optical, SAR, each mask over the first image, and the weight of SAR (blue); marks (green)
    over all but the last."""
    # The object interface: no global backend is touched, so that a caller's own figures are safe.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    for name, title in (("optical", "optical"), ("sar", "SAR")):
        if name in answer.pictures:
            views.append((title, answer.pictures[name], None))
    sensor, base = next(iter(answer.pictures.items()))
    for name, mask in zip(answer.names, answer.masks, strict=True):
        under = answer.pictures.get(f"{sensor} {mask.date}", base)
        what = f", {mask.name}" if mask.name else ""
        views.append((f"{name.replace('_', ' ')}{what} (score {mask.score:.2f})", under, mask.array))
    count = len(views) + (answer.fusion is not None)
    figure = Figure(figsize=(3.1 * count, 3.7), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (title, image, mask) in zip(axes, views, strict=False):
        axis.imshow(image, interpolation="nearest")
        if mask is not None:
            overlay = np.zeros((*mask.shape, 4), np.float32)
            overlay[mask] = (1.0, 0.85, 0.0, 0.55)
            axis.imshow(overlay, interpolation="nearest")
        _point(axis, answer, image.shape[:2])
        axis.set_title(title, fontsize=10, parse_math=False)
    if answer.fusion is not None:
        shown = np.where(answer.fusion.sum(-1) > 0, answer.fusion[..., 1], np.nan)
        height, width = base.shape[:2]
        drawn = axes[-1].imshow(
            shown, cmap="coolwarm_r", vmin=0, vmax=1, interpolation="nearest", extent=(0, width, height, 0)
        )
        axes[-1].set_title("weight of SAR", fontsize=10)
        figure.colorbar(drawn, ax=axes[-1], shrink=0.8)
    for axis in axes:
        axis.set_axis_off()
    text = "  →  ".join(filter(None, (answer.question, answer.text)))
    figure.suptitle("\n".join(textwrap.wrap(text, 38 * count)), fontsize=10, parse_math=False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # words in letters that the font lacks: boxes
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _point(axis: Any, answer: Answer, shape: tuple[int, int]) -> None:
    """Draw the marks over a picture of ``shape`` without moving its limits."""
    from matplotlib.patheffects import Normal, Stroke

    colour, halo = tuple(value / 255 for value in COLOUR), [Stroke(linewidth=2.5, foreground="black"), Normal()]
    limits = axis.get_xlim(), axis.get_ylim()
    for mark in answer.marks:
        found = lines_of(mark, shape)
        # Pictures are drawn with the centre of their first pixel at 0, 0.
        for line in found.lines:
            axis.plot(*(line - 0.5).T, color=colour, linewidth=1.2, path_effects=halo)
        for (x, y), label in zip(found.points - 0.5, found.labels, strict=True):
            axis.plot(x, y, "o" if label else "x", color=colour, markersize=5, path_effects=halo)
        at = (found.corner[0] - 0.5, found.corner[1] - 0.5)
        text = axis.annotate(
            found.name, at, (2, 2), textcoords="offset points", color=colour, fontsize=8, parse_math=False
        )
        text.set_path_effects(halo)
    axis.set_xlim(limits[0])
    axis.set_ylim(limits[1])


def write_panel(answer: Answer, path: str | Path) -> Path:
    """Write :func:`panel` to ``path`` (beside, then renamed)."""
    data = panel(answer)
    with written_beside(path) as beside:
        Path(beside).write_bytes(data)
    return Path(path)
