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
from earthmind_jax.geo.marks_file import parse_prompts
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer import view as view_module
from earthmind_jax.infer.batch import directory_of, run
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.journal import opened, sidecar
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.requests import read_requests
from earthmind_jax.infer.scene_ask import ask_large

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
    "marks without image": ({"id": "x", "question": "q", "marks": "m.geojson"}, "no image to point at"),
    "no such marks": ({"id": "x", "question": "q", **pair("a"), "marks": "m.geojson"}, "m.geojson"),
    "no marks": ({"id": "x", "question": "q", **pair("a"), "marks": 3}, "must be GeoJSON"),
    "marks that are no GeoJSON": ({"id": "x", "question": "q", **pair("a"), "marks": {"type": "Lake"}}, "'Lake'"),
    "a crop of three": ({"id": "x", "question": "q", **pair("a"), "crop": [1, 2, 3]}, "whole pixels"),
    "a crop of halves": ({"id": "x", "question": "q", **pair("a"), "crop": [1, 2, 3, 4.5]}, "whole pixels"),
    "an area that is none": ({"id": "x", "question": "q", **pair("a"), "area": [3, 2, 1, 0]}, "x0 < x1"),
    "an area of words": ({"id": "x", "question": "q", **pair("a"), "area": "all"}, "in numbers"),
    "crop and area": ({"id": "x", "question": "q", **pair("a"), "crop": [0, 0, 9, 9], "area": [0, 0, 1, 1]}, "both"),
    "steering by nothing": ({"id": "x", "question": "q", **pair("a"), "steer": True}, "something to point at"),
    "steering by a word": ({"id": "x", "question": "q", **pair("a"), "steer": "yes"}, "true or false"),
    "marks beside a region": ({"id": "x", "question": "q", **pair("a"), "crop": [0, 0, 9, 9],
                               "region": encode_rle(region())}, "beside 'region'"),
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


def feature(kind, coordinates, **properties):
    return {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}


IN_PIXELS = {"type": "FeatureCollection", "features": [
    feature("Polygon", [[[3, 4], [17, 4], [17, 21], [3, 21], [3, 4]]], name="lake"), feature("Point", [25, 6]),
    feature("LineString", [[2, 2], [14, 9]], name="lake"),
]}  # fmt: skip


