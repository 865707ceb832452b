"""Sentinel-2 Level-1C and Level-2A products (SAFE), compact and with the long names of before December 2016.

Layout: Sentinel-2 Products Specification Document (S2-PDGS-TAS-DI-PSD). ``MTD_MSIL2A.xml`` tells the processing
baseline, the quantification and the offset of each band; the images are JPEG 2000 files below
``GRANULE/<granule>/IMG_DATA``, of Level-2A in folders by pixel size.
"""

from __future__ import annotations

import os
import re
from xml.etree.ElementTree import Element

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product, plain_name
from earthmind_jax.geo.safe_xml import local_name, parse_xml, texts

# In the order of the metadata's band identifiers.
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
OWN_PROCESSING = "99.99"
_METADATA = re.compile(r"MTD_MSIL(1A|1B|1C|2A)\.xml|S2\w_(?:OPER|USER)_MTD_SAFL(1B|1C|2A)_\w+\.xml")
_ROOTS = {"Level-1C_User_Product": "1C", "Level-2A_User_Product": "2A"}
_IMAGE = re.compile(
    r"GRANULE/([^/]+)/IMG_DATA/(?:R(\d\d)m/)?[^/]*_(B\d\d|B8A|SCL)(?:_(\d\d)m)?\.(?:jp2|tif|tiff)", re.IGNORECASE
)
_OLD_CLASSES = re.compile(r"GRANULE/([^/]+)/IMG_DATA/(?:R(\d\d)m/)?S2\w_USER_(SCL)_L2A_[^/]*_(\d\d)m\.jp2")
_TIMES = ("DATATAKE_SENSING_START", "PRODUCT_START_TIME")


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The product that these files are; None where they are none of Sentinel-2.

    Args:
      path: what the user gave.
      granule: the one to read of several.

    Raises:
      UserError: metadata or images are missing or broken, another level, or several granules and none named.
    """
    metadata = [name for name in files.top() if _METADATA.fullmatch(name)]
    if not metadata:
        if any(_IMAGE.fullmatch(name) for name in files.names):
            raise UserError(
                f"{files.path} has images of a Sentinel-2 product but no metadata (MTD_MSIL2A.xml or MTD_MSIL1C.xml), "
                "which tell their offset; download the product again, or name the folder of its images (IMG_DATA) "
                "after copying it elsewhere."
            )
        return None
    name = metadata[0]
    told = next(filter(None, _METADATA.fullmatch(name).groups()))
    root = parse_xml(files.read(name), files.shown(name)) if told in ("1C", "2A") else None
    if root is None or local_name(root) not in _ROOTS:
        what = f"Level-{told}" if root is None else f"<{local_name(root)}>"
        raise UserError(f"{files.shown(name)} is {what}; of Sentinel-2, Level-1C and Level-2A products are read.")
    level = _ROOTS[local_name(root)]
    images = _images(files, granule)
    bands = [BandFile(name=b, file=files.gdal(f), shown=files.shown(f), nodata=0.0) for b, f in images.items()]
    tags = _tags(root, list(images))
    xml, notes = assemble(bands, tags)
    if plain_name(tags.get("PRODUCT_URI", "")) not in os.path.abspath(path):
        notes = (f"the product calls itself {tags['PRODUCT_URI']}", *notes)
    return Product(
        path=path,
        title=f"Sentinel-2 Level-{level} product",
        bands=tuple(bands),
        xml=xml,
        sensor=f"s2_l{level.lower()}",
        reason=f"{name} is of a Level-{level} product",
        notes=(*_notes(images, level), *notes),
    )


def _images(files: Files, granule: str) -> dict[str, str]:
    """The file of each band at its finest pixels, in the order of the bands, SCL last."""
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for name in files.names:
        match = _IMAGE.fullmatch(name) or _OLD_CLASSES.fullmatch(name)
        if match is None:
            continue
        place, folder, band, suffix = match.groups()
        size = int(suffix or folder or 0)
        best = found.setdefault(place, {})
        if band.upper() not in best or size < best[band.upper()][0]:
            best[band.upper()] = size, name
    if granule and granule not in found:
        raise UserError(f"{files.path} has no images of the granule {granule}; it has {', '.join(found) or 'none'}.")
    if len(found) > 1 and not granule:
        some = ", ".join(list(found)[:3]) + (", ..." if len(found) > 3 else "")
        how = "unpack it and name one" if files.archive else f"name one, such as {files.shown(f'GRANULE/{min(found)}')}"
        raise UserError(f"{files.path} holds {len(found)} granules ({some}); {how}.")
    if not found:
        raise UserError(
            f"{files.path} has no band images below GRANULE/*/IMG_DATA; unpack or download the product again."
        )
    chosen = found[granule or next(iter(found))]
    if set(chosen) <= {"SCL"}:
        raise UserError(f"{files.path} has a scene classification but no band images; download the product again.")
    return {band: chosen[band][1] for band in (*BANDS, "SCL") if band in chosen}


def _notes(images: dict[str, str], level: str) -> list[str]:
    notes = []
    missing = [band for band in BANDS if band not in images and not (band == "B10" and level == "2A")]
    if missing:
        notes.append(f"the product lacks the files of {' '.join(missing)}")
    if "SCL" in images:
        notes.append("the product's scene classification (SCL) tells cloud, shadow and fill, which are invalid")
    elif level == "2A":
        notes.append("the product has no scene classification (SCL): cloud is not known")
    return notes


def _tags(root: Element, bands: list[str]) -> dict[str, str]:
    """What is told of the whole, by names that GDAL's own Sentinel-2 driver uses, too."""
    tags = {}
    for key in ("PRODUCT_URI", "PRODUCT_TYPE", "PROCESSING_BASELINE", "SPACECRAFT_NAME"):
        found = texts(root, key, f"{key}_2A", f"{key}_1C")
        if found:
            tags[key] = found[0]
    start = next((found[0] for key in _TIMES if (found := texts(root, key))), None)
    if start is not None:
        tags["DATATAKE_1_DATATAKE_SENSING_START"] = start
    quantity = texts(root, "BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
    if quantity:
        tags["QUANTIFICATION_VALUE"] = quantity[0]
    return tags | _offsets(root, bands, tags.get("PROCESSING_BASELINE", ""))


def _offsets(root: Element, bands: list[str], baseline: str) -> dict[str, str]:
    """The number to add to the DN: one for all bands, or one for each where they differ."""
    names = dict(enumerate(BANDS))
    for element in root.iter():
        if local_name(element) == "Spectral_Information" and element.get("bandId", "").isdigit():
            number = element.get("physicalBand", "").upper().removeprefix("B")
            names[int(element.get("bandId", ""))] = f"B{number.zfill(2)}"
    told = {}
    for element in root.iter():
        key, place = local_name(element), element.get("band_id", "")
        if key in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET") and place.isdigit():
            told[names.get(int(place), "")] = key, (element.text or "").strip()
    used = {band: told[band] for band in bands if band in told}
    if len(set(used.values())) == 1:
        return dict([next(iter(used.values()))])
    if used:
        return {f"{key}_{band}": value for band, (key, value) in used.items()}
    # A user's own sen2cor writes the list where its input had one.
    return {"BOA_ADD_OFFSET": "0"} if baseline == OWN_PROCESSING else {}
