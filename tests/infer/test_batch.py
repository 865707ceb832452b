"""Batches against single questions, what survives an interruption, and every way in which a line can be wrong."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import support
from PIL import Image

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.masks import decode_rle, encode_rle
from earthmind_jax.data.records import Turn
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.infer.batch import directory_of, run
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.journal import opened, sidecar
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import read_requests

NEW = 6
QUESTION = "Where is the river?"


class Pointing(Engine):
    """Every answer has a [SEG], as its second token; images that are encoded are counted."""

    seen = 0

    def generate(self, batch, fused, **options):
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg})

    def see(self, batch):
        self.seen += len(batch.tokens)
        return super().see(batch)


@functools.cache
def model():
    config = support.model()
    em = EarthMind(config, Pointing(config, support.params(config), support.tokenizer()), "tiny", batch_size=1)
    return dataclasses.replace(em, sensors=support.BOTH, buckets=Buckets((1,), (256,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("batch")
    for seed, name, size in ((3, "a", 32), (4, "b", 32), (5, "large", 56)):
        write_scene(make_scene(seed, size=size, gsd=10.0, nodata=0.0), root, name)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(root / "p.png")
    data = bytearray((root / "a_s2.tif").read_bytes())
    data[len(data) // 4 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 4)
    (root / "torn.tif").write_bytes(data)
    (root / "text.tif").write_text("no raster")
    return root


def region():
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:24] = True
    return mask


def pair(name):
    return {"optical": f"{name}_s2.tif", "sar": f"{name}_s1.tif"}


LINES = (
    {"id": "first", "question": QUESTION, **pair("a")},
    {"id": "words alone", "question": "Is there a lake in the image?"},
    {"id": 3, "question": "Show the ships near the harbour, all of them.", **pair("a")},
    {"id": "../odd/id", "question": QUESTION, "optical": "b_s2.tif"},
    {"question": "What is {region}?", **pair("b"), "region": encode_rle(region())},
    {"id": "large", "question": QUESTION, **pair("large")},
    {"id": "picture", "question": QUESTION, "sar": "p.png"},
    {"id": "told", "turns": [
        {"question": "Is there a lake in the image?", "answer": "Yes, [SEG].", "mask": encode_rle(region())},
        {"question": QUESTION, "answer": "It is [SEG].", "mask": encode_rle(region())},
    ], **pair("a")},
    {"id": "again", "question": "Is there a lake in the image?", **pair("a")},
)  # fmt: skip


def written(folder, lines, name="questions.jsonl"):
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answered(folder, out, lines=LINES, **options):
    requests = read_requests(written(folder, lines), model(), skip_broken=options.get("skip_broken", False))
    counts = run(model(), requests, out, **{"batch_size": 2, "max_new": NEW, **options})
    return counts, {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The answers to all lines, in one go."""
    out = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    model().engine.seen = 0
    counts, lines = answered(folder, out, maps=out.parent / "maps")
    return out, counts, lines, model().engine.seen


def test_answers_are_those_of_single_questions(folder, whole):
    out, counts, lines, seen = whole
    assert (counts["answers"], counts["broken"], counts["kept"]) == (len(LINES), 0, 0)
    assert counts["encoded"] == 5  # of nine questions: two pairs, a large one, an optical image, a picture
    assert seen == 5
    assert set(lines) == {"first", "words alone", "3", "../odd/id", "5", "large", "picture", "told", "again"}
    for number, line in enumerate(LINES, 1):
        made = lines[str(line.get("id", number))]
        files = {name: folder / line[name] for name in support.BOTH if name in line}
        images = model().images(files.get("optical"), files.get("sar"))
        options = {"region": region()} if "region" in line else {}
        if "turns" in line:
            before = (Turn("Is there a lake in the image?", "Yes, [SEG].", region()),)
            single = model().look(images, Turn(QUESTION), NEW, before=before)
        else:
            single = model().ask(line["question"], **files, **options, max_new=NEW)
        assert made["line"] == number
        assert made["answer"] == single.text
        assert made["fusion"] == pytest.approx(single.sensor_shares, abs=1e-5)
        assert made["notes"] == list(single.notes)
        assert len(made["masks"]) == len(single.masks)
        assert len(single.masks) == (number != 2)
        for found, mask in zip(made["masks"], single.masks, strict=True):
            assert found["score"] == pytest.approx(mask.score, abs=1e-4)
            sure = np.abs(mask.probability - 0.5) > 1e-3
            np.testing.assert_array_equal(decode_rle(found)[sure], mask.array[sure])
        assert bool(made["files"]) == bool(single.masks)
        for file in map(str, made["files"]):
            assert file.startswith(str(out.parent / "maps" / directory_of(made["id"])))
    with rasterio.open(out.parent / "maps" / "large" / "mask_1.tif") as file:
        np.testing.assert_array_equal(file.read(1) == 1, decode_rle(lines["large"]["masks"][0]))
    assert (out.parent / "maps" / "picture" / "mask_1.png").is_file()
    assert sorted(p.name for p in (out.parent / "maps").iterdir()) == sorted(
        directory_of(name) for name in lines if name != "words alone"
    )


