"""SpaceNet 6 (MSAW): half-metre quad-pol X-band SAR and pan-sharpened optical tiles of Rotterdam with footprints.

SAR-Intensity holds four channels in the order HH, HV, VH, VV on a logarithmic scale of its own (0 where the strip did
not look; elsewhere means of 26 to 36, deviations of 8): no calibration is published, so HH, HV and VV become a picture
between fixed bounds. The footprints are polygons on the map and become masks on the grid of the tile. From which side a
strip was imaged (``SAR_orientations.txt``), which decides where buildings lean to, is said in the question; nothing is
rotated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from earthmind_jax.data.datasets import Dataset, _json
from earthmind_jax.data.datasets._buildings import building_turns
from earthmind_jax.data.datasets._folders import read_names, require_folder, stems, subfolder
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.records import Line, make_line
from earthmind_jax.errors import UserError

TITLE = "SpaceNet 6 (MSAW)"
SAR, RGB, RGBNIR, LABELS = "SAR-Intensity", "PS-RGB", "PS-RGBNIR", "geojson_buildings"
ORIENTATIONS = "SummaryData/SAR_orientations.txt"
PLACES = {
    "train": (".", "AOI_11_Rotterdam", "train/AOI_11_Rotterdam", "train"),
    "test": ("test_public/AOI_11_Rotterdam", "test/AOI_11_Rotterdam", "test_public", "test"),
}
SAR_RANGE = [10.0, 60.0]
OPTICAL_RANGE = [0.0, 2047.0]  # 11-bit counts of PS-RGBNIR
AREAS = ("Polygon", "MultiPolygon")
SIDES = {"0": "north", "1": "south"}
_NAME = re.compile(r"(SN6_.*_)SAR-Intensity_(\d+_\d+)_(tile_\d+)\.tif", re.IGNORECASE)


def read(root: Path, split: str) -> Iterator[Line]:
    """The tiles of a split in the order of their names; those of the test split have SAR alone and no answer."""
    folder = _place(root, split)
    if folder is None:
        raise UserError(f"'{root}' has no folder {SAR} for the split {split}, nor one below {PLACES[split][1]}.")
    labels = require_folder(folder, TITLE, LABELS) if split == "train" else None
    sides = _orientations(folder / ORIENTATIONS)
    tiles = stems(folder / SAR, (".tif", ".tiff"))
    for name in tiles:
        yield _line(root, folder, labels, name, sides)
    seen = {Path(name).stem.replace(SAR, "Buildings") for name in tiles}
    for name in stems(labels, (".geojson",)) if labels else ():
        if Path(name).stem not in seen:
            yield Line(f"{labels}/{name}", None, (": there is no SAR tile that these buildings are of.",))


def _place(root: Path, split: str) -> Path | None:
    return next((root / place for place in PLACES[split] if (root / place / SAR).is_dir()), None)


def _orientations(path: Path) -> dict[str, str]:
    """Strip -> the side that it was imaged from; empty where the file is not there."""
    sides = {}
    for number, text in enumerate(read_names(path) if path.is_file() else (), 1):
        parts = text.replace(",", " ").split()
        if len(parts) != 2 or parts[1] not in SIDES:
            raise UserError(f"'{path}' line {number} must be a strip and 0 (north) or 1 (south), not {text!r}.")
        sides[parts[0]] = SIDES[parts[1]]
    return sides


def _line(root: Path, folder: Path, labels: Path | None, name: str, sides: dict[str, str]) -> Line:
    path = folder / SAR / name
    found = _NAME.fullmatch(name)
    if found is None:
        return Line(f"{path}", None, (": the name is not SN6_..._SAR-Intensity_<start>_<end>_tile_<number>.tif.",))
    head, strip, tile = found.groups()
    side = sides.get(strip)
    if sides and side is None:
        return Line(f"{path}", None, (f": '{folder / ORIENTATIONS}' does not have its strip {strip}.",))
    optical = next((o for o in (RGB, RGBNIR) if labels and (folder / o).is_dir()), None)
    values: dict[str, Any] = {"id": f"{strip}_{tile}", "optical": None}
    if optical is not None:
        file = (folder / optical / f"{head}{optical}_{strip}_{tile}{path.suffix}").relative_to(root).as_posix()
        described = {"file": file, "bands": ["R", "G", "B", None], "stretch": OPTICAL_RANGE, "nodata": 0}
        values["optical"] = file if optical == RGB else described
    bands = ["HH", "HV", None, "VV"]
    sar = {"file": path.relative_to(root).as_posix(), "bands": bands, "stretch": SAR_RANGE, "nodata": 0}
    values["sar"] = sar
    told = f"The radar looked from the {side}." if side else ""
    try:
        if labels is None:
            values["turns"] = [{"question": f"{told} How many buildings are in the image?".strip()}]
        else:
            grid = root / values["optical"] if isinstance(values["optical"], str) else path
            count, mask = _footprints(labels / f"{head}Buildings_{strip}_{tile}.geojson", grid)
            values["turns"] = building_turns(values["id"], count, mask, told)
    except UserError as error:
        return Line(f"{path}", None, (f": {error}",))
    return make_line(values, f"{path}", root)


def _footprints(path: Path, image: Path) -> tuple[int, Any]:
    """(number of buildings, their mask as a run-length code) on the grid of an image; map coordinates are its own."""
    from earthmind_jax.geo.burn import burn
    from earthmind_jax.geo.raster import open_raster

    told = _json.load(path)
    features = told.get("features") if isinstance(told, dict) else None
    if not isinstance(features, list):
        raise UserError(f"'{path}' is no GeoJSON collection of features.")
    shapes = [feature.get("geometry") if isinstance(feature, dict) else None for feature in features]
    shapes = [shape for shape in shapes if shape]
    if not shapes:
        return 0, None
    for shape in shapes:
        if not _is_area(shape):
            raise UserError(f"'{path}' has a geometry that is no polygon: {str(shape)[:80]}.")
    with open_raster(image) as dataset:
        size, transform = (dataset.height, dataset.width), dataset.transform
    mask = burn(((shape, 1) for shape in shapes), size, transform=transform)
    if not mask.any():  # what the tile's edge leaves of a building may lie between the centres of pixels
        mask = burn(((shape, 1) for shape in shapes), size, transform=transform, all_touched=True)
    if not mask.any():
        raise UserError(f"'{path}' has {len(shapes)} buildings, but none lies on '{image}'; do they belong together?")
    return len(shapes), encode_rle(mask)


def _is_area(geometry: Any) -> bool:
    from rasterio.features import is_valid_geom

    try:
        return geometry["type"] in AREAS and is_valid_geom(geometry)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError):
        return False


DATASET = Dataset(
    title=TITLE,
    splits=("train", "test"),
    read=read,
    found=lambda root: any(
        (place := _place(root, split)) is not None and (split == "test" or subfolder(place, LABELS) is not None)
        for split in PLACES
    ),
    layout="""
        [train/AOI_11_Rotterdam/]
          SAR-Intensity/         SN6_Train_AOI_11_Rotterdam_SAR-Intensity_<start>_<end>_tile_<n>.tif (HH, HV, VH, VV)
          PS-RGB/ or PS-RGBNIR/  SN6_Train_AOI_11_Rotterdam_PS-RGB_<start>_<end>_tile_<n>.tif
          geojson_buildings/     SN6_Train_AOI_11_Rotterdam_Buildings_<start>_<end>_tile_<n>.geojson
          SummaryData/           SAR_orientations.txt
        test_public/AOI_11_Rotterdam/SAR-Intensity/
    """,
    licence="CC BY-SA 4.0",
    source="https://spacenet.ai/sn6-challenge (arXiv 2004.06500)",
)
