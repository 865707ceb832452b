"""Band names of a virtual raster, by the files that its bands are made of: ``gdalbuildvrt -separate`` puts single-band
files together and names no band, and the order that they are in is that of a shell, with ``B8A`` last.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence

import rasterio

from earthmind_jax.geo.families import family_of
from earthmind_jax.geo.product_bands import band_of, known_sensor, other_of
from earthmind_jax.geo.sensor_guess import landsat_of

_FILE = re.compile(r"<SourceFilename[^>]*>([^<]+)</SourceFilename>")
_BAND = re.compile(r"<SourceBand>([^<]*)</SourceBand>")


def source_names(dataset: rasterio.DatasetReader, indexes: Sequence[int]) -> tuple[list[str | None], str | None, str]:
    """(a name or None for each of the bands, the sensor where the files tell it, why); no names where the bands are
    not each made of files of one band of their own, or no file is named after a band."""
    nothing = [None] * len(indexes), None, ""
    files = [_files(dataset, index) for index in indexes]
    if not all(files) or len(set().union(*files)) < sum(map(len, files)):
        return nothing
    bands = [{band_of(name) for name in names} for names in files]
    if any(len(found) > 1 for found in bands):
        return nothing
    names = [found.pop() for found in bands]
    if not any(names):
        return nothing
    first = min(files[next(i for i, name in enumerate(names) if name)])
    named = [name or other_of(min(each)) for name, each in zip(names, files, strict=True)]
    family = family_of(first, {})
    if family is not None:
        numbered = [family.numbers.get(name, name) if name else None for name in named]
        return numbered, family.sensor, f"{family.title}, by the names of its files"
    landsat = landsat_of(first)
    if landsat is not None:
        return named, landsat, f"its file {first} is named so"
    return named, *known_sensor(filter(None, names))


def _files(dataset: rasterio.DatasetReader, index: int) -> frozenset[str]:
    """Names of the files that a band is made of; none where it is not the first band of each."""
    sources = dataset.tags(index, ns="vrt_sources").values()
    if any(_BAND.findall(source) not in ([], ["1"]) for source in sources):
        return frozenset()
    found = (match for source in sources for match in _FILE.findall(source))
    return frozenset(os.path.basename(html.unescape(name)) for name in found)
