"""Band files as one raster: a virtual one (GDAL's VRT) on the finest of their grids, of which any window can be read.

Pixels of coarser bands are repeated, so that every number is one that was measured.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from earthmind_jax.errors import UserError
from earthmind_jax.geo.sound import require_blocks, require_pixel_size

# What a file's name says it is: of an archive that others made, nothing else is opened.
DRIVERS = {
    ".img": "ENVI",
    ".tif": "GTiff",
    ".tiff": "GTiff",
    ".jp2": "JP2OpenJPEG",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
NEAR = 1e-3  # pixels, to which edges are rounded
LARGEST_BLOCK = 2048  # rows and columns
COLOURS = ("", "red", "green", "blue")
CLASSES = ("SCL", "QA_PIXEL", "Fmask")
_GDAL_TYPES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BandFile:
    """One band: its ``name``, what GDAL opens its file by, the ``index`` of the band in it, what messages call the
    file, the number without a measurement where the file does not tell it, of a palette image which of the colours
    (1 red, 2 green, 3 blue) it is, and the scale and offset, and the unit, that stand elsewhere than in the file."""

    name: str
    file: str
    shown: str
    index: int = 1
    nodata: float | None = None
    colour: int = 0
    scaling: tuple[float, float] | None = None
    unit: str = ""


@dataclass(frozen=True)
class _Header:
    width: int
    height: int
    dtype: str
    transform: Affine
    crs: CRS | None
    block: tuple[int, int]
    nodata: float | None
    gcps: tuple
    colour: str
    scaling: tuple[float, float]
    unit: str
    tags: Mapping[str, str]


def assemble(
    bands: Sequence[BandFile],
    tags: Mapping[str, str] | None,
    *,
    place: tuple[Affine, CRS] | None = None,
    single: bool = True,
) -> tuple[str, tuple[str, ...]]:
    """(text of the virtual raster, what there is to say of it).

    Args:
      tags: of the whole; None for those that all files have in common.
      place: where it lies, in place of what the files say.
      single: each file holds one band.

    Raises:
      UserError: a file that cannot be read, holds something else, or lies elsewhere than the first.
    """
    headers = [_header(band, single) for band in bands]
    chosen = min(range(len(bands)), key=lambda i: abs(headers[i].transform.determinant))
    if headers[chosen].crs is None:  # without a map the one with most pixels
        chosen = max(range(len(bands)), key=lambda i: headers[i].width * headers[i].height)
    grid = headers[chosen]
    root = Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    transform, crs = place or (grid.transform, grid.crs)
    if crs is not None and not (grid.gcps and place is None):
        SubElement(root, "SRS").text = crs.to_wkt()
        SubElement(root, "GeoTransform").text = ", ".join(f"{v!r}" for v in map(float, transform.to_gdal()))
    if tags is None:
        tags = {key: value for key, value in grid.tags.items() if all(h.tags.get(key) == value for h in headers)}
        tags.setdefault("PRODUCT_URI", bands[chosen].shown.rpartition("/")[2])
    if tags:
        metadata = SubElement(root, "Metadata")
        for key, value in tags.items():
            SubElement(metadata, "MDI", key=key).text = value
    if grid.gcps and place is None:
        _add_gcps(root, *grid.gcps)
    notes = []
    for number, (band, header) in enumerate(zip(bands, headers, strict=True), 1):
        left, top, width, height = _rectangle(band, header, bands[chosen], grid)
        covered = _overlap(left, width, grid.width) * _overlap(top, height, grid.height)
        if covered <= 0:
            raise UserError(f"{band.shown} and {bands[chosen].shown} are of different places; give bands of one image.")
        if covered < 1 - NEAR:
            notes.append(f"{band.name} covers {covered:.1%} of {bands[chosen].name}; the rest of it is invalid")
        _add_band(root, number, band, header, grid, (left, top, width, height), covered < 1 - NEAR)
    return tostring(root, encoding="unicode"), tuple(notes)


def _opened(file: str) -> rasterio.DatasetReader:
    ending = os.path.splitext(file)[1].lower()
    try:
        return rasterio.open(file, driver=DRIVERS.get(ending))
    except RasterioError:
        if ending != ".img":
            raise
        return rasterio.open(file, driver="HFA")  # ERDAS gives its files this ending, too


def _header(band: BandFile, single: bool) -> _Header:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = _opened(band.file)
    except (RasterioError, OSError, ValueError, UnicodeError) as error:
        raise UserError(
            f"{band.shown} cannot be opened as a GeoTIFF or JPEG 2000 file; is it complete? Copy it again."
        ) from error
    with dataset:
        if single and dataset.count != 1:
            raise UserError(f"{band.shown} has {dataset.count} channels, but the file of a band has one.")
        i = band.index - 1
        if dataset.dtypes[i] not in _GDAL_TYPES:
            what = "complex numbers (single-look SAR?)" if "complex" in dataset.dtypes[i] else dataset.dtypes[i]
            raise UserError(f"{band.shown} holds {what}; give measurements such as uint16 or float32.")
        _require_sound(dataset, band, i)
        points, crs = dataset.gcps
        return _Header(
            dataset.width,
            dataset.height,
            dataset.dtypes[i],
            dataset.transform,
            dataset.crs,
            dataset.block_shapes[i],
            dataset.nodatavals[i],
            (tuple(points), crs) if points and dataset.crs is None else (),
            COLOURS[band.colour] or dataset.colorinterp[i].name,
            band.scaling or (dataset.scales[i], dataset.offsets[i]),
            band.unit or dataset.units[i] or "",
            dataset.tags(),
        )


def _require_sound(dataset: rasterio.DatasetReader, band: BandFile, i: int) -> None:
    """UserError where the file's numbers are those of colours, its pixels have no size, or no memory holds a block."""
    if dataset.colorinterp[i] == ColorInterp.palette and band.name not in CLASSES and not band.colour:
        raise UserError(f"{band.shown} is a palette image, its values are colour numbers; give the measurement itself.")
    require_pixel_size(dataset.transform, band.shown)
    require_blocks(dataset, band.shown, band.index)


