"""Products as they are downloaded, made small on the spot to their published layout: names, folders, metadata, bands.

Each maker returns the path and the numbers that were stored, by band.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import from_origin

SIDE = 72  # pixels of 10 m: a multiple of 2 and 6
WEST, NORTH = 600000, 5100000
RESOLUTIONS = {
    10: ("B02", "B03", "B04", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09", "B10"),
}
L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
S2 = "20230601T101601"
L2A_NAME = f"S2A_MSIL2A_{S2}_N0509_R022_T32TQM_20230601T161500.SAFE"
GRANULE = "L2A_T32TQM_A041472_20230601T102056"
S1_NAME = "S1A_IW_GRDH_1SDV_20230601T052345_20230601T052410_048789_05DE14_1A2B.SAFE"
S1_STEM = "s1a-iw-grd-{}-20230601t052345-20230601t052410-048789-05de14-00{}"
LC08 = "LC08_L2SP_193028_20230601_20230607_02_T1"
PSD = "https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level"


def numbers(seed: int, side: int, dark: int = 1050) -> np.ndarray:
    """uint16 [side side]: smooth ground over a dark floor, as reflectance is stored with the offset."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    waves = 800 + 700 * np.sin(5 * rows + seed) + 500 * np.cos(7 * columns - seed)
    return (dark + np.clip(waves, 0, None) + rng.integers(0, 40, (side, side))).astype("uint16")


def image(path: Path, values: np.ndarray, size: float, crs: str | None = "EPSG:32632", **profile) -> Path:
    """A single-band file, lossless JPEG 2000 where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given: dict = {"driver": "GTiff"}
    if path.suffix == ".jp2":
        given = {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES", "BLOCKXSIZE": 64, "BLOCKYSIZE": 64}
    place = {} if crs is None else {"crs": crs, "transform": from_origin(WEST, NORTH, size, size)}
    shape = {"height": values.shape[0], "width": values.shape[1], "dtype": values.dtype, "count": 1}
    with rasterio.open(path, "w", **given, **shape, **place, **profile) as file:
        file.write(values, 1)
    return path


def sentinel2(
    folder: Path,
    level: str = "2A",
    *,
    name: str = "",
    baseline: str = "05.09",
    offsets: Mapping[str, int] | int | None = -1000,
    side: int = SIDE,
    granules: tuple[str, ...] = ("",),
    dark: int = 1050,
) -> tuple[Path, dict[str, np.ndarray]]:
    """A compact SAFE folder of Level-2A or Level-1C; ``offsets`` of all bands, by band, or None for no list."""
    name = name or L2A_NAME.replace("2A_2023", f"{level}_2023", 1).replace("0509", baseline.replace(".", ""))
    safe, stored, listed = folder / name, {}, []
    for granule in granules:
        place = f"GRANULE/{granule or GRANULE.replace('L2A', f'L{level}')}/IMG_DATA"
        for size, bands in RESOLUTIONS.items():
            for band in bands:
                if band == "B10" and level == "2A":
                    continue
                own = 20 if band == "B01" and level == "2A" else size
                values = numbers(L1C.index(band), side * 10 // own, dark)
                stored[band] = values
                for coarser in (own, *(s for s in (20, 60) if s > own)) if level == "2A" else (own,):
                    part = values if coarser == own else values[:: coarser // own, :: coarser // own] // 2
                    tail = f"R{coarser}m/T32TQM_{S2}_{band}_{coarser}m" if level == "2A" else f"T32TQM_{S2}_{band}"
                    image(safe / f"{place}/{tail}.jp2", part, coarser)
                    listed.append(f"<IMAGE_FILE>{place}/{tail}</IMAGE_FILE>")
        if level == "2A":
            classes = np.full((side // 2, side // 2), 4, "uint8")
            classes[:4], classes[:, -3:] = 9, 6
            stored["SCL"] = classes
            image(safe / f"{place}/R20m/T32TQM_{S2}_SCL_20m.jp2", classes, 20)
            image(safe / f"{place}/R10m/T32TQM_{S2}_WVP_10m.jp2", numbers(20, side), 10)
    kind, key = ("BOA", "BOA_QUANTIFICATION_VALUE") if level == "2A" else ("RADIO", "QUANTIFICATION_VALUE")
    told = dict.fromkeys(L1C, offsets) if isinstance(offsets, int) else offsets or {}
    each = "".join(f'<{kind}_ADD_OFFSET band_id="{L1C.index(b)}">{v}</{kind}_ADD_OFFSET>' for b, v in told.items())
    spectral = "".join(
        f'<Spectral_Information bandId="{i}" physicalBand="{b.replace("B0", "B")}"/>' for i, b in enumerate(L1C)
    )
    (safe / f"MTD_MSIL{level}.xml").write_text(
        f"""<?xml version="1.0" encoding="UTF-8" standalone="no" ?>
