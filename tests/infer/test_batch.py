"""Batches against single questions, and what survives an interruption."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import support
from questions import LINES, NEW, QUESTION, answered, images, model, pair, region, written

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.masks import decode_rle, encode_rle
from earthmind_jax.data.records import Turn
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.infer import view as view_module
from earthmind_jax.infer.batch import directory_of, run
from earthmind_jax.infer.journal import opened, sidecar
from earthmind_jax.infer.requests import read_requests
from earthmind_jax.infer.scene_ask import ask_large


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images(tmp_path_factory.mktemp("batch"))


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


def test_directories_of_ids():
    names = ("a", "../a", "..", ".", "a/b", "a%2Fb", "ä", " a", "%2E")
    made = [directory_of(name) for name in names]
    assert len(set(made)) == len(names)
    assert not any(name.startswith(".") or "/" in name for name in made)


def test_dates_that_do_not_fit_into_memory_are_asked_about_as_alone(folder, tmp_path, monkeypatch):
    """Words from a view of the whole, masks of every date window by window into the maps."""
    monkeypatch.setattr(view_module, "WHOLE", 2000)
    em = dataclasses.replace(model(), buckets=Buckets((2,), (256,), (2,)))
    dates = {"optical": ["large_s2.tif"] * 2, "sar": "large_s1.tif"}
    line = {"id": "large", "question": QUESTION, **dates, "maps": str(tmp_path / "maps")}
    run(em, read_requests(written(folder, [line]), em), tmp_path / "answers.jsonl", batch_size=2, max_new=NEW)
    (found,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    files = {"optical": [folder / "large_s2.tif"] * 2, "sar": folder / "large_s1.tif"}
    answer, _ = ask_large(em, QUESTION, **files, max_new=NEW)
    assert found["answer"] == answer.text
    assert [mask["date"] for mask in found["masks"]] == ["date_1", "date_2"]
    assert {Path(f).parent for f in found["files"]} == {tmp_path / "maps"}
    assert set(found["scene"]) == {"date_1", "date_2"}
    for date, told in found["scene"].items():
        with rasterio.open(tmp_path / "maps" / f"mask_1_{date}.tif") as file:
            drawn = file.read(1)
        assert drawn.shape == (56, 56)
        assert told["share"] == pytest.approx((drawn == 1).mean(), abs=1e-6)