def test_a_region_of_a_large_image_is_asked_about_from_nearby(folder, tmp_path):
    """As a single question is; the line's masks lie on the image all the same."""
    place = np.zeros((56, 56), bool)
    place[40:46, 30:39] = True
    line = {"id": "near", "question": "What is {region}?", **pair("large"), "region": encode_rle(place)}
    other = {"id": "far", "question": QUESTION, **pair("large")}
    _, lines = answered(folder, tmp_path / "answers.jsonl", [line, other])
    files = {name: folder / line[name] for name in support.BOTH}
    single = model().ask(line["question"], **files, region=place, max_new=NEW)
    found = lines["near"]
    assert (found["answer"], found["notes"]) == (single.text, list(single.notes))
    (mask,), (row, column) = single.masks, single.masks[0].offset
    assert mask.array.shape != place.shape
    expected = np.zeros(place.shape, bool)
    expected[row : row + mask.array.shape[0], column : column + mask.array.shape[1]] = mask.array
    np.testing.assert_array_equal(decode_rle(found["masks"][0]), expected)
    assert found["masks"][0]["box"] == (None if mask.box is None else list(mask.box))
    assert lines["far"]["answer"] == model().ask(QUESTION, **files, max_new=NEW).text


def test_a_killed_run_is_continued(folder, whole, tmp_path):
    """Cut off anywhere, also in the middle of a line; the end is the same."""
    out, _, lines, _ = whole
    text, settings = out.read_bytes(), sidecar(out).read_bytes()
    ends = [i + 1 for i, byte in enumerate(text) if byte == 10]
    for cut, there in ((0, 0), (ends[0] - 1, 0), (ends[2], 3), (ends[4] + 17, 5), (len(text), 9)):
        part = tmp_path / f"{cut}.jsonl"
        part.write_bytes(text[:cut])
        sidecar(part).write_bytes(settings)
        counts, again = answered(folder, part)
        assert (counts["kept"], counts["answers"]) == (there, len(LINES) - there)
        assert len(part.read_text().splitlines()) == len(LINES)
        for name, line in again.items():
            assert line["answer"] == lines[name]["answer"]
            assert line["key"] == lines[name]["key"]
            assert [m["size"] for m in line["masks"]] == [m["size"] for m in lines[name]["masks"]]
    assert part.read_bytes() == text


