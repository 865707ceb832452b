"""Small data sets of masks, regions and pairs in their published layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from text_sets import BOTTOM, LEFT, RIGHT, TOP, block, paint, write_json, write_lines, write_tiff

from earthmind_jax.data.masks import encode_rle


def refer(home: Path, images: list[Path], *, name: str = "instances.json", form: str = "mixed") -> None:
    """Expressions over pictures of 40 x 60 and 33 x 50 pixels, each the block; the second has two sentences."""
    sizes = [(40, 60), (33, 50)]
    outline = [LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM]
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
    outline = [[LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM]]
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
    write_json(root / "data/json/detection/total.json", [])
    write_json(root / "data/json/caption/UCM.json", [entry("caption/UCM/1.tif", "Décris la scène.", "A field.")])
    asked = "What is in [0.25,0.5,0.5,1.0]?"
    write_json(
        root / "data/json/RSVG/region.json",
        [entry("data/caption/UCM/1.tif", asked, "a field"), entry(None, "What is radar?", "A sensor.")],
    )