def test_every_option_is_that_of_a_single_question(folder, tmp_path, monkeypatch):
    """Sensors, dates, marks, windows and steering combined at random, of images that are read whole and in part."""
    with rasterio.open(folder / "large_s2.tif") as file:
        crs, (west, north) = file.crs.to_string(), file.xy(8, 5)
    np.save(folder / "place.npy", np.pad(np.ones((9, 7), bool), ((5, 18), (11, 14))))
    on_map = feature("Point", [west + 90, north - 200])
    area = [west, north - 320, west + 300, north]
    images = [pair("a"), {"sar": "a_s1.tif"}, {"optical": ["a_s2.tif"] * 2}, {"optical": "p.png"},
              pair("large"), {"optical": "large_s2.tif"}]  # fmt: skip
    asked = [
        {"marks": IN_PIXELS, "prompt_crs": "pixels", "question": "Is {lake} larger than region2?"},
        {"marks": [IN_PIXELS], "prompt_crs": "pixels", "crop": [1, 2, 24, 29], "steer": True},
        {"crop": [3, 5, 20, 16]},
        {"marks": "place.npy"},
        {"marks": on_map, "prompt_crs": crs},
        {"area": area, "prompt_crs": crs},
    ]
    rng = np.random.default_rng(0)
    lines = []
    for i, given in enumerate(images):
        fits = [o for o in asked if o.get("prompt_crs", "pixels") == "pixels" or "large" in str(given)]
        fits = [o for o in fits if o.get("marks") != "place.npy" or "large" not in str(given)]
        chosen = rng.choice(len(fits), 2, replace=False)
        lines += [{"id": f"{i} {j}", "question": "What is there?", **given, **fits[j]} for j in chosen]
    lines += [{"id": "plain", "question": QUESTION, **pair("a")}]
    monkeypatch.setattr(view_module, "WHOLE", 2000)  # the large images are
    em = dataclasses.replace(model(), buckets=Buckets((1, 2), (256,)))
    requests = read_requests(written(folder, lines), em)
    run(em, requests, tmp_path / "answers.jsonl", batch_size=2, max_new=NEW)
    found = {line["id"]: line for line in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())}
    assert len(found) == len(lines)
    assert sum(bool(line["masks"]) for line in found.values()) > len(lines) / 2
    for line in lines:
        options = {key: line[key] for key in ("marks", "steer") if key in line}
        options = {name: [folder / f for f in value] if isinstance(value, list) else folder / value
                   for name, value in line.items() if name in support.BOTH} | options  # fmt: skip
        if "marks" in options:
            given = options["marks"][0] if isinstance(options["marks"], list) else options["marks"]
            options["marks"] = folder / given if isinstance(given, str) else parse_prompts(given, line["prompt_crs"])
        if "crop" in line:
            options["window"] = tuple(line["crop"])
        if "area" in line:
            options["window"] = Prompt.from_box(*line["area"], crs=crs)
        single = em.ask(line["question"], **options, max_new=NEW)
        made = found[line["id"]]
        assert (made["answer"], made["question"]) == (single.text, single.question), line
        assert made["fusion"] == pytest.approx(single.sensor_shares, abs=1e-5)
        assert made["notes"] == list(single.notes)
        assert len(made["masks"]) == len(single.masks)
        for mask, other in zip(made["masks"], single.masks, strict=True):
            assert mask["box"] == (None if other.box is None else list(other.box))
            assert mask["score"] == pytest.approx(other.score, abs=1e-4)
            (row, column), (height, width) = other.offset, other.array.shape
            placed = np.zeros(decode_rle(mask).shape, bool)
            placed[row : row + height, column : column + width] = other.array
            np.testing.assert_array_equal(decode_rle(mask), placed)


def test_an_image_that_does_not_fit_into_memory_is_asked_about_as_alone(folder, tmp_path, monkeypatch):
    """Words from a view of the whole, masks window by window into the maps."""
    monkeypatch.setattr(view_module, "WHOLE", 2000)
    line = {"id": "large", "question": QUESTION, **pair("large"), "maps": str(tmp_path / "maps")}
    _, found = answered(folder, tmp_path / "answers.jsonl", [line])
    answer, _ = ask_large(model(), QUESTION, **{n: folder / line[n] for n in support.BOTH}, max_new=NEW)
    assert found["large"]["answer"] == answer.text
    assert {Path(f).parent for f in found["large"]["files"]} == {tmp_path / "maps"}
    with rasterio.open(tmp_path / "maps" / "mask_1.tif") as file:
        drawn = file.read(1)
    assert drawn.shape == (56, 56)
    assert found["large"]["scene"]["share"] == pytest.approx((drawn == 1).mean(), abs=1e-6)


def test_what_a_line_tells_of_its_images_is_used(folder, tmp_path):
    """Named bands, and a file for each band: an image, not dates."""
    with rasterio.open(folder / "a_s2.tif") as file:
        names, profile, data = file.descriptions, file.profile, file.read()
    for name, band in zip(names, data, strict=True):
        with rasterio.open(folder / f"a_{name}.tif", "w", **{**profile, "count": 1}) as file:
            file.write(band, 1)
    each = {"bands": {name: f"a_{name}.tif" for name in names}, "sensor": "s2_l2a"}
    lines = [{"id": "plain", "question": QUESTION, "optical": "a_s2.tif"},
             {"id": "told", "question": QUESTION, "optical": {"file": "a_s2.tif", "sensor": "s2_l2a"}},
             {"id": "apart", "question": QUESTION, "optical": each}]  # fmt: skip
    _, found = answered(folder, tmp_path / "answers.jsonl", lines)
    for name in ("told", "apart"):
        assert found[name]["answer"] == found["plain"]["answer"]
        assert [m["counts"] for m in found[name]["masks"]] == [m["counts"] for m in found["plain"]["masks"]]
