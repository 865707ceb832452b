"""Products that their names give away: whose bands they hold, in which order, and what their numbers are.

Sources: HLS v2.0 user guide (LP DAAC); Planet's imagery product specification; Airbus's user guides of Pléiades and
SPOT; MODIS surface reflectance user's guide (MOD09); FORCE documentation (Level 2 naming).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

_SENTINEL2 = dict(
    zip(
        ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
        [
            "coastal",
            "blue",
            "green",
            "red",
            "rededge1",
            "rededge2",
            "rededge3",
            "nir",
            "nir08",
            "nir09",
            "cirrus",
            "swir16",
            "swir22",
        ],
        strict=True,
    )
)
_OLI = dict(
    zip(
        ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09"),
        ["coastal", "blue", "green", "red", "nir08", "swir16", "swir22", "cirrus"],
        strict=True,
    )
)
_PLANET = (
    ("blue", "green", "red", "nir"),
    ("blue", "green", "red", "rededge", "nir"),
    ("coastal", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Products of one maker.

    Attributes:
      title: in words.
      pattern: found in the file's name, in what it says of its bands, or in the tags that describe it.
      sensor: an entry of ``radiometry.SENSORS``.
      numbers: what the maker's band numbers mean, as that sensor calls it.
      orders: of nameless bands, by their count.
    """

    title: str
    pattern: re.Pattern[str]
    sensor: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    orders: tuple[tuple[str, ...], ...] = ()

    def fits(self, dtype: str, count: int) -> bool:
        """Whether a file of ``count`` bands can be its measurement: of 8 bits there are masks, and colour alone."""
        return dtype != "uint8" or (self.sensor == "vhr" and count >= 3 and count in map(len, self.orders))


FAMILIES = (
    Family(
        title="Harmonized Landsat Sentinel S30", pattern=re.compile(r"(?<![A-Z0-9])HLS\.S30\."), sensor="reflectance",
        numbers=_SENTINEL2,
    ),
    Family(
        title="Harmonized Landsat Sentinel L30, numbered as Landsat 8", sensor="reflectance",
        pattern=re.compile(r"(?<![A-Z0-9])HLS\.L30\."), numbers=_OLI,
    ),
    Family(
        title="surface reflectance by Planet", sensor="reflectance", orders=_PLANET,
        pattern=re.compile(r"(?i)_[13][AB]_(analytic\w*|ortho_analytic\w*)_SR|_ssc?\d+_u\d+_analytic_SR"
                           r"|planet_medres_normalized_analytic|\"atmospheric_correction\""),
    ),
    Family(
        title="radiance by Planet", sensor="vhr", pattern=re.compile(r"(?i)_[13]B_(analytic|ortho_analytic)"),
        orders=(("B", "G", "R", "N"), ("coastal", "B", "green_i", "G", "yellow", "R", "rededge", "N")),
    ),
    Family(
        title="Pléiades or SPOT 6/7", pattern=re.compile(r"(?<![A-Z])(IMG|DIM)_(PHR1[AB]|SPOT[67])_"), sensor="vhr",
        orders=(("R", "G", "B", "N"), ("R", "G", "B"), ("PAN",)),
    ),
    Family(
        title="MODIS surface reflectance", sensor="reflectance", pattern=re.compile(r"(?i)sur_refl_b0|M[OY]D09"),
    ),
    Family(
        title="surface reflectance by FORCE", sensor="reflectance",
        pattern=re.compile(r"\d{8}_LEVEL2_(SEN2[A-D]|LND\d\d)_BOA"),
    ),
)  # fmt: skip


def family_of(path: str, tags: Mapping[str, str], descriptions: Iterable[str | None] = ()) -> Family | None:
    """The family that a file's name, else its descriptions and tags, give away."""
    spoken = [tags[key] for key in ("PRODUCT_URI", "TIFFTAG_IMAGEDESCRIPTION") if key in tags]
    for texts in ((PurePath(path).name,), (*filter(None, descriptions), *spoken)):
        for family in FAMILIES:
            if any(family.pattern.search(text) for text in texts):
                return family
    return None
