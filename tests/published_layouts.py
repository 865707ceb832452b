"""Small copies of published multi-band and SAR data sets in their official layout: real files, few and of odd sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
from affine import Affine
from PIL import Image

ORIGIN = (300000.0, 5400000.0)
UTM = "EPSG:32633"
TENS = ("B02", "B03", "B04", "B08")
TWENTIES = ("B05", "B06", "B07", "B8A", "B11", "B12")
SIXTIES = ("B01", "B09")


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tif(path: Path, data: np.ndarray, pixel: float | None = 10.0, crs: str = UTM, **options: Any) -> np.ndarray:
    """A GeoTIFF [C H W] with its corner at ORIGIN; without a georeference where ``pixel`` is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": data.shape[0], "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype}
    place = {} if pixel is None else {"crs": crs, "transform": Affine(pixel, 0, ORIGIN[0], 0, -pixel, ORIGIN[1])}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **options) as file:
        file.write(data)
    return data


def picture(path: Path, data: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data).save(path)
    return data


def sentinel_pair(s2: Path, s1: Path, seed: int) -> dict[str, np.ndarray]:
    """The files of a BigEarthNet patch, at a fifth of its size: 24, 12 and 4 pixels a side."""
    rng, made = random(seed), {}
    for names, side, pixel in ((TENS, 24, 10.0), (TWENTIES, 12, 20.0), (SIXTIES, 4, 60.0)):
        for name in names:
            values = rng.integers(200, 3000, (1, side, side)).astype(np.uint16)
            made[name] = tif(s2 / f"{s2.name}_{name}.tif", values, pixel)[0]
    for name in ("VV", "VH"):
        made[name] = tif(s1 / f"{s1.name}_{name}.tif", rng.uniform(-24, -4, (1, 24, 24)).astype(np.float32))[0]
    return made


