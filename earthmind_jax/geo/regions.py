"""Connected regions of a mask."""

from __future__ import annotations

import numpy as np
from rasterio.features import rasterize, shapes


def label_regions(mask: np.ndarray) -> np.ndarray:
    """int32 [H W]: 0 outside of ``mask``, else 1, 2, ... the number of the 8-connected region."""
    regions = [shape for shape, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=8)]
    if not regions:
        return np.zeros(mask.shape, np.int32)
    return rasterize(((shape, i) for i, shape in enumerate(regions, 1)), out_shape=mask.shape, fill=0, dtype="int32")
