"""Broken copies of multi-band and SAR data sets: a named line or one sentence, whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
import support

from earthmind_jax.config import DataConfig
from earthmind_jax.data import datasets
from earthmind_jax.data.check import check_records
from earthmind_jax.data.datasets import bigearthnet_v2
from earthmind_jax.errors import UserError

DATA = DataConfig(batch_size=2, text_length=2048)
V1 = f"BigEarthNet-v1.0/{layouts.V1[0][0]}/{layouts.V1[0][0]}"
V1_SAR = f"BigEarthNet-S1-v1.0/{layouts.V1[0][1]}/{layouts.V1[0][1]}"
SN6 = "train/AOI_11_Rotterdam"
SN6_TILE = f"SN6_Train_AOI_11_Rotterdam_Buildings_{layouts.STRIPS[0]}_tile_8679.geojson"
SHIP = "ship_dataset_v0/Gao_ship_hh_0201608254404"
COCO = "annotations/buildings_only_train.json"

Change = Callable[[Path], object]


def delete(name: str) -> Change:
    return lambda root: (root / name).unlink()


def cut(name: str, share: float = 0.4) -> Change:
    return lambda root: (root / name).write_bytes((data := (root / name).read_bytes())[: int(len(data) * share)])


def text(name: str, content: str) -> Change:
    return lambda root: (root / name).write_text(content)


def edited(name: str, change: Callable) -> Change:
    """A JSON file after ``change`` of its content."""

    def apply(root: Path) -> None:
        told = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps(change(told) or told))

    return apply


def coco(**changes: object) -> Change:
    return edited(COCO, lambda told: told["annotations"][0].update(changes))


BROKEN_LINES = (
    (layouts.bigearthnet_v1, delete(f"{V1}_B03.tif"), "field 'optical': there is no file"),
    (layouts.bigearthnet_v1, delete(f"{V1}_B01.tif"), "_B01.tif"),  # a band that this model does not use
    (layouts.bigearthnet_v1, text(f"{V1}_B09.tif", ""), "_B09.tif' is empty (0 bytes)"),
    (layouts.bigearthnet_v1, cut(f"{V1}_B04.tif", 0.05), "_B04.tif cannot be opened as a raster"),
    (layouts.bigearthnet_v1, delete(f"{V1}_labels_metadata.json"), "_labels_metadata.json' cannot be read"),
    (layouts.bigearthnet_v1, cut(f"{V1}_labels_metadata.json"), "_labels_metadata.json' is not JSON"),
    (layouts.bigearthnet_v1, text(f"{V1}_labels_metadata.json", "[]"), "has no list of 'labels'"),
    (
        layouts.bigearthnet_v1,
        text(f"{V1}_labels_metadata.json", '{"labels": ["Pasture"]}'),
        "no label 'Pasture' in its nomenclature. Did you mean 'Pastures'",
    ),
    (layouts.bigearthnet_v1, text(f"{V1}_labels_metadata.json", '{"labels": [[3]]}'), "no label [3]"),
    (layouts.bigearthnet_v1, text("train.csv", "S2A_not_there,S1A_not_there\n"), "train.csv line 1"),
    (
        layouts.bigearthnet_v1,
        lambda root: layouts.tif(root / f"{V1_SAR}_VV.tif", np.ones((2, 24, 24), np.float32)),
        "_VV.tif has 2 channels, but the file of a band has one",
    ),
    (layouts.so2sat_lcz42, lambda root: layouts.so2sat_lcz42(root, label=np.zeros((5, 17))), "must have a single 1"),
    (layouts.so2sat_lcz42, lambda root: layouts.so2sat_lcz42(root, label=np.full((5, 17), 1 / 17)), "single 1"),
    (layouts.spacenet6, delete(f"{SN6}/geojson_buildings/{SN6_TILE}"), f"{SN6_TILE}' cannot be read"),
    (layouts.spacenet6, text(f"{SN6}/geojson_buildings/{SN6_TILE}", "{"), f"{SN6_TILE}' is not JSON"),
    (
        layouts.spacenet6,
        delete(f"{SN6}/SAR-Intensity/{SN6_TILE.replace('Buildings', 'SAR-Intensity').replace('geojson', 'tif')}"),
        f"{SN6_TILE}: there is no SAR tile",
    ),
    (layouts.spacenet6, text(f"{SN6}/geojson_buildings/{SN6_TILE}", "[1]"), "no GeoJSON collection"),
    (
        layouts.spacenet6,
        edited(f"{SN6}/geojson_buildings/{SN6_TILE}", lambda t: {"features": [{"geometry": {"type": "Blob"}}]}),
        "geometry that is no polygon",
    ),
    (
        layouts.spacenet6,
        edited(f"{SN6}/geojson_buildings/{SN6_TILE}", lambda t: t["features"][0]["geometry"].update(coordinates=None)),
        "geometry that is no polygon",
    ),
    (
        layouts.spacenet6,
        edited(f"{SN6}/geojson_buildings/{SN6_TILE}", lambda t: {"features": [layouts.square(9000, 9000, 3)]}),
        "has 1 buildings, but none lies on",
    ),
    (layouts.spacenet6, text(f"{SN6}/SummaryData/SAR_orientations.txt", f"{layouts.STRIPS[1]} 1\n"), "its strip"),
    (
        layouts.spacenet6,
        lambda root: next((root / SN6 / "SAR-Intensity").iterdir()).rename(root / SN6 / "SAR-Intensity" / "x.tif"),
        "the name is not SN6_",
    ),
    (layouts.dfc2023_track2, delete("train/sar/P0001.tif"), "train/sar/P0001.tif'."),
    (layouts.dfc2023_track2, coco(segmentation=[[1, 2, 3]]), "a polygon must be at least three points"),
    (layouts.dfc2023_track2, coco(segmentation=None), "the annotation has an empty segmentation"),
    (layouts.dfc2023_track2, coco(segmentation=[]), "the annotation has an empty segmentation"),
    (layouts.dfc2023_track2, coco(segmentation=[[90, 90, 99, 90, 99, 99]]), "a polygon lies outside the image"),
    (layouts.dfc2023_track2, coco(segmentation={"size": [3, 3], "counts": [9]}), "the image is [34, 40]"),
    (layouts.dfc2023_track2, coco(segmentation={"size": [34, 40], "counts": [8]}), "the runs cover 8 pixels"),
    (layouts.dfc2023_track2, coco(category_id=2), "the category 2 is none of the file's categories"),
    (layouts.dfc2023_track2, coco(image_id=99), "it has annotations of the image 99, but no such image"),
    (
        layouts.dfc2023_track2,
        edited(COCO, lambda told: told["images"][0].pop("height") and None),
        "train/rgb/P0001.tif' is 34 x 40 but the annotation says None x 40",
    ),
    (
        layouts.dfc2023_track2,
        edited(COCO, lambda told: told["images"][0].update(file_name="../../secret.tif")),
        "leads out of the data set",
    ),
    (layouts.dfc2023_track2, edited(COCO, lambda told: told["images"][1].update(file_name="P0001.tif")), "given twice"),
    (layouts.bigearthnet_v1, text("train.csv", "S2A\0,S1A\n"), "train.csv line 1: 'S2A\\x00' is no name of a patch"),
    (layouts.bigearthnet_v1, text("train.csv", "../../../etc,S1A\n"), "'../../../etc' is no name of a patch"),
    (
        layouts.whu_opt_sar,
        lambda root: layouts.tif(root / "lbl/NH49E001013.tif", np.full((1, 37, 55), 45, np.uint8)),
        "has the label 45; the labels are 0, 10, 20",
    ),
    (
        layouts.whu_opt_sar,
        lambda root: layouts.tif(root / "optical/NH49E001013.tif", np.ones((3, 37, 55), np.uint8)),
        "has 3 channels but 'bands' names 4",
    ),
    (layouts.whu_opt_sar, cut("lbl/NH49E001013.tif", 0.3), "NH49E001013.tif"),
    (
        layouts.open_earth_map_sar,
        lambda root: (root / "train/labels/TrainArea_001.tif").rename(root / "train/labels/TrainArea_002.tif"),
        "TrainArea_001.tif does not exist",
    ),
    (
        layouts.open_earth_map_sar,
        lambda root: layouts.tif(root / "train/labels/TrainArea_001.tif", np.ones((1, 33, 33), np.float32)),
        "is no map of labels",
    ),
    (
        layouts.open_earth_map_sar,
        lambda root: layouts.tif(root / "train/labels/TrainArea_001.tif", np.ones((1, 33, 70), np.uint8)),
        "TrainArea_001.tif' is 33 x 70 but its image",
    ),
    (
        layouts.whu_opt_sar,
        lambda root: layouts.tif(root / "lbl/NH49E001013.tif", np.zeros((1, 74, 110), np.uint8)),
        "NH49E001013.tif' is 74 x 110 but its image 37 x 55",
    ),
    (layouts.multi_res_sar, delete("High-Resolution/L/1.png"), "there is no optical image '1'"),
    (layouts.multi_res_sar, delete("High-Resolution/R/1.png"), "there is no SAR image '1'"),
    (layouts.multi_res_sar, cut("High-Resolution/R/1.png"), "1.png"),
    (layouts.sar_ship, delete(f"{SHIP}.txt"), "cannot be read as text"),
    (layouts.sar_ship, text(f"{SHIP}.txt", "0 0.5 0.5 0.1\n"), "line 1 of its boxes must be"),
    (layouts.sar_ship, text(f"{SHIP}.txt", "0 0.5 0.5 0.1 a\n"), "line 1 of its boxes must be"),
    (layouts.sar_ship, text(f"{SHIP}.txt", "0 0.5 0.5 nan 0.1\n"), "lies outside of the image"),
    (layouts.sar_ship, text(f"{SHIP}.txt", "0 0.5 0.5 0.1 0.1\n0 128 64 20 20\n"), "line 2 of its boxes"),
    (layouts.sar_ship, text(f"{SHIP}.txt", "3 0.5 0.5 0.1 0.1\n"), "the class 3; the only one is 0"),
    (layouts.sar_ship, text("ship_dataset_v0/a.txt", "0 0.5 0.5 0.1 0.1\n"), "a.txt: there is no chip"),
    (layouts.sar_ship, text(f"{SHIP}.jpg", "no picture"), "cannot be read as a picture"),
    (layouts.fusion_eo, edited("final_all.json", lambda told: [{"image": "../x.png"}]), "leads out of the data set"),
    (layouts.fusion_eo, edited("final_all.json", lambda told: [3]), "the entry must be an object, not 3"),
    (
        layouts.fusion_eo,
        edited("final_all.json", lambda told: told[0]["conversations"].clear()),
        "must be a list of messages, not []",
    ),
    (
        layouts.fusion_eo,
        edited("final_all.json", lambda told: told[0]["conversations"][0].update({"from": "robot"})),
        "conversations[0] must be from 'human' or 'gpt'",
    ),
    (layouts.fusion_eo, delete("pair_data/train/sar/img/000123.png"), "there is no file"),
)


@pytest.mark.parametrize(("make", "change", "message"), BROKEN_LINES)
def test_a_broken_entry_is_a_named_line(tmp_path, make, change, message):
    make(tmp_path)
    change(tmp_path)
    report = check_records(tmp_path, support.model(), DATA, dataset=make.__name__, pixels=True)
    assert report.broken > 0
    assert message in report.problems[0]
    assert str(tmp_path) in report.problems[0]
    assert "\n" not in report.problems[0]


WHOLE = (
    (layouts.bigearthnet_v1, delete("train.csv"), "no train.csv, the list of the split train; --split all"),
    (layouts.bigearthnet_v1, lambda root: (root / "train.csv").write_bytes(b"\xff\xfe\x00x"), "list of patches"),
    (layouts.so2sat_lcz42, cut("training.h5"), "training.h5' cannot be opened as HDF5"),
    (layouts.so2sat_lcz42, text("training.h5", "none"), "training.h5' cannot be opened as HDF5"),
    (
        layouts.so2sat_lcz42,
        lambda root: layouts.so2sat_lcz42(root, sen2=np.zeros((5, 32, 32, 13))),
        "array 'sen2' is [5, 32, 32, 13]; So2Sat LCZ42 has [rows, any, any, 10]",
    ),
    (
        layouts.so2sat_lcz42,
        lambda root: layouts.so2sat_lcz42(root, sen1=np.zeros((4, 32, 32, 8))),
        "arrays of different lengths: sen1 4, sen2 5, label 5",
    ),
    (layouts.spacenet6, text(f"{SN6}/SummaryData/SAR_orientations.txt", "a b c"), "SAR_orientations.txt' line 1"),
    (layouts.dfc2023_track2, delete(COCO), "buildings_only_train.json' cannot be read"),
    (layouts.dfc2023_track2, cut(COCO), "buildings_only_train.json' is not JSON"),
    (layouts.dfc2023_track2, text(COCO, "[]"), "must be a JSON object with the list 'annotations'"),
    (
        layouts.dfc2023_track2,
        edited(COCO, lambda t: t["annotations"][0].pop("image_id") and None),
        "without 'image_id'",
    ),
    (layouts.fusion_eo, text("final_all.json", "{}"), "must be a list of entries"),
    (layouts.fusion_eo, text("final_all.json", "[" * 100000), "final_all.json' is not JSON"),
    (layouts.fusion_eo, delete("final_all.json"), "has no final_all.json"),
)


@pytest.mark.parametrize(("make", "change", "message"), WHOLE)
def test_a_data_set_that_cannot_be_read_is_one_sentence(tmp_path, make, change, message):
    make(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        list(datasets.read(tmp_path, make.__name__))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [make.__name__ for make in layouts.LAYOUTS])
def test_an_empty_directory(tmp_path, name):
    with pytest.raises(UserError, match="has the layout of none of"):
        datasets.recognise(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        list(datasets.read(tmp_path, name))
    with pytest.raises(UserError, match="There is no directory"):
        datasets.read(tmp_path / "nowhere", name)


def test_a_table_that_is_broken(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    layouts.bigearthnet_v2(tmp_path)
    path = tmp_path / bigearthnet_v2.TABLE
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"PAR1", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a parquet table"):
            list(datasets.read(tmp_path))
    parquet.write_table(arrow.table({"patch_id": ["a"], "labels": [["b"]], "s1_name": ["c"]}), path)
    with pytest.raises(UserError, match="has no column 'split'; it has patch_id, labels, s1_name"):
        list(datasets.read(tmp_path))
    row = {"patch_id": ["a"] * 2, "labels": [["Bare rock"]] * 2, "s1_name": ["b", None], "split": ["train"] * 2}
    parquet.write_table(arrow.table(row), path)
    line, unpaired = datasets.read(tmp_path)
    assert unpaired.problems[0].startswith(": column 's1_name': None is no name of a patch")
    assert line.problems[0].startswith(": there is no label 'Bare rock' in its nomenclature.")
    row = {"patch_id": ["a"], "labels": [None], "s1_name": ["b"], "split": ["train"]}
    parquet.write_table(arrow.table(row), path)
    (line,) = datasets.read(tmp_path)
    assert line.problems[0] == ": column 'labels' must be a list of names, not None."
    path.unlink()
    with pytest.raises(UserError, match=r"There is no '.*metadata.parquet', the table of BigEarthNet v2"):
        list(datasets.read(tmp_path))


def test_a_table_without_the_library(tmp_path, monkeypatch):
    layouts.bigearthnet_v2_folders(tmp_path)
    (tmp_path / bigearthnet_v2.TABLE).write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert datasets.recognise(tmp_path) == "bigearthnet_v2"
    with pytest.raises(UserError, match=r"needs pyarrow to be read; install it: pip install 'earthmind-jax\[data\]'"):
        list(datasets.read(tmp_path))