V1 = (
    ("S2A_MSIL2A_20170613T101031_0_45", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_45"),
    ("S2B_MSIL2A_20170924T93020_65_79", "S1B_IW_GRDH_1SDV_20170924T053443_35VPK_65_79"),
    ("S2A_MSIL2A_20171221T112501_28_87", "S1A_IW_GRDH_1SDV_20171221T063443_29SND_28_87"),
)
V1_LABELS = (["Pastures", "Rice fields", "Sea and ocean"], ["Airports"], ["Vineyards", "Olive groves", "Bare rock"])


def bigearthnet_v1(root: Path) -> list[dict[str, np.ndarray]]:
    made = []
    for i, ((s2, s1), labels) in enumerate(zip(V1, V1_LABELS, strict=True)):
        folders = root / "BigEarthNet-v1.0" / s2, root / "BigEarthNet-S1-v1.0" / s1
        made.append(sentinel_pair(*folders, i))
        told = {"labels": labels, "coordinates": {"ulx": ORIGIN[0]}, "projection": UTM}
        for folder, more in zip(folders, ({"tile_source": "x"}, {"corresponding_s2_patch": s2}), strict=True):
            (folder / f"{folder.name}_labels_metadata.json").write_text(json.dumps(told | more))
    (root / "train.csv").write_text("".join(f"{s2},{s1}\r\n" for s2, s1 in V1[:2]))
    (root / "val.csv").write_text(f"{V1[2][0]},{V1[2][1]}\n")
    return made


V2 = (
    ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_26_57"),
    ("S2B_MSIL2A_20170924T093020_N9999_R136_T34TEQ_05_09", "S1B_IW_GRDH_1SDV_20170924T163443_34TEQ_05_09"),
)
V2_LABELS = (["Arable land", "Urban fabric", "Inland waters"], ["Moors, heathland and sclerophyllous vegetation"])
V2_SPLITS = ("train", "test")


def bigearthnet_v2_folders(root: Path) -> list[dict[str, np.ndarray]]:
    """All but the table."""
    made = []
    for i, (s2, s1) in enumerate(V2):
        tile, product = s2.rsplit("_", 2)[0], s1.rsplit("_", 3)[0]
        files = sentinel_pair(root / "BigEarthNet-S2" / tile / s2, root / "BigEarthNet-S1" / product / s1, 10 + i)
        codes = np.full((1, 24, 24), 323, np.uint16)
        if i == 0:
            codes[:] = 211
            codes[:, :5], codes[:, 5:7], codes[:, 20:, 20:] = 112, 111, 512
        files["map"] = tif(root / "Reference_Maps" / tile / s2 / f"{s2}_reference_map.tif", codes)[0]
        made.append(files)
    return made


def bigearthnet_v2(root: Path) -> list[dict[str, np.ndarray]]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    made = bigearthnet_v2_folders(root)
    table = {
        "patch_id": [s2 for s2, _ in V2],
        "labels": list(V2_LABELS),
        "split": list(V2_SPLITS),
        "country": ["Austria", "Serbia"],
        "s1_name": [s1 for _, s1 in V2],
        "contains_seasonal_snow": [False, False],
    }
    parquet.write_table(arrow.table(table), root / "metadata.parquet")
    return made


def so2sat_lcz42(root: Path, file: str = "training.h5", rows: int = 5, **changes: np.ndarray) -> dict[str, np.ndarray]:
    rng = random(20)
    made = {
        "sen1": rng.uniform(0.01, 0.3, (rows, 32, 32, 8)),
        "sen2": rng.uniform(0, 0.4, (rows, 32, 32, 10)),
        "label": np.eye(17)[np.arange(rows) * 3 % 17],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / file, "w") as hdf5:
        for name, data in (made | changes).items():
            hdf5.create_dataset(name, data=data, chunks=True)
    return made


STRIPS = ("20190804111224_20190804111453", "20190822102320_20190822102640")


def square(x: float, y: float, side: float, hole: float = 0) -> dict[str, Any]:
    """A polygon in map coordinates, its corner ``x`` and ``y`` metres right of and below ORIGIN."""

    def ring(x: float, y: float, side: float) -> list[list[float]]:
        left, top = ORIGIN[0] + x, ORIGIN[1] - y
        return [[left, top], [left + side, top], [left + side, top - side], [left, top - side], [left, top]]

    rings = [ring(x, y, side)] + ([ring(x + hole, y + hole, side - 2 * hole)] if hole else [])
    return {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": rings}}


def spacenet6(root: Path) -> list[np.ndarray]:
    """Two tiles of 30 x 26 pixels of half a metre; the second has no building."""
    folder, made = root / "train" / "AOI_11_Rotterdam", []
    buildings = ([square(2, 3, 4), square(8, 8, 4, hole=1)], [])
    for i, strip in enumerate(STRIPS):
        tail = f"{strip}_tile_{8679 + i}"
        sar = random(30 + i).uniform(15, 55, (4, 30, 26)).astype(np.float32)
        sar[:, :, :3] = 0
        made.append(tif(folder / "SAR-Intensity" / f"SN6_Train_AOI_11_Rotterdam_SAR-Intensity_{tail}.tif", sar, 0.5))
        rgb = random(40 + i).integers(1, 255, (3, 30, 26)).astype(np.uint8)
        tif(folder / "PS-RGB" / f"SN6_Train_AOI_11_Rotterdam_PS-RGB_{tail}.tif", rgb, 0.5)
        labels = folder / "geojson_buildings" / f"SN6_Train_AOI_11_Rotterdam_Buildings_{tail}.geojson"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(json.dumps({"type": "FeatureCollection", "features": buildings[i]}))
    (folder / "SummaryData").mkdir()
    (folder / "SummaryData" / "SAR_orientations.txt").write_text(f"{STRIPS[0]} 0\n{STRIPS[1]} 1\n")
    test = root / "test_public" / "AOI_11_Rotterdam" / "SAR-Intensity"
    name = f"SN6_Test_Public_AOI_11_Rotterdam_SAR-Intensity_{STRIPS[0]}_tile_12.tif"
    tif(test / name, random(33).uniform(15, 55, (4, 30, 26)).astype(np.float32), 0.5)
    return made


def dfc2023_track2(root: Path) -> None:
    for split, names in (("train", ("P0001.tif", "P0002.tif")), ("val", ("P0011.tif",))):
        for i, name in enumerate(names):
            tif(root / split / "rgb" / name, random(50 + i).integers(0, 255, (3, 34, 40)).astype(np.uint8), None)
            tif(root / split / "sar" / name, random(60 + i).integers(0, 255, (1, 34, 40)).astype(np.uint8), None)
            tif(root / split / "height" / name, np.zeros((1, 34, 40), np.float32), None)
    images = [{"id": 7 + i, "file_name": f"P000{1 + i}.tif", "height": 34, "width": 40} for i in range(2)]
    boxes = ([2, 3, 9, 3, 9, 8, 2, 8], [20, 10, 29, 10, 29, 30, 20, 30])
    outlines = [
        {"id": i, "image_id": 7, "category_id": 1, "segmentation": [box], "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    told = {"images": images, "annotations": outlines, "categories": [{"id": 1, "name": "building"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "buildings_only_train.json").write_text(json.dumps(told))


def whu_opt_sar(root: Path, folders: Sequence[str] = ("optical", "sar", "lbl"), factor: int = 10) -> np.ndarray:
    labels = np.zeros((1, 37, 55), np.uint8)
    labels[0, :20], labels[0, 20:, :30] = 4 * factor, 1 * factor
    name = "NH49E001013.tif"
    tif(root / folders[0] / name, random(70).integers(0, 255, (4, 37, 55)).astype(np.uint8), 5.0)
    tif(root / folders[1] / name, random(71).integers(1, 255, (1, 37, 55)).astype(np.uint8), 5.0)
    return tif(root / folders[2] / name, labels, 5.0)[0]


def open_earth_map_sar(root: Path) -> np.ndarray:
    labels = np.zeros((1, 33, 33), np.uint8)
    labels[0, 3:20, 5:9], labels[0, 25:] = 8, 6
    name = "TrainArea_001.tif"
    tif(root / "train" / "rgb_images" / name, random(80).integers(0, 255, (3, 33, 33)).astype(np.uint8), 0.5)
    tif(root / "train" / "sar_images" / name, random(81).integers(0, 255, (1, 33, 33)).astype(np.uint8), 0.5)
    tif(root / "val" / "sar_images" / "ValArea_001.tif", np.full((1, 33, 33), 9, np.uint8), 0.5)
    return tif(root / "train" / "labels" / name, labels, 0.5)[0]


def multi_res_sar(root: Path) -> None:
    for i, subset in enumerate(("High-Resolution", "Low-Resolution")):
        picture(root / subset / "L" / "1.png", random(90 + i).integers(0, 255, (31, 45, 3)).astype(np.uint8))
        picture(root / subset / "R" / "1.png", random(95 + i).integers(0, 255, (31, 45)).astype(np.uint8))


def sar_ship(root: Path) -> None:
    folder = root / "ship_dataset_v0"
    picture(folder / "Gao_ship_hh_0201608254404.jpg", random(100).integers(0, 255, (64, 64)).astype(np.uint8))
    (folder / "Gao_ship_hh_0201608254404.txt").write_text("0 0.5 0.25 0.25 0.125\r\n0 0.9 0.9 0.2 0.2\r\n")
    picture(folder / "Sen_ship_vv_1.JPG", random(101).integers(0, 255, (48, 64)).astype(np.uint8))
    (folder / "Sen_ship_vv_1.txt").write_text("")


def fusion_eo(root: Path) -> None:
    images = root / "pair_data" / "train"
    for i, name in enumerate(("000123.png", "brücke.png")):
        picture(images / "rgb" / "img" / name, random(110 + i).integers(0, 255, (40, 52, 3)).astype(np.uint8))
        picture(images / "sar" / "img" / name, random(120 + i).integers(0, 255, (40, 52)).astype(np.uint8))
    river = [{"from": "human", "value": "<image>\nIs there a river in the image?"}, {"from": "gpt", "value": "Yes"}]
    more = [
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "<image>\n"},
        {"from": "human", "value": "What crosses the river?"},
        {"from": "gpt", "value": " Eine Brücke. "},
        {"from": "human", "value": "How many?"},
        {"from": "gpt", "value": "1"},
    ]
    entries = [{"image": "000123.png", "conversations": river}, {"image": "brücke.png", "conversations": more}]
    (root / "final_all.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


LAYOUTS = (
    bigearthnet_v1, bigearthnet_v2, so2sat_lcz42, spacenet6, dfc2023_track2, whu_opt_sar, open_earth_map_sar,
    multi_res_sar, sar_ship, fusion_eo,
)  # fmt: skip
"""What makes each data set; the name is that of its reader."""
