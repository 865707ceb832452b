"""Every picture and language data set from its files to tokens and masks, and told apart from every other."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import support
from breaking import edit, setting
from PIL import Image

from configs import tiny
from earthmind_jax.config import SensorConfig
from earthmind_jax.data import datasets
from earthmind_jax.data.datasets import _pickle
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import parse_record, record_values

CFG = support.model()
DATA = dataclasses.replace(tiny.get_config().data, turns=8, masks_per_sample=8)

SIDES = ("height", "width")
OUTLINE = [5, 8, 25, 8, 25, 20, 5, 20]
SPLITS = {
    "aid": {"all": 3, "geochat": 2},
    "dior_rsvg": {"train": 2, "val": 1, "test": 1, "train_regions": 2, "val_regions": 1, "test_regions": 1},
    "earthmind_bench": {"choices": 10, "open": 4, "object_counting": 2, "navigation": 1, "segmentation": 3},
    "earthmind_data": {
        "train": 14, "rrsisd": 3, "refsegrs": 3, "earthgpt_vqa": 2, "ms_vqa": 1, "rsvg": 2, "sarnew": 3,
        "rrsisd_test": 3, "refsegrs_test": 3, "rsvg_test": 1,
    },
    "mmrs_1m": {"train": 4, "caption": 1, "rsvg": 2, "detection": 1, "rsvg_boxes": 2, "detection_boxes": 1},
    "ref_seg_rs": {"train": 3, "val": 1, "test": 1},
    "risbench": {"train": 3, "val": 1, "test": 1},
    "rrsis_d": {"train": 3, "val": 0, "test": 3},
    "rsvqa_hrben": {"train": 3, "test_phili": 3, "hrben": 2},
    "rsvqa_lr": {"train": 3, "val": 3, "test": 3, "lrben": 1},
    "uc_merced": {"all": 3, "geochat": 2},
    "vrsbench": {"train": 3, "vqa": 2, "caption": 2, "referring": 2, "val_boxes": 1},
}  # fmt: skip


def records(root, name, split):
    lines = list(datasets.read(root, name, split))
    assert [line.where + line.problems[0] for line in lines if line.problems] == []
    return [line.record for line in lines]


@pytest.mark.parametrize("name", SPLITS)
def test_the_whole_road(build, name):
    root = build(name)
    words = support.tokenizer()
    assert datasets.recognise(root) == name
    assert set(SPLITS[name]) <= set(datasets.get(name).splits)
    for split, count in SPLITS[name].items():
        found = records(root, name, split)
        assert len(found) == count, split
        assert found == records(root, name, split), "the order is the same each time"
        assert len({record.id for record in found}) == count
        for record in found:
            values = json.loads(json.dumps(record_values(record)))
            assert parse_record(values, "again") == record, "a record can be written as a line of JSON"
            sample = load_record(record, SensorConfig())
            example = encode_sample(sample, CFG, DATA, words)
            told = words.decode(example.prompt.tokens)
            regions = 0
            for turn, decoded in zip(record.turns, sample.turns, strict=True):
                regions += turn.region is not None
                asked = turn.question.replace("{region}", f"region{regions}").replace("<image>", "").strip()
                assert asked in told
                assert turn.answer in told
                assert len(decoded.masks) == turn.answer.count("[SEG]")
                for mask in (*decoded.masks, *(() if decoded.region is None else [decoded.region])):
                    assert 0 < mask.sum() <= mask.size
            masks = [mask for turn in sample.turns for mask in turn.masks]
            assert len(example.masks) == len(masks)
            for small, mask in zip(example.masks, masks, strict=True):
                share = small.mean() / mask.mean()
                assert 0.7 < share < 1.4, "what the mask decoder learns is as large"
            assert set(example.pixels) == {sensor for sensor in ("optical", "sar") if record.paths(sensor)}


def test_no_layout_is_taken_for_another(build):
    roots = {name: build(name) for name in SPLITS}
    for name in datasets.names():
        found = {other for other, root in roots.items() if datasets.get(name).found(root)}
        assert found == {name} & set(SPLITS)


def test_every_reader_says_what_it_is():
    for name in SPLITS:
        dataset = datasets.get(name)
        assert "http" in dataset.source
        assert all((dataset.title, dataset.layout, dataset.licence, dataset.splits))
        assert len(set(dataset.splits)) == len(dataset.splits)
    assert not any(name.startswith("_") for name in datasets.names())


def block(shape):
    """The box that lies in every image."""
    mask = np.zeros(shape, bool)
    mask[8:20, 5:25] = True
    return mask


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("rrsis_d", "train"), ("ref_seg_rs", "train"), ("risbench", "train"), ("earthmind_data", "rrsisd"),
        ("earthmind_data", "sarnew"), ("earthmind_data", "rsvg"), ("earthmind_data", "rsvg_test"),
        ("earthmind_bench", "segmentation"),
    ],
)  # fmt: skip
def test_masks_and_regions_lie_where_they_are_annotated(build, name, split):
    root = build(name)
    for record in records(root, name, split):
        sample = load_record(record, SensorConfig())
        for turn in sample.turns:
            marked = turn.region if turn.region is not None else turn.masks[0]
            np.testing.assert_array_equal(marked, block((sample.optical.shape[0], sample.optical.shape[1])))


@pytest.mark.parametrize("split", ["train", "train_regions"])
def test_boxes_are_drawn_where_they_are(build, split):
    first, second = records(build("dior_rsvg"), "dior_rsvg", split)
    turn = load_record(first, SensorConfig()).turns[0]
    np.testing.assert_array_equal(turn.region if turn.region is not None else turn.masks[0], block((50, 70)))
    assert "the Öltank & its pier" in (first.turns[0].answer + first.turns[0].question)
    assert second.optical == "JPEGImages/00011.JPG"


def test_oriented_boxes_of_vrsbench(build):
    (record,) = records(build("vrsbench"), "vrsbench", "val_boxes")
    mask = load_record(record, SensorConfig()).turns[1].masks[0]
    rows, columns = np.nonzero(mask)
    assert mask.shape == (50, 40)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 10, 29)


def test_objects_of_vrsbench_without_an_expression_are_left_out(build):
    root = build("vrsbench")
    setting("Annotations_val/P0003_0002.json", "objects", 0, to={"obj_cls": "ship", "referring_sentence": ""})(root)
    (record,) = records(root, "vrsbench", "val_boxes")
    assert len(record.turns) == 1
    edit(root, "Annotations_val/P0003_0002.json", lambda values: values["objects"].pop() and None)
    assert not records(root, "vrsbench", "val_boxes")


def test_boxes_of_vrsbench_end_at_the_edge_of_the_image(build):
    root = build("vrsbench")
    said = "two: {<90><-3><104><40>} and {<1><2><3><101>|<-15>}"
    setting("VRSBench_train.json", 1, "conversations", 1, "value", to=said)(root)
    answer = list(datasets.read(root))[1].record.turns[0].answer
    assert answer == "two: {<90><0><100><40>} and {<1><2><3><100>|<-15>}"
    setting("VRSBench_train.json", 1, "conversations", 1, "value", to="{<101><2><110><9>}")(root)
    assert "does not lie in the image" in list(datasets.read(root))[1].problems[0]


def test_boxes_of_mmrs_1m_lose_their_padding(build):
    root = build("mmrs_1m")
    (words,) = records(root, "mmrs_1m", "detection")
    assert words.sar == "data/detection/HRSID/P1.jpg"
    assert words.turns[0].answer == (
        "There are <p>two ships</p>[0.250,0.500,0.500,1.000;0.500,0.000,1.000,1.000] and "
        "<p>a pier</p>[0.000,0.000,0.250,0.500]."
    )
    (drawn,) = records(root, "mmrs_1m", "detection_boxes")
    assert drawn.turns[0].answer == "There are <p>two ships</p> [SEG] and <p>a pier</p> [SEG]."
    ships, pier = load_record(drawn, SensorConfig()).turns[0].masks
    assert ships[30, 30]
    assert ships[5, 70]
    assert not ships[10, 30]
    assert pier[10, 10]
    assert not pier[30, 10]
    region = load_record(records(root, "mmrs_1m", "rsvg")[0], SensorConfig()).turns[0].region
    rows, columns = np.nonzero(region)  # of 60 x 30 pixels; the square is 60 x 60
    assert (rows.min(), columns.min(), columns.max()) == (30, 0, 14)


def test_the_sensor_of_mmrs_1m_is_in_the_names_of_files_or_their_folder(build):
    root = build("mmrs_1m")
    (root / "data/json/caption/SARV2").mkdir()
    (root / "data/json/caption/UCM.json").rename(root / "data/json/caption/SARV2/train.json")
    (line,) = datasets.read(root, "mmrs_1m", "caption")
    assert (line.record.sar, line.record.optical) == ("data/caption/UCM/1.tif", None)


def test_oriented_boxes_of_mmrs_1m_lose_their_padding(build):
    root = build("mmrs_1m")
    said = "<p>a ship</p>[0.5,0.25,0.75,0.5,0.5,0.75,0.25,0.5;0.25,0.5,0.5,0.75]"
    setting("data/json/detection/HRSID.json", 0, "conversations", 1, "value", to=said)(root)
    (line,) = datasets.read(root, None, "detection")  # 40 x 80 pixels, padded by 20 rows above and below
    told = "<p>a ship</p>[0.500,0.000,0.750,0.500,0.500,1.000,0.250,0.500;0.250,0.500,0.500,1.000]"
    assert line.record.turns[0].answer == told
    (line,) = datasets.read(root, None, "detection_boxes")
    assert line.record.turns[0].masks[0][0] == [40, 0, 60, 20, 40, 40, 20, 20]


def test_text_is_as_published(build):
    (first, second) = records(build("aid"), "aid", "geochat")
    assert first.turns[0].question.startswith("Classify the image within one of the given classes: airport, bare land.")
    assert (first.turns[0].answer, second.turns[0].answer) == ("airport", "bare land")
    assert first.optical == "Airport/airport_1.jpg", "the file names another ending than the image has"
    choice = records(build("earthmind_bench"), "earthmind_bench", "object_counting")[0].turns[0]
    assert choice.question == "Which?\nA. Hafen\nB. Wüste größer"
    assert choice.answer == "B. Wüste größer"
    root = build("vrsbench")
    asked = records(root, "vrsbench", "referring")[0].turns[0]
    assert asked.question == "[refer] could you tell me the location for <p>The ship at the left</p>?"
    assert asked.answer == "{<25><40><75><100>}"
    assert records(root, "vrsbench", "vqa")[0].turns[0].answer == "4"
    said = [r.turns[0].question for r in records(build("rrsis_d"), "rrsis_d", "train")]
    assert said[1:] == [
        "Please segment das Schiff im Süden in this image.",
        "Please segment A red ship on the left in this image.",
    ]


def test_conversations_of_several_turns_and_without_images(build, write_pairs):
    root = build("earthmind_data", write_pairs)
    first, second = records(root, "earthmind_data", "earthgpt_vqa")
    assert [turn.question for turn in first.turns] == ["<image>\nIst hier ein Fluß?", "Where?"]
    assert [turn.answer for turn in first.turns] == ["Yes", "In the north."]
    assert second.dates == 0
    assert second.turns[0].question == "What is SAR?"
    (frames,) = records(root, "earthmind_data", "ms_vqa")
    assert [path.name for path in frames.paths("optical")] == ["rgb_1.png", "rgb_2.png", "rgb_10.png"]
    assert len(records(root, "earthmind_data", "train")) == 1 + SPLITS["earthmind_data"]["train"]
    (pair,) = records(root, "earthmind_data", "pairs")
    assert (pair.optical, pair.sar) == ("pair_data/train/rgb/img/000123.png", "pair_data/train/sar/img/000123.png")
    captions, asked = records(root, "earthmind_data", "rsvg")
    assert [turn.answer for turn in captions.turns] == ["the first ship", "ein zweites Schiff größer"]
    assert asked.turns[0].question == "What is {region}?"


def test_instances_that_declare_no_size(build):
    root = build("rrsis_d")
    edit(
        root,
        "rrsisd/instances.json",
        lambda values: [values["images"][i].pop(k) for i in (0, 1) for k in SIDES] and None,
    )
    for record in records(root, "rrsis_d", "train"):
        sample = load_record(record, SensorConfig())
        np.testing.assert_array_equal(sample.turns[0].masks[0], block(sample.optical.shape[:2]))


def test_specks_of_an_outline_are_left_out(build):
    root = build("rrsis_d")
    setting("rrsisd/instances.json", "annotations", 1, "segmentation", 0, to=[9, 9, 10, 9])(root)
    edit(root, "rrsisd/instances.json", lambda values: values["annotations"][1]["segmentation"].append(OUTLINE))
    mask = load_record(records(root, "rrsis_d", "train")[-1], SensorConfig()).turns[0].masks[0]
    np.testing.assert_array_equal(mask, block((40, 60)))


def test_the_union_of_several_run_length_codes(build):
    root = build("rrsis_d")
    whole = block((33, 50))
    left, right = whole.copy(), whole.copy()
    left[:, 15:] = right[:, :15] = False
    parts = [encode_rle(left), encode_rle(right)]
    setting("rrsisd/instances.json", "annotations", 0, "segmentation", to=parts)(root)
    first = records(root, "rrsis_d", "train")[0]
    np.testing.assert_array_equal(load_record(first, SensorConfig()).turns[0].masks[0], whole)
    setting("rrsisd/instances.json", "annotations", 0, "segmentation", to=parts[:1])(root)
    first = records(root, "rrsis_d", "train")[0]
    np.testing.assert_array_equal(load_record(first, SensorConfig()).turns[0].masks[0], left)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_read(tmp_path, protocol):
    values = [{"id": 70000, "big": -(2**40), "é": ("ü", 1.5, None, True), "same": ["x"] * 3, "none": [], "e": {}}] * 300
    (tmp_path / "p").write_bytes(pickle.dumps(values, protocol))
    assert _pickle.load(tmp_path / "p") == values


def test_text_of_an_old_python_is_read_as_utf_8(tmp_path):
    (tmp_path / "p").write_bytes(b"\x80\x02]U\x04\xc3\xbc\xff!a.")
    assert _pickle.load(tmp_path / "p") == ["ü\ufffd!"]


@pytest.mark.parametrize("mode", ["P", "1", "I;16", "RGB"])
def test_masks_of_any_kind_of_picture(build, mode):
    root = build("risbench")
    mask = block((40, 60))
    picture = Image.fromarray(mask.astype(np.uint16)) if mode == "I;16" else Image.fromarray(mask).convert(mode)
    picture.save(root / "mask/1361.png")
    sample = load_record(records(root, "risbench", "train")[0], SensorConfig())
    np.testing.assert_array_equal(sample.turns[0].masks[0], mask)


def test_expressions_with_numbers_of_numpy(build):
    root = build("rrsis_d")
    path = root / "rrsisd/refs(unc).p"
    before, plain = list(datasets.read(root)), pickle.loads(path.read_bytes())

    def numpys(value):
        if isinstance(value, dict):
            return {key: numpys(one) for key, one in value.items()}
        if isinstance(value, list):
            return [numpys(one) for one in value]
        return np.str_(value) if isinstance(value, str) else np.array(value, ">i4")[()]

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(numpys(plain), protocol))
        assert list(datasets.read(root)) == before
        if protocol < 4:  # later ones write the length of the name, too
            path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert list(datasets.read(root)) == before


def test_a_scalar_as_python_2_wrote_it(tmp_path):
    kind = b"cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    number = (-200).to_bytes(8, "little", signed=True)
    path = tmp_path / "values.p"
    path.write_bytes(b"\x80\x02]cnumpy.core.multiarray\nscalar\n(" + kind + b"U\x08" + number + b"tRa.")
    assert _pickle.load(path) == pickle.loads(path.read_bytes(), encoding="latin1") == [-200]


COPIES = {
    "risbench": ({"img_rgb": "RISBench_dataset/images", "mask": "RISBench_dataset/masks"}, "RISBench_dataset"),
    "rrsis_d": ({"images/rrsisd/JPEGImages": "images/JPEGImages", "rrsisd/refs(unc).p": "refs(unc).p"}, "."),
    "ref_seg_rs": ({}, "."),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_with_other_folders_are_the_same_set(build, name):
    root = build(name)
    before = [line.record.turns[0].question for line in datasets.read(root)]
    moves, texts = COPIES[name]
    for old, new in moves.items():
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    for path in root.glob("output_phrase_*.txt"):
        path.rename(root / texts / path.name)
    if name == "rrsis_d":
        (root / "rrsisd/instances.json").rename(root / "instances.json")
        (root / "rrsisd").rmdir()
        (root / "images/rrsisd").rmdir()
    assert datasets.recognise(root) == name
    lines = list(datasets.read(root))
    assert [line.record.turns[0].question for line in lines] == before
    assert all(load_record(line.record, SensorConfig()).optical is not None for line in lines)


def test_lists_of_numbers_may_begin_with_a_byte_order_mark(build):
    root = build("dior_rsvg")
    before = list(datasets.read(root))
    (root / "train.txt").write_bytes(b"\xef\xbb\xbf" + (root / "train.txt").read_bytes())
    assert list(datasets.read(root)) == before
