"""Broken entries of the sets of masks, regions and conversations: each is a line that says what is wrong."""

from __future__ import annotations

import pytest
from breaking import check_line, editing, removing, setting, writing
from PIL import Image

INSTANCES, REFS = "rrsisd/instances.json", "rrsisd/refs(unc).p"
OSPREY, TALKS = "region_caption/rsvg_train.json", "earthgptvqa/annotations/train.json"
DETECTION = "data/json/detection/HRSID.json"
COUNTING = "json/object_counting_all_unmatched.json"

CASES = {
    "mask of another size": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 0, "segmentation", "size", to=[33, 51]),
        r"ref 8: the run-length code is \[33, 51\] but the image is \[33, 50\]",
    ),
    "image of another size": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "images", 0, "width", to=800),
        r"ref 7: .*is 40 x 60 but the annotation says 40 x 800",
    ),
    "empty mask": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "segmentation", to=[]),
        r"ref 7: the annotation has an empty segmentation",
    ),
    "mask of text": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "segmentation", to="abc"),
        r"ref 7: the segmentation must be polygons or run-length codes",
    ),
    "polygon outside": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "segmentation", to=[[70, 1, 80, 1, 80, 9]]),
        r"ref 7: a polygon lies outside",
    ),
    "polygon of two points": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "segmentation", to=[[1, 1, 2, 2]]),
        r"ref 7: a polygon must be at least three points",
    ),
    "unknown category": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "category_id", to=9),
        r"ref 7: the category 9 is none",
    ),
    "annotation twice": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "id", to=101),
        r"annotation 2: the id 101 is given twice",
    ),
    "annotation that is missing": (
        "rrsis_d",
        "train",
        editing(REFS, lambda refs: refs[0].update(ann_id=5)),
        r"ref 7: there is no annotation 5",
    ),
    "image that is missing": (
        "rrsis_d",
        "train",
        setting(INSTANCES, "annotations", 1, "image_id", to=12),
        r"ref 7: there is no image 12",
    ),
    "expression twice": (
        "rrsis_d",
        "train",
        editing(REFS, lambda refs: refs[1].update(ref_id=7)),
        r"entry 2: the ref_id 7 is given twice",
    ),
    "expression without sentences": (
        "rrsis_d",
        "train",
        editing(REFS, lambda refs: refs[0].update(sentences=[])),
        r"ref 7: field 'sentences'",
    ),
    "expression that is no object": (
        "rrsis_d",
        "train",
        editing(REFS, lambda refs: [3, *refs]),
        r"entry 1: the entry must be an object, not 3",
    ),
    "name without words": (
        "ref_seg_rs",
        "train",
        writing("output_phrase_train.txt", b"1361\r\n7 vehicle parked near the Stra\xc3\x9fe\r\n"),
        r"line 1: it must be the name",
    ),
    "words that are not UTF-8": (
        "ref_seg_rs",
        "val",
        writing("output_phrase_val.txt", b"1361 Stra\xdfe\n"),
        r"line 1: the text is not UTF-8",
    ),
    "mask file of another size": (
        "risbench",
        "train",
        lambda r: Image.new("L", (60, 41)).save(r / "mask/1361.png"),
        r"line 1: the mask .*mask/1361.png' is 41 x 60 but its image 40 x 60",
    ),
    "mask file missing": ("risbench", "train", removing("mask/7.png"), r"line 2: there is no file '.*mask/7.png"),
    "unknown speaker": (
        "earthmind_data",
        "earthgpt_vqa",
        setting(TALKS, 0, "conversations", 1, "from", to="system"),
        r"entry 1: conversations\[1\] must be from",
    ),
    "conversation without a question": (
        "earthmind_data",
        "earthgpt_vqa",
        setting(TALKS, 0, "conversations", to=[{"from": "gpt", "value": "Yes"}]),
        r"entry 1: the conversation has no question",
    ),
    "answer without a question": (
        "earthmind_data",
        "earthgpt_vqa",
        setting(TALKS, 0, "conversations", 3, "from", to="gpt"),
        r"conversations\[3\] is an answer that no question",
    ),
    "half of a pair": (
        "earthmind_data",
        "sarnew",
        removing("Refer_Segm/sarnew/sar/1.png"),
        r"ref 7: there is no file '.*sarnew/sar/1.jpg'",
    ),
    "mask that no one gave": (
        "earthmind_data",
        "earthgpt_vqa",
        setting(TALKS, 0, "conversations", 2, "value", to="It is [SEG]."),
        r"entry 1: .*has 1 \[SEG\] but there are 0 masks",
    ),
    "captions and regions differ": (
        "earthmind_data",
        "rsvg",
        setting(OSPREY, 0, "description", to=["one"]),
        r"entry 1: field 'description' must be 2 captions",
    ),
    "questions about other regions": (
        "earthmind_data",
        "rsvg",
        setting(OSPREY, 1, "conversations", 0, "value", to="What is region2?"),
        r"entry 2: the questions must ask about region1",
    ),
    "region's image of another size": (
        "earthmind_data",
        "rsvg",
        setting(OSPREY, 0, "height", to="40"),
        r"entry 1: .*the annotation says '40' x 60",
    ),
    "frames that are missing": (
        "earthmind_data",
        "ms_vqa",
        setting("multi-spectrum/ms_train.json", 0, "image", to="S2A_y/p.png"),
        r"entry 1: there is no frame",
    ),
    "frames of an overlong name": (
        "earthmind_data",
        "ms_vqa",
        setting("multi-spectrum/ms_train.json", 0, "image", to="S2A_x/" + "p" * 300 + ".png"),
        r"entry 1: there is no frame",
    ),
    "answer that is no option": (
        "earthmind_bench",
        "choices",
        setting(COUNTING, 0, "answer", to="C. Meer"),
        r"object_counting.* entry 1: the answer 'C. Meer' is none of the options",
    ),
    "options that are none": (
        "earthmind_bench",
        "object_counting",
        setting(COUNTING, 1, "candidate", to="A"),
        r"entry 2: field 'candidate' must be a list",
    ),
    "boxes outside": (
        "mmrs_1m",
        "detection",
        setting(DETECTION, 0, "conversations", 1, "value", to="<p>a ship</p>[0.1,0.1,0.9,0.2]"),
        r"entry 1: the box .*does not lie in the image of 40 x 80",
    ),
    "boxes of three numbers": (
        "mmrs_1m",
        "detection",
        setting(DETECTION, 0, "conversations", 1, "value", to="<p>two ships</p>[0.1,0.4,0.5,0.6;0.1,0.4,0.5]"),
        r"entry 1: the boxes '\[0.1,.*' must have four numbers each",
    ),
    "boxes inverted": (
        "mmrs_1m",
        "detection_boxes",
        setting(DETECTION, 0, "conversations", 1, "value", to="[0.9,0.3,0.1,0.6]"),
        r"entry 1: the box .*inverted",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_entry_is_a_line_that_says_so(build, case):
    name, split, change, wanted = CASES[case]
    check_line(build(name), name, split, change, wanted)
