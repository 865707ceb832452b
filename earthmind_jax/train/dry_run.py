"""One batch as people read it: the conversation with its supervised words marked, and what the encoders are shown."""

from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.tiles import MEAN, STD
from earthmind_jax.types import Batch

SENSORS = ("optical", "sar")


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Any, skip_special: bool = False) -> str: ...


def texts(batch: Batch, tokenizer: Decodes) -> list[str]:
    """Each sample's tokens as text: runs of image positions as ``<image x N>``, what is learnt in ``[[...]]``."""
    tokens, rows, learnt = (np.asarray(x) for x in (batch.tokens, batch.visual_index, batch.loss_mask))
    found = []
    for sample, length in enumerate(np.asarray(batch.lengths)):
        kinds = zip(rows[sample, :length] >= 0, learnt[sample, :length], strict=True)
        parts, start = [], 0
        for (image, supervised), run in groupby(kinds):
            end = start + len(list(run))
            text = f"<image x {end - start}>" if image else tokenizer.decode(tokens[sample, start:end].tolist())
            parts.append(f"[[{text}]]" if supervised else text)
            start = end
        found.append("".join(parts))
    return found


def padding_share(batch: Batch) -> float:
    """Share of the token positions of a batch that hold no token."""
    return 1.0 - float(np.sum(batch.lengths)) / np.asarray(batch.tokens).size


def picture(batch: Batch, config: EarthMindConfig) -> bytes | None:
    """PNG bytes: a row for each sample, with both sensors' whole-image tile, the grounding image and its masks; None
    for a batch of text alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [_views(batch, sample) for sample in range(len(batch.tokens))]
    columns = max(len(views) for views in rows)
    if not columns:
        return None
    figure = Figure(figsize=(2.2 * columns, 2.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, views in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(line, views, strict=False):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(title, fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def write(directory: Path, batch: Batch, config: EarthMindConfig, tokenizer: Decodes) -> list[Path]:
    """Write ``batch.txt`` and, with images, ``batch.png`` into ``directory``; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "batch.txt"
    text.write_text("\n\n".join(f"sample {i}: {line}" for i, line in enumerate(texts(batch, tokenizer))) + "\n")
    data = picture(batch, config)
    if data is None:
        return [text]
    image = directory / "batch.png"
    image.write_bytes(data)
    return [text, image]


def _views(batch: Batch, sample: int) -> list[tuple[str, np.ndarray]]:
    views = []
    for name in SENSORS:
        pixels, valid = getattr(batch, name), getattr(batch, f"{name}_valid")
        if pixels is None:
            continue
        there = np.flatnonzero(np.asarray(valid[sample]).any(-1))
        tile = np.asarray(pixels[sample, there[-1]]) if len(there) else None
        title = f"{name}, {len(there)} tiles" if len(there) else f"no {name}"
        views.append((title, np.zeros((2, 2, 3)) if tile is None else _bytes(tile)))
    if batch.masks is None or batch.mask_valid is None:
        return views
    for number in np.flatnonzero(batch.mask_valid[sample]):
        views.append((f"mask {number + 1}", np.repeat(np.asarray(batch.masks[sample, number])[..., None], 3, -1)))
    return views


def _bytes(normalised: np.ndarray) -> np.ndarray:
    """A normalised picture [H W 3] as it was, 0..1."""
    return np.clip(normalised * STD + MEAN, 0, 1)
