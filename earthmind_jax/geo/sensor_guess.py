"""Which sensor is a file from? Its name and tags say so, else the names of its bands do, as far as they can."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from earthmind_jax.geo.band_names import auxiliary, nanometres
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.reflectance import BY_NAMES, DOUBTFUL, sentinel2_product

VERY_HIGH_GSD = 5.0  # metres: coarser colour without a sensor's name could be any satellite's
RADAR = {"VV", "VH", "HH", "HV", "CO"}
MEASURED = {band for sensor in SENSORS.values() for band in sensor.bands}
_SENTINEL2 = set(SENSORS["s2_l1c"].bands)
_COLOURS = set("RGBN")
_SPECTRAL = set(SENSORS["reflectance"].bands) | _COLOURS
_SENTINEL2_ONLY = {"B08", "B8A", "B12"}  # Landsat's B8 has a grid of its own
_ALIKE = {"B02", "B03", "B04"}  # on Sentinel-2 and Landsat 8
# Names of Sentinel-2's granules, and of what others make of them.
_OF_SENTINEL2 = re.compile(
    r"(?<![A-Z0-9])T\d{2}[A-Z]{3}_\d{8}T\d{6}|_T\d{2}[A-Z]{3}(?![A-Z0-9])|S2_(SR_)?HARMONI[SZ]ED|SENTINEL-?2"
)
_LEVEL = re.compile(r"SENTINEL-?2[_-]L(1C|2A)")
_LANDSAT = re.compile(r"(?<![A-Z0-9])L[COTEM]0[4-9]_")
_LANDSAT_PRODUCT = re.compile(r"(?<![A-Z0-9])(?:L[COT]0[89]_L(1|2)|L[TE]0[457]_L(2))[A-Z]{2}_")
_OF_EARTH_ENGINE = re.compile(r"L[CO]0[89]_C02_T[12](?:_RT)?_(TOA|L2)(?![A-Z0-9])")
_OTHER_SAR = {
    "gf3": re.compile(r"(?i)(?<![a-z])(gf-?3|gaofen-?3)(?![0-9])"),
    "sar_l": re.compile(r"(?i)(?<![a-z])(palsar|alos-?2|nisar)|_sl_(HH|HV)(?![a-z])"),
    "sar_x": re.compile(
        r"(?i)(?<![a-z])(terrasar|tandem-?x|t[sd]x1?(?![a-z])|paz1|capella|umbra|iceye|cosmo-?sky|csk(?=s\d|\b)|radarsat"
        r"|rs2_|rcm\d_|image_[hv][hv]_[sdqt]r[al]_|imagery_[hv][hv]\.|spacenet-?6|sn6)"
    ),
}  # fmt: skip


def landsat_of(path: str) -> str | None:
    """``landsat_l1`` or ``landsat_l2`` where the file's name is of such a product."""
    name = PurePath(path).name.upper()
    product, export = _LANDSAT_PRODUCT.search(name), _OF_EARTH_ENGINE.search(name)
    if product or export is None:
        return f"landsat_l{product.group(1) or product.group(2)}" if product else None
    return "landsat_l2" if export.group(1) == "L2" else "landsat_l1"


def other_radar(path: str, tags: Mapping[str, str]) -> tuple[str, str] | None:
    """(sensor, what names it) of a SAR sensor beside Sentinel-1."""
    texts = " ".join((PurePath(path).name, *map(str, tags.values())))
    named = ((sensor, pattern.search(texts)) for sensor, pattern in _OTHER_SAR.items())
    return next(((sensor, found.group()) for sensor, found in named if found), None)


def sensor_of_names(
    names: tuple[str, ...],
    dtype: str,
    path: str,
    tags: Mapping[str, str],
    *,
    gsd: float | None = None,
    kind: str | None = None,
    scaled: bool = False,
) -> tuple[str | None, str]:
    """(sensor, why), or (None, what is in doubt).

    Args:
      kind: "optical" or "sar", where a file that holds both is given as one of them.
      scaled: the file has a band scale of its own.
    """
    file = f"{PurePath(path).name} {tags.get('PRODUCT_URI', '')}"
    present = measured(names, kind)
    if dtype == "uint8" and len(names) == 3 and (present == {"R", "G", "B"} or present <= _SENTINEL2):
        return "rgb8", "three 8-bit bands are a rendering, not a measurement"
    if present and present <= RADAR:
        return _of_polarisations(present, path, tags)
    for name in ("landsat_l2", "landsat_l1"):
        if present and present <= set(SENSORS[name].bands):
            return name, f"the bands are named as in {SENSORS[name].title}"
    if present and present <= _SENTINEL2 and dtype != "uint8" and not _LANDSAT.search(file):
        return _sentinel2(present, path, tags, file)
    if present == {"IR"}:
        return "infrared", "the band is named so"
    if present and present <= set(SENSORS["vhr"].bands):
        if dtype == "uint8":
            return "vhr", "8-bit colour bands"
        if gsd is not None and gsd <= VERY_HIGH_GSD:
            return "vhr", f"colour bands with pixels of {gsd:.2f} m"
    spectral = all(name in _SPECTRAL or nanometres(name) for name in present)
    if spectral and present - {"R", "G", "B"} and dtype != "uint8" and (scaled or dtype.startswith("float")):
        how = "with a band scale" if scaled else "of floating point"
        return "reflectance", f"bands beyond the visible, {how}, and no sensor's own names"
    if spectral and present >= {"R", "G", "B"} and gsd is not None and gsd <= VERY_HIGH_GSD:
        return "vhr", f"colour and other bands with pixels of {gsd:.2f} m"
    return None, ""


def measured(names: tuple[str, ...], kind: str | None = None) -> set[str]:
    """Names of the measurements: without quality bands and, beside bands that are known, without what is no band of any
    sensor (an index); of optical and SAR bands in one file those of the ``kind``, optical ones where it is not told."""
    present = {name for name in names if not auxiliary(name)}
    known = {name for name in present if name in MEASURED or nanometres(name)}
    optical, radar = known - RADAR, known & RADAR
    if radar and (kind == "sar" or not optical or (kind is None and len(optical) < 3)):
        return radar
    return optical if radar or len(optical) >= 3 else present


def _sentinel2(present: set[str], path: str, tags: Mapping[str, str], file: str) -> tuple[str | None, str]:
    product, level = sentinel2_product(path, tags), _LEVEL.search(file.upper())
    if product is None and level:
        return f"s2_l{level.group(1).lower()}", f"the file's name says Level-{level.group(1)}"
    if product:
        return f"s2_{product[0].lower()}", f"the product name says Level-{product[0][1:]}"
    if not (present & _SENTINEL2_ONLY or present <= _ALIKE | {"B11"} or _OF_SENTINEL2.search(file.upper())):
        return None, f"the numbers {' '.join(sorted(present))} {DOUBTFUL}"
    if "B10" in present:
        return "s2_l1c", "band B10 exists in Level-1C only"
    return "s2_l2a", BY_NAMES


def _of_polarisations(present: set[str], path: str, tags: Mapping[str, str]) -> tuple[str, str]:
    other = other_radar(path, {**tags, "": f"{tags.get('PRODUCT_URI', '')}"})
    if other is not None:
        return other[0], f"the file or its tags name {other[1]}"
    if {"VV", "HH"} <= present or len(present) > 2:
        return "sar_x", f"Sentinel-1 never has {' '.join(sorted(present))} together"
    return "s1", "the bands are polarisations"