def test_what_belongs_to_another_run_is_refused(folder, whole, tmp_path):
    out = tmp_path / "answers.jsonl"

    def refused(says, lines=LINES, **options):
        before = out.read_bytes()
        with pytest.raises(UserError, match=says):
            answered(folder, out, lines, **options)
        assert out.read_bytes() == before

    shutil.copy(whole[0], out)
    refused("cannot be told what wrote it")
    shutil.copy(sidecar(whole[0]), sidecar(out))
    refused("max_new: 6 -> 7", max_new=7)
    settings = json.loads(sidecar(out).read_text())
    sidecar(out).write_text(json.dumps({**settings, "weights": "0123456789abcdef"}))
    refused("weights: 0123456789abcdef")
    sidecar(out).write_text("{")
    refused("damaged")
    sidecar(out).write_text(json.dumps(settings))
    changed = ({**LINES[0], "question": "Where is the lake?"}, *LINES[1:])
    refused("Line 1 .id 'first'. is not what it was", lines=changed)
    with out.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused("being written by another process")
    out.write_text('{"something": "else"}\n')
    refused("line 1 is no answer")
    with pytest.raises(UserError, match="is a directory"):
        answered(folder, tmp_path)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """The limit on the size of a file stands for the disk: a write ends in the middle."""
    path = tmp_path / "answers.jsonl"
    line = {"id": "a", "key": "1", "answer": "x" * 3000}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path, {"max_new": 1}) as journal:
        journal.add([line])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(WorkError, match="free space"):
                journal.add([{**line, "key": "2"}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert json.loads(path.read_text()) == line
        journal.add([{**line, "key": "3"}])
    with opened(path, {"max_new": 1}) as journal:
        assert journal.done == {"1": "a", "3": "a"}
    with pytest.raises(UserError, match="no ordinary file"), opened(Path("/dev/null"), {}):
        pass


BAD = {
    "no json": ("{'id': 1}", "not JSON"),
    "half a line": ('{"id": "x", "question": "Wh', "not JSON"),
    "not utf-8": (None, "not UTF-8"),
    "a list": ("[1, 2]", "must be an object"),
    "a number": ("17", "must be an object"),
    "NaN": ('{"id": "x", "question": NaN}', "NaN"),
    "deep": ("[" * 20000, "not JSON that can be used"),
    "no question": ({"id": "x"}, "neither a 'question' nor 'turns'"),
    "empty question": ({"id": "x", "question": "  "}, "question is empty"),
    "a question of another type": ({"id": "x", "question": 7}, "must be text, not 7"),
    "unknown field": ({"id": "x", "question": "q", "optcal": "a_s2.tif"}, "unknown field 'optcal'.*optical"),
    "both forms": ({"id": "x", "question": "q", "turns": [{"question": "q"}]}, "stands beside 'turns'"),
    "an id of another type": ({"id": 1.5, "question": "q"}, "'id' must be text"),
    "no such file": ({"id": "x", "question": "q", "optical": "none.tif"}, "none.tif"),
    "no raster": ({"id": "x", "question": "q", "optical": "text.tif"}, "text.tif"),
    "no bands": ({"id": "x", "question": "q", "optical": "a_s1.tif"}, "a_s1.tif"),
    "a path of another type": ({"id": "x", "question": "q", "optical": 3}, "'optical' must be text"),
    "dates that do not fit": ({"id": "x", "question": "q", "optical": ["a_s2.tif"] * 2, "sar": ["a_s1.tif"] * 3},
                              "2 dates but the other sensor 3"),
    "a region without image": ({"id": "x", "question": "q", "region": encode_rle(region())}, "no image"),
    "a region of another size": ({"id": "x", "question": "q", **pair("a"), "region": {"size": [3, 9], "counts": [27]}},
                                 "do not match"),
    "an empty region": ({"id": "x", "question": "q", **pair("a"), "region": {"size": [32, 32], "counts": [1024]}},
                        "at least one pixel"),
    "a broken region": ({"id": "x", "question": "q", **pair("a"), "region": [[1, 2, 3]]}, "polygon"),
    "reserved words": ({"id": "x", "question": "<IMG_CONTEXT>", **pair("a")}, "reserved token"),
    "too long": ({"id": "x", "question": "river " * 600}, "tokens but 256 is the most"),
    "half a character": ('{"id": "x", "question": "lake \\ud800"}', "must be text"),
    "maps of another type": ({"id": "x", "question": "q", "maps": 1}, "'maps' must be text"),
    "an id twice": ({"id": "first", "question": "q"}, "id 'first' is that of line 1 already"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_broken_line_is_told_before_the_work(folder, tmp_path, name):
    line, says = BAD[name]
    path = written(folder, [LINES[0], "" if line is None else line], "bad.jsonl")
    if line is None:
        path.write_bytes(json.dumps(LINES[0]).encode() + b'\n{"id": "\xff", "question": "q"}\n')
    with pytest.raises(UserError, match=says) as told:
        read_requests(path, model())
    assert str(told.value).startswith(f"{path} line 2")
    assert "\n" not in str(told.value)
    requests = read_requests(path, model(), skip_broken=True)
    assert [bool(request.problem) for request in requests] == [False, True]


def test_broken_lines_can_be_left_out(folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    lines = [LINES[0], "{", {"id": "x", "question": "q", "optical": "none.tif"}, {**LINES[3], "optical": "torn.tif"}]
    counts, _ = answered(folder, out, lines, skip_broken=True)
    assert (counts["answers"], counts["broken"]) == (1, 3)
    errors = [line for line in map(json.loads, out.read_text().splitlines()) if "error" in line]
    assert [line["line"] for line in errors] == [2, 3, 4]
    assert "torn.tif" in errors[-1]["error"]
    counts, _ = answered(folder, out, lines, skip_broken=True)
    assert (counts["answers"], counts["broken"], counts["kept"]) == (0, 0, 4)
    # A line that was mended is answered, and the work stops at pixels that cannot be read.
    mended = [*lines[:2], {"id": "x", "question": QUESTION, **pair("a")}, lines[3]]
    counts, found = answered(folder, out, mended, skip_broken=True)
    assert (counts["answers"], counts["kept"]) == (1, 3)
    assert found["x"]["answer"] == found["first"]["answer"]
    with pytest.raises(UserError, match=r"Line 2 \(id '../odd/id'\): .*torn\.tif"):
        answered(folder, tmp_path / "other.jsonl", [LINES[0], lines[3]])
    with pytest.raises(UserError, match="is empty"):
        read_requests(written(folder, [], "none.jsonl"), model())
    with pytest.raises(UserError, match="cannot be read"):
        read_requests(folder / "nothing.jsonl", model())


def test_directories_of_ids():
    names = ("a", "../a", "..", ".", "a/b", "a%2Fb", "ä", " a", "%2E")
    made = [directory_of(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any(name.startswith(".") or "/" in name for name in made)
