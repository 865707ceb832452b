"""A folder of single-band files that are named after their bands: B02.tif, T32TQM_20230601T101601_B8A_20m.jp2, VV.tif,
LC08_..._SR_B4.TIF, HLS.L30....B05.tif, N46E010_20_sl_HH_F02DAR.tif, or the asset names of catalogues (red.tif,
nir08.tif, swir16.tif, qa_pixel.tif, iw-vv.rtc.tiff).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from earthmind_jax.errors import UserError
from earthmind_jax.geo.families import family_of
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import CLASSES, BandFile, assemble
from earthmind_jax.geo.products import Product

POLARISATIONS = {"VV", "VH", "HH", "HV"}
ENDINGS = (".tif", ".tiff", ".jp2", ".img")
_SIZE = re.compile(r"[_.-]?(\d\d)m$", re.IGNORECASE)
_BAND = re.compile(
    r"(?:^|[_.\- ])((?:SR_|ST_|TOA_|BT_)?B(?:0?[1-9]|1[0-3]|0?8A)|SCL|QA_PIXEL|Fmask|VV|VH|HH|HV)"
    r"(?:[_.-]db|_\(Raw\))?$",
    re.IGNORECASE,
)
_POLARISATION = re.compile(r"(?:^|[_.\-])(VV|VH|HH|HV)(?=[_.\-])", re.IGNORECASE)
# Of Element 84's Earth Search and Microsoft's Planetary Computer: the STAC common names.
_COMMON = {
    "coastal", "blue", "green", "red", "rededge", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "cirrus",
    "swir16", "swir22", "swir1", "swir2", "pan", "lwir11", "lwir12",
}  # fmt: skip
_COLOURS = {name: i for i, names in enumerate((("red", "B04", "SR_B4"), ("green", "B03", "SR_B3"),
            ("blue", "B02", "SR_B2"))) for name in names}  # fmt: skip
_LANDSAT_ONLY = {"QA_PIXEL", "lwir11", "lwir12"}
_SENTINEL2_ONLY = {"SCL", "rededge", "rededge1", "rededge2", "rededge3", "nir09"}
_OTHER = re.compile(r"(?i)(^|[_.-])(TCI|AOT|WVP|visual|thumbnail|preview|overview|CLD|SNW|QA|atran|cdist|drad|emis|"
                    r"emsd|trad|urad|qa_\w+|SR_QA\w*|ST_\w+|aot|wvp)([_.-]\d\dm)?$")  # fmt: skip


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The image that the files at the top are the bands of; None where none is named after a band.

    Raises:
      UserError: two files for one band, other rasters beside them, or bands that lie apart.
    """
    rasters = [name for name in files.top() if name.lower().endswith(ENDINGS)]
    named = {name: band for name in rasters if (band := band_of(name)) is not None}
    if not named:
        return None
    others = [name for name in rasters if name not in named and not _OTHER.search(name.rpartition(".")[0])]
    if others and len(named) == 1 and not set(named.values()) & POLARISATIONS:
        return None
    chosen: dict[str, str] = {}
    for name, band in named.items():
        rival = chosen.get(band)
        if rival is not None and {True, False} == {"_FRE_" in name, "_FRE_" in rival}:
            chosen[band] = name if "_FRE_" in name else rival  # Theia: corrected for slopes, too
            continue
        if rival is not None and _size(name) == _size(rival):
            raise UserError(
                f"{files.path} has two files of the band {band} ({rival}, {name}); put the bands of one image into a "
                "folder."
            )
        if rival is None or _size(name) < _size(rival):
            chosen[band] = name
    numbered = sorted(name for band, name in chosen.items() if re.fullmatch(r"B\w+", band))
    if "QA_PIXEL" in chosen and numbered:
        raise UserError(
            f"{files.path} has a QA_PIXEL file, so {numbered[0]} is Landsat's and its level is not known; keep the "
            "names that USGS gives (..._SR_B4.TIF; of Level-1 with the MTL file beside)."
        )
    sensor, reason = known_sensor(chosen)
    family = family_of(next(iter(chosen.values())), {})
    numbers = family.numbers if family is not None else {}
    if family is not None:
        sensor, reason = family.sensor, f"{family.title}, by the names of its files"
    bands = [
        BandFile(name=numbers.get(band, band), file=files.gdal(name), shown=files.shown(name), nodata=_nodata(band))
        for band, name in sorted(chosen.items(), key=lambda item: _order(item[0], len(chosen)))
    ]
    xml, notes = assemble(bands, None)
    left = [f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}: named after no band, left out"]
    return Product(
        path=path,
        title="folder of band files",
        bands=tuple(bands),
        xml=xml,
        sensor=sensor,
        reason=reason,
        notes=(*(left if others else ()), *notes),
    )


def band_of(name: str) -> str | None:
    """The band that a file is named after: the field's own name or a common one in lower case; None without any."""
    stem = _SIZE.sub("", name.rpartition(".")[0])
    if stem.lower() in _COMMON:
        return stem.lower()
    found = _BAND.search(stem)
    inside = {text.upper() for text in _POLARISATION.findall(stem)}
    if found is None and len(inside) == 1 and not _OTHER.search(stem):
        return inside.pop()
    if found is None:
        last = re.split(r"[_.\- ]", stem)[-1].lower()
        return last if last in _COMMON - {"pan", "red", "green", "blue", "nir"} else None
    text = found.group(1).upper()
    if text == "FMASK":
        return "Fmask"
    family, number = re.fullmatch(r"((?:SR|ST|TOA|BT)_B|B)?0*(.+)", text).groups()
    if family == "B" and number != "8A":
        return f"B{int(number):02d}"
    return f"{family or ''}{number}"


def other_of(name: str) -> str | None:
    """What a file is named after that is no band (AOT, WVP); None without any."""
    found = _OTHER.search(name.rpartition(".")[0])
    return found.group(2) if found else None


def _size(name: str) -> int:
    """Pixel size at the end of a name; 0 where it is not told."""
    found = _SIZE.search(name.rpartition(".")[0])
    return int(found.group(1)) if found else 0


def known_sensor(names: Iterable[str]) -> tuple[str | None, str]:
    """(sensor, why) of common names; None where the bands' own names tell, or nothing does."""
    common = {name for name in names if name in _COMMON | {"SCL", "QA_PIXEL"}}
    for only, sensor in ((_LANDSAT_ONLY, "landsat_l2"), (_SENTINEL2_ONLY, "s2_l2a")):
        if common & only:
            return sensor, f"its file {sorted(common & only)[0]} is named as in that sensor's collections"
    if {"nir", "nir08"} <= common:
        return "s2_l2a", "its files nir and nir08 are named as in that sensor's collections"
    return None, ""


def _nodata(band: str) -> float | None:
    return {"QA_PIXEL": 1.0, "SCL": 0.0, "Fmask": 255.0}.get(band)


def _order(band: str, count: int) -> tuple[Any, ...]:
    """Measurements first; B8A in its place; three colours as a picture has them."""
    if count == 3 and band in _COLOURS:
        return False, str(_COLOURS[band])
    return band in CLASSES, band.replace("B8A", "B08A")
