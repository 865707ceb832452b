"""What makes a data set unreadable is one sentence, soon: damaged and hostile files, missing files and folders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import support
from breaking import cutting, removing, replacing, writing

from earthmind_jax.config import SensorConfig
from earthmind_jax.data import datasets
from earthmind_jax.data.check import line_problems
from earthmind_jax.data.datasets import _json
from earthmind_jax.data.masks import decode
from earthmind_jax.data.regular import require_regular
from earthmind_jax.errors import UserError


class Runs:
    """What a pickle would run when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


REFS, DIOR = "rrsisd/refs(unc).p", "Annotations/00011.xml"
LAUGHS = b'<!DOCTYPE a [<!ENTITY x0 "ha">' + b"".join(
    b'<!ENTITY x%d "%s">' % (i, b"&x%d;" % (i - 1) * 10) for i in range(1, 12)
)
PLACE = b"\x80\x02]r\xff\xff\xff\x7f."  # an empty list, kept at the place 2**31 - 1
QUESTIONS, ANSWERS = "LR_split_train_questions.json", "LR_split_train_answers.json"
TRAIN = "VRSBench_train.json"

CASES = {
    "list that is cut": ("vrsbench", "train", cutting(TRAIN), "VRSBench_train.json' is not JSON"),
    "list that is an object": ("vrsbench", "train", writing(TRAIN, b'{"a": 1}'), "must be a list of entries"),
    "list that is empty text": ("vrsbench", "train", writing(TRAIN, b""), "must be a list of entries"),
    "list with something after it": (
        "vrsbench",
        "vqa",
        writing("VRSBench_EVAL_vqa.json", b"[] []"),
        "follows the list",
    ),
    "text that is not UTF-8": ("vrsbench", "train", writing(TRAIN, b'[{"image": "\xff"}]'), "not UTF-8"),
    "brackets without end": ("vrsbench", "train", writing(TRAIN, b"[" * 200_000), "brackets within"),
    "number without end": ("vrsbench", "train", writing(TRAIN, b'[{"id": ' + b"9" * 50_000 + b"}]"), "of digits"),
    "folder of images missing": (
        "vrsbench",
        "vqa",
        lambda r: shutil.rmtree(r / "Images_val"),
        "no folder .*Images_val",
    ),
    "questions that are cut": ("rsvqa_lr", "train", cutting(QUESTIONS), f"{QUESTIONS}' is not JSON"),
    "answers that are cut": ("rsvqa_lr", "train", cutting(ANSWERS, 0.3), f"{ANSWERS}' is not JSON"),
    "answers of another kind": ("rsvqa_lr", "train", writing(ANSWERS, b'{"answer": []}'), "has no list 'answers'"),
    "answers missing": ("rsvqa_lr", "train", removing(ANSWERS), f"no file .*{ANSWERS}"),
    "answer that is no object": ("rsvqa_lr", "train", writing(ANSWERS, b'{"answers": [5]}'), "entry 1: .* not 5"),
    "split file missing": ("dior_rsvg", "val", removing("val.txt"), "no file .*val.txt"),
    "split file of words": ("dior_rsvg", "val", writing("val.txt", b"00011\nx\n"), "line 2: 'x' is no number"),
    "split file with a number twice": (
        "dior_rsvg",
        "val",
        writing("val.txt", b"3\n2\n3\n"),
        "line 3: '3' is given twice",
    ),
    "XML that is cut": ("dior_rsvg", "train", cutting(DIOR), "00011.xml' is not XML"),
    "XML with entities": ("dior_rsvg", "train", writing(DIOR, LAUGHS + b"]><a>&x11;</a>"), "has a document type"),
    "XML with entities, in UTF-16": (
        "dior_rsvg",
        "train",
        writing(DIOR, (LAUGHS + b"]><a>&x11;</a>").decode().encode("utf-16")),
        "has a document type",
    ),
    "XML that reads another file": (
        "dior_rsvg",
        "train",
        writing(DIOR, b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'),
        "has a document type",
    ),
    "XML of endless depth": ("dior_rsvg", "train", writing(DIOR, b"<a>" * 50_000), "more than 100 deep"),
    "XML in an unknown encoding": (
        "dior_rsvg",
        "train",
        replacing(DIOR, 'encoding="utf-8"', 'encoding="klingon"'),
        "00011.xml' is not XML",
    ),
    "expressions missing": ("rrsis_d", "train", removing(REFS), r"no file .*refs\(unc\).p"),
    "expressions that are cut": ("rrsis_d", "train", cutting(REFS), "not a pickle that can be read"),
    "expressions that are text": ("rrsis_d", "train", writing(REFS, b"refs"), "pickle"),
    "expressions that are no list": ("rrsis_d", "train", writing(REFS, pickle.dumps({"a": 1})), "must hold a list"),
    "expressions with arrays": ("rrsis_d", "train", writing(REFS, pickle.dumps([np.zeros(2)])), "could run code"),
    "expressions with dates": ("rrsis_d", "train", writing(REFS, pickle.dumps([np.datetime64("2020")])), "of the type"),
    "expressions that change a function": (
        "rrsis_d",
        "train",
        writing(REFS, b"cnumpy\ndtype\n(dV__defaults__\n(I1\ntsb."),
        "not a pickle that can be read",
    ),
    "expressions that take all memory": ("rrsis_d", "train", writing(REFS, PLACE), "out of range"),
    "masks missing": ("rrsis_d", "train", removing("rrsisd/instances.json"), "no file .*instances.json"),
    "masks that are cut": ("rrsis_d", "train", cutting("rrsisd/instances.json"), "instances.json' is not JSON"),
    "masks without images": (
        "rrsis_d",
        "train",
        writing("rrsisd/instances.json", b'{"categories": []}'),
        "no list 'images'",
    ),
    "no phrases": ("ref_seg_rs", "val", removing("output_phrase_val.txt"), "no file .*output_phrase_val.txt"),
    "no classes": (
        "aid",
        "geochat",
        lambda r: [shutil.rmtree(p) for p in r.iterdir() if p.is_dir()],
        "no folder for each",
    ),
    "name that is no text": (
        "aid",
        "all",
        lambda r: open(os.fsencode(r) + b"/Airport/stra\xdfe.jpg", "wb").close(),
        r"Airport' has a file whose name is not UTF-8, 'stra\\udcdfe.jpg'",
    ),
    "no questions": ("uc_merced", "geochat", removing("UCmerced.jsonl"), "no file .*UCmerced.jsonl"),
    "no task": ("mmrs_1m", "vqa", lambda r: None, "no JSON file in the folder of vqa"),
    "no part": ("earthmind_data", "risbench", lambda r: None, r"no file .*risbench/refs\(unc\).p"),
    "no questions of a task": (
        "earthmind_bench",
        "choices",
        removing("json/object_counting_all_unmatched.json"),
        "no file",
    ),
    "bands missing": ("earthmind_bench", "ms_scene_classification", lambda r: None, "no folder .*ms_sar"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_set_is_one_sentence(build, case):
    name, split, change, wanted = CASES[case]
    root = build(name)
    change(root)
    start = time.monotonic()
    with pytest.raises(UserError, match=wanted) as caught:
        list(datasets.read(root, name, split))
    assert str(root) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - start < 5


def test_a_pickle_is_refused_before_it_runs(build, tmp_path):
    root, made = build("rrsis_d"), tmp_path / "made"
    for protocol in range(6):
        (root / REFS).write_bytes(pickle.dumps([Runs(made)], protocol=protocol))
        with pytest.raises(UserError, match="could run code"):
            list(datasets.read(root, "rrsis_d", "train"))
        assert not made.exists()
    pickle.loads((root / REFS).read_bytes())
    assert made.exists(), "it would have run"


def test_pictures_that_are_cut_are_found_by_the_check(build):
    for name, split, file in (
        ("aid", "all", "Airport/airport_1.jpg"),
        ("vrsbench", "vqa", "Images_val/P0003_0002.PNG"),
        ("uc_merced", "all", "Images/agricultural/agricultural00.tif"),
        ("rrsis_d", "train", "images/rrsisd/JPEGImages/00001.jpg"),
    ):
        root = build(name)
        cutting(file, 0.6)(root)
        told = [p for one in datasets.read(root, name, split) for p in line_problems(one, SensorConfig(), pixels=True)]
        assert told
        assert all(file in one for one in told), told


def png_of(side):
    """The file of a picture that is said to be huge and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("file", ["img_rgb/7.png", "mask/7.png"])
def test_pictures_that_claim_to_be_huge_are_told(build, file):
    root = build("risbench")
    writing(file, png_of(100_000))(root)
    lines = list(datasets.read(root, "risbench", "train"))
    assert [bool(line.problems) for line in lines] == [False, True, False]
    assert file in lines[1].problems[0]
    assert "cannot be read" in lines[1].problems[0]
    with pytest.raises(UserError, match="cannot be read as a mask"):
        decode(file, (4, 4), root)


def test_the_entries_before_a_damage_are_given(build):
    root = build("vrsbench")
    cutting("VRSBench_train.json", 0.9)(root)
    lines = datasets.read(root, "vrsbench", "train")
    assert [next(lines).record.id for _ in range(2)] == ["train/0", "train/1"]
    with pytest.raises(UserError, match="character"):
        next(lines)


def test_a_folder_beside_the_data_set(build, tmp_path):
    root = build("aid")
    for given in (root / "Airport", root.parent):
        with pytest.raises(UserError, match=rf"'{given}' is no data set, but '{root}' has the layout of aid; give"):
            datasets.recognise(given)
    (root.parent / "records.jsonl").write_text("{}")
    with pytest.raises(UserError, match=rf"for the record file in it give '{root.parent / 'records.jsonl'}'"):
        datasets.recognise(root.parent)
    (root.parent / "aid.zip").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=rf"aid.zip' is an archive; unpack it first: earthmind data unpack {root.parent}"
    ):
        datasets.lines(root.parent / "aid.zip")
    deep = tmp_path / "download/a/b"
    deep.mkdir(parents=True)
    root.rename(deep / "aid")
    with pytest.raises(UserError, match=rf"but '{deep / 'aid'}' has the layout of aid"):
        datasets.recognise(tmp_path / "download")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="who may read everything")
def test_folders_that_may_not_be_read(build, tmp_path, capsys):
    for name, folder in (("mmrs_1m", "data/json/detection"), ("aid", "Airport"), ("earthmind_data", ".")):
        root = build(name)
        (root / folder).chmod(0)
        try:
            code, _, err = support.run(capsys, "data", "check", root)
        finally:
            (root / folder).chmod(0o755)
        assert (code, "Permission denied" in err, str(root) in err) == (2, True, True)


def test_what_is_no_file_is_not_waited_for(build, tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "loop"):
        if path.name == "loop":
            path.symlink_to(pipe)
        with pytest.raises(UserError, match=f"'{path}' is a directory, pipe or device and no file"):
            require_regular(path)
    assert require_regular(tmp_path / "missing") == tmp_path / "missing"
    root = build("mmrs_1m")
    for name in ("caption/UCM.json", "RSVG/region.json"):
        (root / "data/json" / name).unlink()
        (root / "data/json" / name).symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"UCM.json' is a directory, pipe or device"):
        list(datasets.read(root))


def test_what_other_systems_leave_in_folders_is_no_part_of_a_set(build):
    for name, split in (("dior_rsvg", "train"), ("vrsbench", "val_boxes"), ("mmrs_1m", "train"), ("aid", "all")):
        root = build(name)
        before = list(datasets.read(root, name, split))
        for path in [path for path in root.rglob("*") if path.is_file()]:
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        assert list(datasets.read(root, name, split)) == before


def test_requests_that_are_wrong(build, tmp_path):
    root = build("aid")
    with pytest.raises(UserError, match=r"Unknown split of AID 'trian'.*Choices: all, geochat"):
        datasets.read(root, "aid", "trian")
    with pytest.raises(UserError, match=r"Unknown data set 'aids'\. Did you mean 'aid'"):
        datasets.read(root, "aids")
    with pytest.raises(UserError, match="Unknown data set '_json'"):
        datasets.get("_json")
    with pytest.raises(UserError, match="There is no directory"):
        datasets.read(tmp_path / "nowhere", "aid")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has the layout of none of"):
        datasets.recognise(tmp_path / "empty")
    (root / "hrben.jsonl").touch()
    with pytest.raises(UserError, match="could be aid or rsvqa_hrben; name the data set with --as"):
        datasets.recognise(root)


VALUES = [{"a": 'é\\" ]}, ÿ 🛰', "b": [1, -2.5e-3, [], {}], "c": None}, 123456, -0.25, "x" * 100, [[]], True, {}, ""]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 3])
def test_a_list_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, size, indent):
    monkeypatch.setattr(_json, "CHUNK", size)
    values = {"skipped": VALUES, "n": 12, "here": VALUES, "after": 1}
    text = json.dumps(values, indent=indent, ensure_ascii=indent is None)
    path = tmp_path / "values.json"
    path.write_text(f"\ufeff {text}\r\n", encoding="utf-8")
    assert list(_json.items(path, "here")) == VALUES
    if size == 7:
        for end in range(0, text.index('"after"') - 4, 2):
            path.write_text(text[:end], encoding="utf-8")
            with pytest.raises(UserError, match=r"is not JSON|must be a JSON object"):
                list(_json.items(path, "here"))


def test_a_long_list_is_held_one_entry_at_a_time(tmp_path):
    path = tmp_path / "long.json"
    entry = {"question": "x" * 900, "answer": "y" * 90}
    with path.open("w") as file:
        file.write("[" + json.dumps(entry))
        for _ in range(40_000):
            file.write("," + json.dumps(entry))
        file.write("]")
    tracemalloc.start()
    assert sum(1 for _ in _json.items(path)) == 40_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
