"""Landsat Collection 2 scenes as USGS delivers them: a GeoTIFF for each band, and the metadata (MTL). Level-2 of all
since Landsat 4, Level-1 of Landsat 8 and 9.

File names: Landsat Collection 2 Level-1 and Level-2 data format control books. The panchromatic band has smaller pixels
on a grid of its own and is left out.
"""

from __future__ import annotations

import re

from earthmind_jax.errors import UserError
from earthmind_jax.geo.landsat import OLDER_NOTE, SOURCE_TAG, THEMATIC_MAPPER, older_landsat
from earthmind_jax.geo.mtl import mtl_numbers, mtl_pairs
from earthmind_jax.geo.product_files import Files
from earthmind_jax.geo.product_vrt import BandFile, assemble
from earthmind_jax.geo.products import Product

_PRODUCT = r"(L[COTEM]0\d_L[12]\w{2}_\d{6}_\d{8}_\d{8}_\d{2}_[A-Z0-9]{2})"
_FILE = re.compile(rf"{_PRODUCT}_(?:(?:SR_|ST_)?B\d+|QA_PIXEL)\.TIFF?", re.IGNORECASE)
_MTL = re.compile(rf"{_PRODUCT}_MTL\.(txt|json|xml)", re.IGNORECASE)
_OWN_NAME = re.compile(r"(?:L[CO]0[89]_L([12])(?:SP|SR|TP|GT|GS)|L[TE]0[457]_L(2)S[PR])_")
FILL = 1.0  # the value of QA_PIXEL where nothing was measured


def find(files: Files, path: str, granule: str = "") -> Product | None:
    """The scene that these files are; None where they are none of Landsat.

    Raises:
      UserError: several scenes, another Landsat, metadata that cannot be read, or no band files.
    """
    top = files.top()
    scenes = sorted({match.group(1).upper() for name in top for match in (_FILE.fullmatch(name),) if match})
    described = sorted({match.group(1).upper() for name in top for match in (_MTL.fullmatch(name),) if match})
    if not scenes and not described:
        return None
    chosen = _MTL.fullmatch(path.replace("\\", "/").rpartition("/")[2])
    if chosen:
        scenes = [chosen.group(1).upper()]
    if len({*scenes, *described}) > 1 and not chosen:
        both = ", ".join(sorted({*scenes, *described})[:3])
        raise UserError(f"{files.path} holds several scenes ({both}); name the MTL file of one.")
    scene = (scenes or described)[0]
    level = _OWN_NAME.match(scene)
    if level is None:
        raise UserError(
            f"{files.path} holds {scene}; of Landsat 4 to 7 Level-2 is read, and of Landsat 8/9 what has reflective "
            "bands: give the Level-2 product of the scene."
        )
    images = _images(top, scene, level := level.group(1) or level.group(2))
    if not any(name.startswith(("SR_", "TOA_", "ST_", "BT_")) for name in images):
        raise UserError(f"{files.path} has metadata of {scene} but no band files ({scene}_..._B4.TIF) beside it.")
    bands = [
        BandFile(name=b, file=files.gdal(f), shown=files.shown(f), nodata=FILL if b == "QA_PIXEL" else 0.0)
        for b, f in images.items()
    ]
    tags, notes = _tags(files, top, scene, level)
    if older_landsat(scene):
        notes.append(OLDER_NOTE)
    xml, more = assemble(bands, tags)
    if "QA_PIXEL" in images:
        notes.append("the product's QA_PIXEL tells cloud, shadow and fill, which are invalid")
    return Product(
        path=path,
        title=f"Landsat {int(scene[2:4])} Collection {int(scene[-5:-3])} Level-{level} scene",
        bands=tuple(bands),
        xml=xml,
        sensor=f"landsat_l{level}",
        reason=f"its files are named after the scene {scene}",
        notes=(*notes, *more),
    )


def _images(names: list[str], scene: str, level: str) -> dict[str, str]:
    """The file of each band by the name of ``radiometry.SENSORS``, QA_PIXEL last."""
    files = {name.upper()[len(scene) + 1 :].rpartition(".")[0]: name for name in names if _FILE.fullmatch(name)
             and name.upper().startswith(scene)}  # fmt: skip
    if older_landsat(scene):
        known = {band: own for own, band in THEMATIC_MAPPER.items()}
    elif level == "2":
        known = {band: band for band in (*(f"SR_B{i}" for i in range(1, 8)), "ST_B10")}
    else:
        known = {f"TOA_B{i}": f"B{i}" for i in (*range(1, 8), 9)} | {f"BT_B{i}": f"B{i}" for i in (10, 11)}
    return {band: files[name] for band, name in (known | {"QA_PIXEL": "QA_PIXEL"}).items() if name in files}


def _tags(files: Files, top: list[str], scene: str, level: str) -> tuple[dict[str, str], list[str]]:
    """What is told of the whole: product, time, and of Level-1 the coefficients."""
    tags = {"LANDSAT_PRODUCT_ID": scene}
    mtl = sorted((name for name in top if _MTL.fullmatch(name) and name.upper().startswith(scene)), key=_order)
    if not mtl:
        return tags, ["there is no MTL file beside the bands"]
    name = mtl[0]
    pairs = mtl_pairs(files.read(name), files.shown(name))
    facts = mtl_numbers(pairs, files.shown(name))
    words = {key: str(value) for _, key, value in pairs}
    if "DATE_ACQUIRED" in words:
        time = words.get("SCENE_CENTER_TIME", "").partition(".")[0].rstrip("Z")
        tags["DATETIME"] = words["DATE_ACQUIRED"] + (f"T{time}" if time else "")
    if level == "1":
        tags |= {key: repr(value) for key, value in facts.items() if _is_coefficient(key)} | {SOURCE_TAG: name}
    return tags, []


def _order(name: str) -> tuple[int, str]:
    return (".txt", ".json", ".xml").index(name[name.rindex(".") :].lower()), name


def _is_coefficient(key: str) -> bool:
    return key == "SUN_ELEVATION" or key.startswith(("REFLECTANCE_", "RADIANCE_", "K1_", "K2_"))
