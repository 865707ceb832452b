"""BEAM-DIMAP, the format of ESA's SNAP: a header (``x.dim``, XML) and a folder (``x.data``) with an ENVI file a band.

Layout: the DIMAP profile BEAM-DATAMODEL-V1, as SNAP's own writer fills it in.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from xml.etree.ElementTree import Element

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product
from earthmind_jax.geo.safe_xml import local_name, parse_xml, texts

_TIME = "%d-%b-%Y %H:%M:%S.%f"


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The product that a header is of, named or alone in the folder, or whose ``.data`` folder the files are; None
    where there is none.

    Raises:
      UserError: several headers and none named, or one that cannot be read, or has no bands.
    """
    headers = [name for name in files.top() if name.lower().endswith(".dim")]
    named = os.path.basename(path)
    if len(headers) > 1 and named not in headers:
        raise UserError(f"{files.path} holds {len(headers)} products ({', '.join(headers[:3])}); name one of them.")
    if not headers:
        return None
    name = named if named in headers else headers[0]
    root = parse_xml(files.read(name), files.shown(name))
    places = _places(root)
    described = [element for element in root.iter() if local_name(element) == "Spectral_Band_Info"]
    bands = [band for element in described if (band := _band(element, places, files, name)) is not None]
    if not bands:
        raise UserError(f"{files.shown(name)} names no band whose file is there; give the .dim with its .data folder.")
    xml, notes = assemble(bands, _tags(root))
    return Product(path=path, title="SNAP product (BEAM-DIMAP)", bands=tuple(bands), xml=xml, notes=notes)


def _band(element: Element, places: dict[str, str], files: Files, header: str) -> BandFile | None:
    """The band that a Spectral_Band_Info describes; None of one that has no file, since SNAP computes it."""
    said = {local_name(child): (child.text or "").strip() for child in element}
    place = places.get(said.get("BAND_INDEX", ""), "")
    file = f"{os.path.dirname(header)}/{os.path.splitext(place)[0]}.img".lstrip("/")
    if not place or file not in files.names:
        return None
    name = said.get("BAND_NAME", "")
    scale, offset = (_number(said.get(key)) for key in ("SCALING_FACTOR", "SCALING_OFFSET"))
    return BandFile(
        name=name,
        file=files.gdal(file),
        shown=files.shown(file),
        nodata=_number(said.get("NO_DATA_VALUE")) if said.get("NO_DATA_VALUE_USED") == "true" else None,
        scaling=(1.0 if scale is None else scale, offset or 0.0),
        unit="dB" if re.search(r"(?i)(^|_)db$", f"{name} {said.get('PHYSICAL_UNIT', '')}".strip()) else "",
    )


def _places(root: Element) -> dict[str, str]:
    """Band index -> the header of its file, as the product refers to it."""
    found = {}
    for element in root.iter():
        if local_name(element) == "Data_File":
            said = {local_name(child): child for child in element}
            if {"DATA_FILE_PATH", "BAND_INDEX"} <= set(said):
                found[(said["BAND_INDEX"].text or "").strip()] = said["DATA_FILE_PATH"].get("href", "")
    return found


def _tags(root: Element) -> dict[str, str]:
    names, times = texts(root, "DATASET_NAME"), texts(root, "PRODUCT_SCENE_RASTER_START_TIME")
    tags = {"PRODUCT_URI": names[0]} if names else {}
    try:
        return tags | {"DATETIME": datetime.strptime(times[0], _TIME).isoformat(timespec="seconds")}
    except (ValueError, IndexError):
        return tags


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
