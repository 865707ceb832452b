"""Small data sets of classes, questions and boxes in their published layouts, and what it takes to write such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

LEFT, TOP, RIGHT, BOTTOM = 5, 8, 25, 20  # a box that lies in every image here


def paint(path: Path, height: int, width: int, seed: int = 0, channels: int = 3) -> None:
    """A picture of noise, of the kind that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    if path.suffix.lower() in (".tif", ".tiff"):
        write_tiff(path, np.moveaxis(pixels, -1, 0))
    else:
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
        Image.fromarray(pixels.squeeze()).save(path, kind)


def write_tiff(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = data.shape
    with pytest.warns(NotGeoreferencedWarning):
        dataset = rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=data.dtype)
    with dataset:
        dataset.write(data)


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def write_lines(path: Path, *lines: Any, end: str = "\n") -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(text + end for text in texts).encode())


def block(height: int, width: int) -> np.ndarray:
    """The mask of the box that lies in every image."""
    mask = np.zeros((height, width), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    return mask


def aid(root: Path) -> None:
    paint(root / "Airport/airport_1.jpg", 60, 60, 1)
    paint(root / "Airport/airport_2.JPG", 37, 53, 2)
    paint(root / "BareLand/bareland_1.jpg", 60, 60, 3)
    (root / "Airport/Thumbs.db").write_bytes(b"no picture")
    ask = (
        "Classify the image within one of the given classes: airport, bare land.\nAnswer with one word or short phrase."
    )
    rows = [(folder, f"{folder}/{folder.lower()}_1.tif") for folder in ("Airport", "BareLand")]  # the published ending
    questions = [{"question_id": n, "image": n, "text": ask, "ground_truth": f"{folder}gt"} for folder, n in rows]
    write_lines(root / "aid.jsonl", *questions, end="\r\n")


def uc_merced(root: Path) -> None:
    for i, name in enumerate(("agricultural", "baseballdiamond", "tenniscourt")):
        paint(root / f"Images/{name}/{name}00.tif", 64, 64 - i, i)
    names = ("agricultural/agricultural00.tif", "tenniscourt/tenniscourt00.tif")
    rows = [{"question_id": n, "image": n, "text": "Welche Klasse?", "ground_truth": n.split("/")[0]} for n in names]
    write_lines(root / "UCmerced.jsonl", *rows)


def rsvqa(root: Path, prefix: str, images: str, splits: tuple[str, ...]) -> None:
    for number in (3, 12):
        paint(root / images / f"{number}.tif", 51, 48, number)
    asked = [
        {"id": 0, "img_id": 3, "type": "presence", "question": "Is there a café?", "answers_ids": [0], "active": True},
        {"id": 1, "active": False},
        {
            "id": 2,
            "img_id": 12,
            "type": "comp",
            "question": "More roads than lakes?",
            "answers_ids": [2],
            "active": True,
        },
        {"id": 5, "img_id": 12, "type": "area", "question": "What is the area?", "answers_ids": [5], "active": True},
    ]
    told = [
        {"id": 2, "question_id": 2, "answer": "yes", "active": True},
        {"id": 0, "question_id": 0, "answer": "no", "active": True},
        {"id": 1, "active": False},
        {"id": 5, "question_id": 5, "answer": "0m2", "active": True},
    ]
    for split in splits:
        write_json(root / f"{prefix}_split_{split}_questions.json", {"info": {"v": [1]}, "questions": asked})
        write_json(root / f"{prefix}_split_{split}_answers.json", {"answers": told})


def rsvqa_hrben(root: Path) -> None:
    rsvqa(root, "USGS", "Data", ("train", "test_phili"))
    suffix = "\nAnswer the question using a single word or phrase."
    row = {"question_id": 2, "image": "12.tif", "category": "comp", "text": "More roads than lakes?" + suffix}
    write_lines(root / "hrben.jsonl", row, row | {"question_id": 0, "image": "3.tif"})


def rsvqa_lr(root: Path) -> None:
    rsvqa(root, "LR", "Images_LR", ("train", "val", "test"))
    write_lines(root / "lrben.jsonl", {"question_id": 2, "image": "12.tif", "category": "comp", "text": "More roads?"})


def vrsbench(root: Path) -> None:
    paint(root / "Images_train/Images_train/P0000_0001.png", 64, 64, 1)
    paint(root / "Images_val/P0003_0002.PNG", 50, 40, 2)

    def talk(question: str, answer: str) -> dict[str, Any]:
        says = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        return {"id": "Final_Data/v1.2", "image": "P0000_0001.png", "conversations": says}

    write_json(
        root / "VRSBench_train.json",
        [
            talk("[caption] Could you describe the contents of this image for me?", "An aerial view of São Paulo."),
            talk("[refer] could you tell me the location for <p>the ship</p>?", "{<10><20><30><40>}"),
            talk("[vqa] How many ships? A short answer to the question is", "2"),
        ],
    )
    common = {"image_id": "P0003_0002.png", "dataset": "RSBench", "question_id": 0}
    asked = {"vqa": "How many?", "Cap": "Describe the image in detail", "referring": "The ship at the left"}
    truth = {"vqa": 4, "Cap": "A harbour.", "referring": "{<25><40><75><100>}"}
    for name, question in asked.items():
        entry = common | {"question": question, "ground_truth": truth[name], "type": name}
        write_json(root / f"VRSBench_EVAL_{name}.json", [entry, entry | {"question_id": 1}])
    corner = [0.25, 0.2, 0.75, 0.2, 0.75, 0.6, 0.25, 0.6]
    thing = {"obj_cls": "ship", "referring_sentence": "The ship", "obj_corner": corner, "is_unique": True}
    write_json(root / "Annotations_val/P0003_0002.json", {"image": "P0003_0002.png", "objects": [thing, thing]})
    write_json(root / "Annotations_val/P0009_0000.json", {"image": "P0009_0000.png", "objects": []})


XML = """<?xml version="1.0" encoding="utf-8"?>
<annotation><filename>{image}</filename><size><width>70</width><height>50</height><depth>3</depth></size>{objects}
</annotation>
"""
OBJECT = """<object><name>ship</name><pose>Unspecified</pose>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
<description>{4}</description></object>"""


def dior_rsvg(root: Path) -> None:
    things = {
        "00002": [(LEFT, TOP, RIGHT, BOTTOM, "the Öltank &amp; its pier"), (0, 0, 70, 50, "the port")],
        "00011": [(30, 10, 60, 40, "a bridge")],
        "00012": [(1, 2, 10, 20, "a dam")],
    }
    for stem, found in things.items():
        paint(root / f"JPEGImages/{stem}.{'JPG' if stem == '00011' else 'jpg'}", 50, 70, int(stem))
        objects = "\r\n".join(OBJECT.format(*one) for one in found)
        path = root / f"Annotations/{stem}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(XML.format(image=f"{stem}.jpg", objects=objects), encoding="utf-8")
    write_lines(root / "train.txt", "0", "2", end="\r\n")
    write_lines(root / "val.txt", "3")
    write_lines(root / "test.txt", "1")
