"""Broken entries of the sets of classes, questions and boxes: each is a line that says what is wrong."""

from __future__ import annotations

import pytest
from breaking import check_line, cutting, removing, replacing, setting, writing

VQA, CAPTIONS = "VRSBench_EVAL_vqa.json", "VRSBench_EVAL_Cap.json"
REFERRING, TRAIN = "VRSBench_EVAL_referring.json", "VRSBench_train.json"
OBJECTS = "Annotations_val/P0003_0002.json"
DIOR = "Annotations/00002.xml"

CASES = {
    "missing image": ("aid", "geochat", removing("Airport/airport_1.jpg"), r"line 1: there is no file '.*airport_1"),
    "unknown class": (
        "aid",
        "all",
        lambda r: (r / "Airport").rename(r / "Airprot"),
        r"Airprot: .*none of the classes. Did you mean 'Airport'",
    ),
    "empty class": ("uc_merced", "all", removing("Images/tenniscourt/tenniscourt00.tif"), r"tenniscourt: .*no picture"),
    "unknown class in a question": (
        "uc_merced",
        "geochat",
        replacing("UCmerced.jsonl", '"question_id": "agri', '"question_id": "acri'),
        r"line 1: 'acricultural' is none",
    ),
    "broken line of JSON": (
        "aid",
        "geochat",
        replacing("aid.jsonl", '"Airport/', "Airport/"),
        r"aid.jsonl line 1: is not JSON",
    ),
    "same id twice": (
        "vrsbench",
        "vqa",
        setting(VQA, 1, "question_id", to=0),
        r"entry 2: the id 'vqa/0' is given twice",
    ),
    "path out of the data set": (
        "vrsbench",
        "caption",
        setting(CAPTIONS, 0, "image_id", to="../../secret.png"),
        r"entry 1: .*leads out",
    ),
    "image that is no text": (
        "vrsbench",
        "train",
        setting(TRAIN, 0, "image", to=["a"]),
        r"entry 1: field 'image' must be text",
    ),
    "box in words outside": (
        "vrsbench",
        "referring",
        setting(REFERRING, 0, "ground_truth", to="{<10><20><110><40>}"),
        r"entry 1: the box .*does not lie in the image",
    ),
    "box in words inverted": (
        "vrsbench",
        "train",
        setting(TRAIN, 1, "conversations", 1, "value", to="{<50><20><10><40>}"),
        r"entry 2: the box .*inverted",
    ),
    "box in words missing": (
        "vrsbench",
        "referring",
        setting(REFERRING, 1, "ground_truth", to="left"),
        r"entry 2: field 'ground_truth' must be a box",
    ),
    "corners of a box": (
        "vrsbench",
        "val_boxes",
        setting(OBJECTS, "objects", 0, "obj_corner", to=[0.1, 0.2]),
        r"P0003_0002.json: field 'obj_corner' must be 8 numbers",
    ),
    "annotation that is cut": ("vrsbench", "val_boxes", cutting(OBJECTS), r"P0003_0002.json: .*is not JSON"),
    "annotation without objects": ("vrsbench", "val_boxes", writing(OBJECTS, b"{}"), r"P0003_0002.json: field 'image'"),
    "question without an answer": (
        "rsvqa_lr",
        "train",
        setting("LR_split_train_answers.json", "answers", 0, "active", to=False),
        r"question 2: there is no answer",
    ),
    "question that is no object": (
        "rsvqa_lr",
        "train",
        setting("LR_split_train_questions.json", "questions", 0, to=7),
        r"entry 1: the entry must be an object",
    ),
    "question of a benchmark without an answer": (
        "rsvqa_hrben",
        "hrben",
        setting("USGS_split_test_phili_answers.json", "answers", 0, "active", to=False),
        r"line 1: there is no answer",
    ),
    "line of a benchmark that is no JSON": (
        "rsvqa_lr",
        "lrben",
        cutting("lrben.jsonl"),
        r"line 1: is not JSON",
    ),
    "same question twice": (
        "rsvqa_hrben",
        "train",
        setting("USGS_split_train_questions.json", "questions", 3, "id", to=0),
        r"question 0: ",
    ),
    "image number that is none": (
        "rsvqa_hrben",
        "train",
        setting("USGS_split_train_questions.json", "questions", 0, "img_id", to="../3"),
        r"question 0: field 'img_id'",
    ),
    "box outside": (
        "dior_rsvg",
        "train",
        replacing(DIOR, "<xmax>25<", "<xmax>71<"),
        r"00002.xml object 0: the box .*image of 50 x 70",
    ),
    "boxes of an image of another size": (
        "dior_rsvg",
        "train",
        replacing(DIOR, "<width>70<", "<width>140<"),
        r"object 0: .*00002.jpg' is 50 x 70 but the annotation says 50.0 x 140.0",
    ),
    "box inverted": ("dior_rsvg", "train", replacing(DIOR, "<ymax>20<", "<ymax>3<"), r"object 0: the box .*inverted"),
    "box that is no number": (
        "dior_rsvg",
        "train",
        replacing(DIOR, "<ymax>20<", "<ymax>nan<"),
        r"object 0: a box must be 4 numbers",
    ),
    "file in the middle missing": (
        "dior_rsvg",
        "test",
        removing("Annotations/00012.xml"),
        r"Annotations: it has 3 objects, but the lists name them up to 3",
    ),
    "expression that is missing": (
        "dior_rsvg",
        "train",
        replacing(DIOR, "the Öltank &amp; its pier", " "),
        r"object 0: there is no text in <description>",
    ),
    "number beyond the objects": (
        "dior_rsvg",
        "val",
        writing("val.txt", b"3\n99\n"),
        r"val.txt: it names 1 objects, such as 99",
    ),
    "image of the expression missing": (
        "dior_rsvg",
        "train",
        removing("JPEGImages/00011.JPG"),
        r"object 2: there is no file",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_entry_is_a_line_that_says_so(build, case):
    name, split, change, wanted = CASES[case]
    check_line(build(name), name, split, change, wanted)
