"""Sentinel-1 GRD products (SAFE): amplitudes in the radar's geometry, and the table that calibrates them.

Layout: Sentinel-1 Product Specification (S1-RS-MDA-52-7441). ``measurement`` has a GeoTIFF for each polarisation,
placed by ground control points, and ``annotation/calibration`` a table for each.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from earthmind_jax.errors import UserError
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product
from earthmind_jax.geo.safe_xml import parse_xml, texts
from earthmind_jax.geo.sar_calibration import CalibrationTable, read_table

POLARISATIONS = ("VV", "VH", "HH", "HV")
# s1a-iw-grd-vv-20230601t052345-...-001.tiff, s1a-...-001-cog.tiff; iw-vv.tiff in public clouds.
_MEASUREMENT = re.compile(
    r"measurement/((?:s1\w-)?[a-z]\w{1,2}-(?:(\w{3,4})-)?(vv|vh|hh|hv)(?:-[^/]*)?)\.tiff?", re.IGNORECASE
)
_CALIBRATION = "annotation/calibration/calibration-"


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The product that these files are; None where they are none of Sentinel-1.

    Raises:
      UserError: single-look complex data, a missing or broken file of calibration, or two images of a polarisation.
    """
    images: dict[str, tuple[str, str, str]] = {}
    for name in files.names:
        match = _MEASUREMENT.fullmatch(name)
        if match is None:
            continue
        stem, kind, polarisation = match.groups()
        if (kind or "grd").upper() != "GRD":
            raise UserError(
                f"{files.path} holds {name}: single-look complex or other raw data ({kind.upper()}); give the GRD "
                "product of the same scene, or detected, calibrated backscatter."
            )
        if polarisation.upper() in images:
            raise UserError(f"{files.path} has two images of {polarisation.upper()}; give a product of one image.")
        images[polarisation.upper()] = stem, name, polarisation
    if not images:
        if any(name.startswith(("measurement/", "annotation/")) for name in files.names):
            raise UserError(
                f"{files.path} has no GRD images (measurement/s1a-iw-grd-vv-....tiff); give a Sentinel-1 GRD product, "
                "whole."
            )
        return None
    used = [name for name in POLARISATIONS if name in images]
    roots = {name: _calibration(files, *images[name]) for name in used}
    bands = [
        BandFile(name=name, file=files.gdal(images[name][1]), shown=files.shown(images[name][1]), nodata=0.0)
        for name in used
    ]
    xml, notes = assemble(bands, _tags(roots[used[0]][0], files.name))
    tables = {name: table for name, (_, table) in roots.items()}
    return Product(
        path=path,
        title="Sentinel-1 GRD product",
        bands=tuple(bands),
        xml=xml,
        sensor="s1",
        reason="its measurements are Sentinel-1 GRD images",
        notes=notes,
        calibration=tables,
    )


def _calibration(files: Files, stem: str, image: str, polarisation: str) -> tuple[Element, CalibrationTable]:
    """The document of an image's calibration, and its table."""
    listed = [name for name in files.names if name.startswith(_CALIBRATION) and name.endswith(".xml")]
    own = [name for name in listed if name == f"{_CALIBRATION}{stem}.xml"]
    own = own or [name for name in listed if re.search(rf"-{polarisation}[-.]", name, re.IGNORECASE)]
    if len(own) != 1:
        raise UserError(
            f"{files.path} has no calibration of {image} ({_CALIBRATION}{stem}.xml); download the product again, or "
            "give the image itself, with levels that are right to a few dB."
        )
    shown = files.shown(own[0])
    root = parse_xml(files.read(own[0]), shown)
    kind = texts(root, "productType")
    if kind and kind[0] != "GRD":
        raise UserError(f"{shown} is of {kind[0]} data; give the GRD product of the same scene.")
    return root, read_table(root, shown)


def _tags(root: Element, name: str) -> dict[str, str]:
    tags = {"SCALE": "dn", "PRODUCT_URI": name}
    times = texts(root, "startTime")
    return tags | ({"START_DATETIME": times[0]} if times else {})
