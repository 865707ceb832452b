"""Small data sets in their published layouts, written when a test asks for one: ``build(name)``."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from earthmind_jax.data.masks import encode_rle

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
    write_lines(root / "hrben.jsonl", row)


def rsvqa_lr(root: Path) -> None:
    rsvqa(root, "LR", "Images_LR", ("train", "val", "test"))


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


def refer(home: Path, images: list[Path], *, name: str = "instances.json", form: str = "mixed") -> None:
    """Expressions over pictures of 40 x 60 and 33 x 50 pixels, each the block; the second has two sentences."""
    sizes = [(40, 60), (33, 50)]
    outline = [LEFT, TOP, RIGHT - 1, TOP, RIGHT - 1, BOTTOM - 1, LEFT, BOTTOM - 1]
    shapes = [[outline], encode_rle(block(*sizes[1])) if form == "mixed" else [outline]]
    instances: dict[str, Any] = {
        "info": {"description": "made for a test"},
        "images": [
            {"id": i, "file_name": p.name, "height": h, "width": w}
            for i, (p, (h, w)) in enumerate(zip(images, sizes, strict=True))
        ],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": i,
                "category_id": 1,
                "segmentation": shapes[i],
                "bbox": [LEFT, TOP, 20, 12],
                "area": 240,
            }
            for i in (1, 0)
        ],
        "categories": [{"id": 1, "name": "ship"}],
    }
    for i, path in enumerate(images):
        paint(path, *sizes[i], seed=i)
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / name, instances)
    said = [["A red ship on the left."], ["The pier", "das Schiff im Süden"]]
    refs = [
        {
            "ref_id": 7 + i,
            "ann_id": 100 + i,
            "image_id": i,
            "category_id": 1,
            "split": "train",
            "file_name": images[i].name,
            "sentences": [
                {"sent_id": 10 * i + k, "sent": s, "raw": s, "tokens": s.split()} for k, s in enumerate(says)
            ],
        }
        for i, says in enumerate(said)
    ]
    refs += [ref | {"ref_id": 20 + ref["ref_id"], "split": "test"} for ref in refs]
    (home / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def rrsis_d(root: Path) -> None:
    place = root / "images/rrsisd/JPEGImages"
    refer(root / "rrsisd", [place / "00001.jpg", place / "00002.jpg"])


def phrases(root: Path, images: str, masks: str, ending: str, named: str) -> None:
    for number, (height, width) in ((1361, (40, 60)), (7, (35, 33))):
        paint(root / images / f"{number}{ending}", height, width, number)
        mask = block(height, width).astype(np.uint8) * 255
        if ending == ".tif":
            write_tiff(root / masks / f"{number}.tif", mask[None])
        else:
            (root / masks).mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / masks / f"{number}{ending}")
    rows = [f"1361{named} paved road", f"7{named} vehicle parked near the Straße", "", f"1361{named} car"]
    write_lines(root / "output_phrase_train.txt", *rows, end="\r\n")
    write_lines(root / "output_phrase_val.txt", rows[0])
    write_lines(root / "output_phrase_test.txt", rows[1])


def ref_seg_rs(root: Path) -> None:
    phrases(root, "images", "masks", ".tif", "")


def risbench(root: Path) -> None:
    phrases(root, "img_rgb", "mask", ".png", ".png")


def talks(*names: str | None) -> list[dict[str, Any]]:
    made = []
    for name in names:
        says = [
            {"from": "gpt", "value": "an answer before any question"},
            {"from": "human", "value": "<image>\nIst hier ein Fluß?" if name else "What is SAR?"},
            {"from": "gpt", "value": "Yes"},
            {"from": "human", "value": "Where?"},
            {"from": "gpt", "value": "In the north."},
        ]
        made.append({"conversations": says} | ({"image": name} if name else {}))
    return made


def earthmind_data(root: Path) -> None:
    for name in ("rrsisd", "refsegrs"):
        home = root / "Refer_Segm" / name
        refer(home, [home / "images/00001.jpg", home / "images/00002.jpg"])
    refer(home, [home / "images/00001.jpg", home / "images/00002.jpg"], name="instances_new.json", form="polygons")
    write_json(root / "earthgptvqa/annotations/train.json", talks("a/b.jpg", None))
    paint(root / "earthgptvqa/images/a/b.jpg", 30, 47)
    write_json(root / "multi-spectrum/ms_train.json", talks("S2A_x/patch.png"))
    for number in (1, 2, 10):
        paint(root / f"multi-spectrum/rgb_images/S2A_x/patch/rgb_{number}.png", 24, 24, number)
    outline = [[LEFT, TOP, RIGHT - 1, TOP, RIGHT - 1, BOTTOM - 1, LEFT, BOTTOM - 1]]
    region = {"file_name": "00001.jpg", "height": 40, "width": 60}
    marks = [{"segmentation": outline}, {"segmentation": encode_rle(block(40, 60))}]
    says = [{"from": "human", "value": "What is region1?"}, {"from": "gpt", "value": "A <ship>."}]
    regions = [
        region | {"annotation": marks, "description": ["the <first> ship", "ein zweites Schiff größer"]},
        region | {"annotation": marks[:1], "conversations": says},
    ]
    write_json(root / "region_caption/rsvg_train.json", regions)
    paint(root / "region_caption/rsvg/images/00001.jpg", 40, 60)
    coco = {"images": [region | {"id": 4, "caption": "a dam"}], "annotations": [marks[0] | {"id": 4, "image_id": 4}]}
    write_json(root / "region_caption/rsvg_test.json", coco)
    pairs = root / "Refer_Segm/sarnew"
    refer(pairs, [pairs / "rgb/1.jpg", pairs / "rgb/2.jpg"])
    paint(pairs / "sar/1.png", 40, 60, channels=1)
    paint(pairs / "sar/2.png", 33, 50, channels=1)


def pairs(root: Path) -> None:
    """The part of EarthMind-data that is published as a set of its own, too."""
    write_json(root / "pair_data/train/final_all.json", talks("000123.png"))
    paint(root / "pair_data/train/rgb/img/000123.png", 32, 45)
    paint(root / "pair_data/train/sar/img/000123.png", 32, 45, channels=1)


def earthmind_bench(root: Path) -> None:
    for name in ("k1", "k2"):
        paint(root / f"test/rgb/img/{name}.png", 41, 35)
        paint(root / f"test/sar/img/{name}.png", 41, 35, channels=1)
    options = ["A. Hafen", "B. Wüste größer"]
    choice = {"question": "Which?", "candidate": options, "answer": options[1], "task_type": "x"}
    for task in (
        "hallucination_detection_all",
        "object_counting_all",
        "object_existence_all",
        "scene_classification",
        "spatial_relationship_all",
    ):
        write_json(root / f"json/{task}_unmatched.json", [choice | {"file_name": f"{n}.json"} for n in ("k1", "k2")])
    for task in ("caption_all", "disaster_all", "Navigation_all", "urban_all"):
        write_json(
            root / f"json/{task}_unmatched.json", [{"file_name": "k1.json", "question": "Describe.", "answer": task}]
        )
    pairs = root / "Refer_Segm/sarnew"
    refer(pairs, [pairs / "rgb/1.png", pairs / "rgb/2.png"])
    paint(pairs / "sar/1.png", 40, 60, channels=1)
    paint(pairs / "sar/2.png", 33, 50, channels=1)


def mmrs_1m(root: Path) -> None:
    def entry(image: str | None, question: str, answer: str) -> dict[str, Any]:
        says = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"image": image, "conversations": says}

    paint(root / "data/detection/HRSID/P1.jpg", 40, 80)  # padded by 20 rows above and below
    paint(root / "data/caption/UCM/1.tif", 60, 30)  # padded by 15 columns left and right
    ships = "There are <p>two ships</p>[0.25,0.5,0.5,0.75;0.5,0.25,1.0,0.75] and <p>a pier</p>[0.0,0.25,0.25,0.5]."
    write_json(root / "data/json/detection/HRSID.json", [entry("data/detection/HRSID/P1.jpg", "Detect all.", ships)])
    write_json(root / "data/json/caption/UCM.json", [entry("caption/UCM/1.tif", "Décris la scène.", "A field.")])
    asked = "What is in [0.25,0.5,0.5,1.0]?"
    write_json(
        root / "data/json/RSVG/region.json",
        [entry("data/caption/UCM/1.tif", asked, "a field"), entry(None, "What is radar?", "A sensor.")],
    )


BUILDERS = {
    f.__name__: f
    for f in (
        aid, dior_rsvg, earthmind_bench, earthmind_data, mmrs_1m, ref_seg_rs, risbench, rrsis_d, rsvqa_hrben, rsvqa_lr,
        uc_merced, vrsbench,
    )
}  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Writes the data set of a name, and ``more`` into it, and gives its directory."""

    def made(name: str, *more: Callable[[Path], None]) -> Path:
        root = tmp_path / name
        root.mkdir()
        for write in (BUILDERS[name], *more):
            write(root)
        return root

    return made


@pytest.fixture
def write_pairs() -> Callable[[Path], None]:
    return pairs
