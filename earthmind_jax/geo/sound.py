"""What must hold of every raster that is opened, and of every file that a virtual one is made of."""

from __future__ import annotations

import math

from affine import Affine
from rasterio.io import DatasetReader

from earthmind_jax.errors import UserError

LARGEST_BLOCK = 2**31  # bytes; GDAL reads whole blocks, however small the window


def require_pixel_size(transform: Affine, name: str) -> None:
    """UserError where a transform gives pixels no size."""
    if not (all(map(math.isfinite, transform[:6])) and transform.determinant != 0):
        raise UserError(
            f"{name} has a transform that gives pixels no size ({transform.a:g} x {transform.e:g}); write its "
            "georeference anew."
        )


def require_blocks(dataset: DatasetReader, name: str, index: int = 1) -> None:
    """UserError where no memory holds a block of a band."""
    rows, columns = dataset.block_shapes[index - 1]
    if rows * columns * _width(dataset.dtypes[index - 1]) > LARGEST_BLOCK:
        raise UserError(
            f"{name} is stored in blocks of {rows} x {columns} pixels, which no memory holds; rewrite it with tiles "
            "(gdal_translate -co TILED=YES)."
        )


def _width(dtype: str) -> int:
    """Bytes of a number of GDAL's types, some of which numpy does not know."""
    digits = "".join(filter(str.isdigit, dtype))
    return max(1, int(digits or 8) // 8)
