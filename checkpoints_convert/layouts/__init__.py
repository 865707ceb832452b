"""The published checkpoint layouts, one table each; the most specific first."""

from __future__ import annotations

from collections.abc import Iterable

from checkpoints_convert.layouts.earthmind import EARTHMIND_LANGUAGE_QWEN2, EARTHMIND_QWEN2
from checkpoints_convert.layouts.internvl import INTERN_VIT, INTERNVL_ENCODER, INTERNVL_QWEN2
from checkpoints_convert.layouts.qwen2 import QWEN2
from checkpoints_convert.layouts.sam2 import SAM2
from checkpoints_convert.rules import Layout

LAYOUTS = (EARTHMIND_QWEN2, EARTHMIND_LANGUAGE_QWEN2, INTERNVL_QWEN2, INTERNVL_ENCODER, SAM2, INTERN_VIT, QWEN2)


def detect(names: Iterable[str]) -> Layout | None:
    """The first layout that the tensor ``names`` are of, or None."""
    names = list(names)
    return next((layout for layout in LAYOUTS if layout.fits(names)), None)