def _rectangle(band: BandFile, header: _Header, first: BandFile, grid: _Header) -> tuple[float, float, float, float]:
    """Where a band lies on the grid of the ``first``: left, top, width and height in its pixels."""
    if header.crs is None or grid.crs is None:
        sizes = (header.height, header.width), (grid.height, grid.width)
        if (header.crs is None) != (grid.crs is None) or sizes[0] != sizes[1]:
            here, there = (" x ".join(map(str, size)) for size in sizes)
            raise UserError(
                f"{band.shown} has {here} pixels but {first.shown} {there}; without a georeference in both give one "
                "size."
            )
        return 0, 0, grid.width, grid.height
    if header.crs != grid.crs and (header.crs.to_epsg() is None or header.crs.to_epsg() != grid.crs.to_epsg()):
        here, there = (crs.to_string()[:40] for crs in (header.crs, grid.crs))
        raise UserError(
            f"{band.shown} is in {here} but {first.shown} in {there}; bring the bands into one CRS (gdalwarp -t_srs)."
        )
    onto = ~grid.transform @ header.transform
    if max(abs(onto.b), abs(onto.d)) * max(header.width, header.height) > 0.5 or min(onto.a, onto.e) <= 0:
        raise UserError(
            f"{band.shown} is turned against {first.shown}; bring the bands onto one orientation (gdalwarp)."
        )
    edges = (onto.c, onto.f, onto.a * header.width, onto.e * header.height)
    return tuple(float(round(v)) if abs(v - round(v)) < NEAR * 10 else float(v) for v in edges)


def _overlap(start: float, length: float, whole: int) -> float:
    """The share of ``whole`` pixels that a stretch covers."""
    return max(0.0, min(start + length, whole) - max(start, 0.0)) / whole


def _add_band(
    root: Element,
    number: int,
    band: BandFile,
    header: _Header,
    grid: _Header,
    rectangle: tuple[float, float, float, float],
    partial: bool,
) -> None:
    rows, columns = (min(side, LARGEST_BLOCK) for side in grid.block)
    kind = _GDAL_TYPES[header.dtype]
    made = SubElement(
        root, "VRTRasterBand", dataType=kind, band=str(number), blockXSize=str(columns), blockYSize=str(rows)
    )
    SubElement(made, "Description").text = band.name
    if header.colour in ("red", "green", "blue"):
        SubElement(made, "ColorInterp").text = header.colour.capitalize()
    nodata = header.nodata if header.nodata is not None else band.nodata
    if nodata is None and partial:
        nodata = 0 if np.issubdtype(np.dtype(header.dtype), np.integer) else np.nan
    if nodata is not None:
        SubElement(made, "NoDataValue").text = repr(nodata)
    if header.scaling != (1.0, 0.0):
        SubElement(made, "Scale").text, SubElement(made, "Offset").text = map(repr, header.scaling)
    if header.unit:
        SubElement(made, "UnitType").text = header.unit
    source = SubElement(made, "ComplexSource" if band.colour else "SimpleSource")
    SubElement(source, "SourceFilename", relativeToVRT="0").text = band.file
    SubElement(source, "SourceBand").text = str(band.index)
    SubElement(
        source,
        "SourceProperties",
        RasterXSize=str(header.width),
        RasterYSize=str(header.height),
        DataType=kind,
        BlockXSize=str(header.block[1]),
        BlockYSize=str(header.block[0]),
    )
    whole = 0, 0, header.width, header.height
    for tag, values in (("SrcRect", whole), ("DstRect", rectangle)):
        names = zip(("xOff", "yOff", "xSize", "ySize"), values, strict=True)
        SubElement(source, tag, {name: repr(value) for name, value in names})
    if band.colour:
        SubElement(source, "ColorTableComponent").text = str(band.colour)


def _add_gcps(root: Element, points: tuple, crs: CRS | None) -> None:
    listed = SubElement(root, "GCPList", Projection="" if crs is None else crs.to_wkt())
    for i, point in enumerate(points, 1):
        values = {"Pixel": point.col, "Line": point.row, "X": point.x, "Y": point.y, "Z": point.z or 0.0}
        SubElement(listed, "GCP", Id=str(i), **{key: repr(float(value)) for key, value in values.items()})
