"""Pléiades and SPOT 6/7 as Airbus delivers them (DIMAP V2): a header (``DIM_*.XML``) and one or more image files, which
GDAL joins by the header.
"""

from __future__ import annotations

import re

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import BandFile
from earthmind_jax.geo.products import Product

_HEADER = re.compile(r"(?:.*/)?DIM_\w+\.XML", re.IGNORECASE)


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The image whose header lies in the folder or below it; None where there is none.

    Raises:
      UserError: several headers, as of a panchromatic and a multispectral image.
    """
    headers = [name for name in files.names if _HEADER.fullmatch(name)]
    if len(headers) > 1:
        raise UserError(f"{files.path} holds {len(headers)} images ({', '.join(headers[:3])}); name the header of one.")
    if not headers:
        return None
    header = files.shown(headers[0])
    band = BandFile(name="", file=files.gdal(headers[0]), shown=header)
    return Product(path=path, title="Airbus product (DIMAP)", bands=(band,), xml=band.file, driver="DIMAP")