<n1:Level-{level}_User_Product xmlns:n1="{PSD}-{level}.xsd"><n1:General_Info><Product_Info>
<PRODUCT_START_TIME>2023-06-01T10:16:01.024Z</PRODUCT_START_TIME><PRODUCT_URI>{name}</PRODUCT_URI>
<PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL><PRODUCT_TYPE>S2MSI{level}</PRODUCT_TYPE>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Product_Organisation><Granule_List><Granule>{"".join(listed)}</Granule></Granule_List></Product_Organisation>
</Product_Info><Product_Image_Characteristics>
<QUANTIFICATION_VALUES_LIST><{key} unit="none">10000</{key}></QUANTIFICATION_VALUES_LIST>
{each}<Spectral_Information_List>{spectral}</Spectral_Information_List>
</Product_Image_Characteristics></n1:General_Info></n1:Level-{level}_User_Product>
"""
    )
    (safe / "manifest.safe").write_text("<xfdu:XFDU xmlns:xfdu='urn:ccsds:schema:xfdu:1'/>")
    return safe, stored


def amplitude(line: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The made-up sigmaNought table: bilinear in line and pixel, so that interpolation must give it back."""
    return 300 + 1.5 * pixel + 0.5 * line + 0.01 * line * pixel


def sentinel1(folder: Path, polarisations: tuple[str, ...] = ("vv", "vh"), kind: str = "grd") -> tuple[Path, dict]:
    """A GRD SAFE folder on the ground of :func:`sentinel2`: uint16 amplitude, control points, calibration tables."""
    safe, stored, side = folder / S1_NAME.replace("GRDH", "SLC_" if kind == "slc" else "GRDH"), {}, SIDE + 12
    crs = CRS.from_epsg(4326)
    west, north = WEST - 60, NORTH + 60
    for i, name in enumerate(polarisations, 1):
        stem = S1_STEM.replace("grd", kind).format(name, i)
        rng = np.random.default_rng(i)
        values = rng.gamma(4, 60 / i, (side, side)).astype("complex64" if kind == "slc" else "uint16")
        stored[name.upper()] = values
        nodes = np.linspace(0, side, 6)
        rows, columns = (grid.ravel() for grid in np.meshgrid(nodes, nodes, indexing="ij"))
        from rasterio.warp import transform

        x, y = transform(CRS.from_epsg(32632), crs, west + 10 * columns, north - 10 * rows)
        points = [GroundControlPoint(r, c, a, b, 0.0) for r, c, a, b in zip(rows, columns, x, y, strict=True)]
        path = safe / f"measurement/{stem}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = {"count": 1, "height": side, "width": side, "dtype": values.dtype}
        with rasterio.open(path, "w", driver="GTiff", gcps=points, crs=crs, **shape) as file:
            file.write(values, 1)
        table = safe / f"annotation/calibration/calibration-{stem}.xml"
        table.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array([0, 20, 40, 83])
        vectors = "".join(
            f"<calibrationVector><line>{line}</line><pixel count='4'>{' '.join(map(str, pixels))}</pixel>"
            f"<sigmaNought count='4'>{' '.join(f'{v:.6e}' for v in amplitude(line, pixels))}</sigmaNought>"
            "</calibrationVector>"
            for line in (0, 30, 83)
        )
        table.write_text(
            f"<calibration><adsHeader><missionId>S1A</missionId><productType>{kind.upper()}</productType>"
            f"<polarisation>{name.upper()}</polarisation><startTime>2023-06-01T05:23:45.123456</startTime></adsHeader>"
            f"<calibrationVectorList count='3'>{vectors}</calibrationVectorList></calibration>"
        )
    (safe / "manifest.safe").write_text("<xfdu:XFDU xmlns:xfdu='urn:ccsds:schema:xfdu:1'/>")
    return safe, stored


