"""What commands print about an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.errors import UserError


def print_answer(answer: Any, files: list[Path], as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """An answer, what is to be said beside it (``extra``), and the files written; as JSON where asked."""
    facts = answer.to_dict() | (extra or {}) | {"files": [str(f) for f in files]}
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(answer.text)
    for name, mask in zip(answer.names, facts["masks"], strict=True):
        what = f" ({mask['name']})" if "name" in mask else ""
        print(f"{name.replace('_', ' ')}{what}: {mask['share']:.1%} of the image, score {mask['score']:.2f}")
    if facts["fusion"]:
        print(f"weights: optical {facts['fusion']['optical']:.2f}, SAR {facts['fusion']['sar']:.2f}")
    for key, value in (extra or {}).items():
        print(f"{key}: {value}")
    for note in facts["notes"]:
        print(f"note: {note}")
    for file in files:
        print(f"wrote {file}")


def against(mask: np.ndarray, valid: np.ndarray, truth: Path, value: int) -> float:
    """Foreground IoU of a mask [H W] with the pixels of a label raster that have ``value``."""
    from earthmind_jax.evaluate.metrics import foreground_iou
    from earthmind_jax.geo.raster import read_raster

    labels = read_raster(truth, labels=True, native=True).data[0]
    if labels.shape != mask.shape:
        raise UserError(f"{truth} has {labels.shape} pixels (rows, columns) but the image has {mask.shape}.")
    return foreground_iou(mask, labels == value, valid)
