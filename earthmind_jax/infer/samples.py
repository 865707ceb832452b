"""Images as a sample for the model, and what it drew back on the images' grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Sample, Turn
from earthmind_jax.infer.result import Mask


def sample_of(images: Images, *turns: Turn) -> Sample:
    """The images with a conversation about them; a sensor with several dates becomes a tuple."""
    fields: dict[str, Any] = {}
    for name in images.pictures:
        dates = [each.pictures[name] for each in (images, *images.later) if name in each.pictures]
        pictures, valid = zip(*dates, strict=True)
        one = len(dates) == 1
        fields |= {name: pictures[0] if one else pictures, f"{name}_valid": valid[0] if one else valid}
    return Sample("ask", turns, **fields)


def dated_masks(probability: np.ndarray | None, images: Images) -> tuple[Mask, ...]:
    """One mask [H W], or of several dates one for each [F H W], on the images' grid."""
    assert probability is not None
    each = probability.reshape(-1, *images.shape).astype(np.float32)
    return tuple(
        Mask(p, i.valid if i.pictures else images.valid, images.transform, images.crs, i.date, scale=images.scale)
        for p, i in zip(each, (images, *images.later), strict=True)
    )
