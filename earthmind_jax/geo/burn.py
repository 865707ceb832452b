"""Shapes drawn on pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from rasterio import features
from rasterio.errors import NotGeoreferencedWarning


def burn(shapes: Any, shape: tuple[int, int], dtype: str = "uint8", **options: Any) -> np.ndarray:
    """Pixels [H W] of ``(geometry, value)`` in pixel coordinates, 0 elsewhere; ``options`` as of
    :func:`rasterio.features.rasterize`, which warns of pixels that lie on no map: here they never do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return features.rasterize(shapes, out_shape=shape, fill=0, dtype=dtype, **options)


def covered(geometries: Sequence[Any], shape: tuple[int, int]) -> np.ndarray:
    """bool [H W]: pixels whose centre lies in one of the geometries; those that they touch where there are none."""
    for touching in (False, True):
        drawn = burn([(geometry, 1) for geometry in geometries], shape, all_touched=touching)
        if drawn.any():
            break
    return drawn.astype(bool)