def landsat(folder: Path, level: int = 2, scene: str = LC08) -> tuple[Path, dict[str, np.ndarray]]:
    """A Collection 2 scene as USGS delivers it: a file for each band, QA_PIXEL and MTL, at 30 m."""
    scene, side = scene.replace("L2SP", "L2SP" if level == 2 else "L1TP"), SIDE // 3
    place, stored = folder / scene, {}
    names = {f"SR_B{i}": f"SR_B{i}" for i in range(1, 8)} | {"ST_B10": "ST_B10"}
    if level == 1:
        names = {f"TOA_B{i}": f"B{i}" for i in (*range(1, 8), 9)} | {f"BT_B{i}": f"B{i}" for i in (10, 11)}
    for i, (band, file) in enumerate(names.items()):
        stored[band] = numbers(i, side, 8000) * np.uint16(2 if band.startswith(("ST", "BT")) else 1)
        image(place / f"{scene}_{file}.TIF", stored[band], 30, nodata=0)
    if level == 1:
        with rasterio.open(
            place / f"{scene}_B8.TIF", "w", driver="GTiff", count=1, width=2 * side - 1, height=2 * side - 1,
            dtype="uint16", crs="EPSG:32632", transform=from_origin(WEST + 7.5, NORTH - 7.5, 15, 15),
        ) as file:  # fmt: skip
            file.write(numbers(8, 2 * side - 1, 8000), 1)
    quality = np.full((side, side), 21824, "uint16")
    quality[:3], quality[:, :2] = 22280, 1
    stored["QA_PIXEL"] = quality
    image(place / f"{scene}_QA_PIXEL.TIF", quality, 30, nodata=1)
    image(place / f"{scene}_QA_RADSAT.TIF", quality * 0, 30)
    rescaling = "".join(
        f"    REFLECTANCE_MULT_BAND_{i} = 2.0000E-05\n    REFLECTANCE_ADD_BAND_{i} = -0.100000\n" for i in range(1, 10)
    ) + "".join(
        f"    RADIANCE_MULT_BAND_{i} = 3.3420E-04\n    RADIANCE_ADD_BAND_{i} = 0.10000\n"
        f"    K1_CONSTANT_BAND_{i} = 774.8853\n    K2_CONSTANT_BAND_{i} = 1321.0789\n"
        for i in (10, 11)
    )
    (place / f"{scene}_MTL.txt").write_text(
        f"""GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    LANDSAT_PRODUCT_ID = "{scene}"
    PROCESSING_LEVEL = "L{level}"
  END_GROUP = PRODUCT_CONTENTS
  GROUP = IMAGE_ATTRIBUTES
    SPACECRAFT_ID = "LANDSAT_8"
    DATE_ACQUIRED = 2023-06-01
    SCENE_CENTER_TIME = "10:04:21.4360860Z"
    SUN_ELEVATION = 60.00000000
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
{rescaling}  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""
    )
    return place, stored


def zipped(safe: Path, to: Path | None = None, packed: bool = True) -> Path:
    """The folder as one zip file, itself at the top as ESA has it."""
    path = to or safe.parent / f"{safe.name.removesuffix('.SAFE')}.zip"
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for file in sorted(safe.rglob("*")):
            archive.write(file, Path(safe.name) / file.relative_to(safe))
    return path


def tarred(folder: Path, before: str = "") -> Path:
    """The files of a folder as USGS packs them: a tar file without compression, nothing but files in it; ``before``
    stands before each name."""
    path = folder.parent / f"{folder.name}.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, before + file.name)
    return path


def moved(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to
