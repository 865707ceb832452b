"""What a line of a file of questions may say: broken ones are told, and every option does what it does alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import rasterio
import support
from questions import LINES, NEW, QUESTION, answered, images, model, pair, region, written

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.masks import decode_rle, encode_rle
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks_file import parse_prompts
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer import view as view_module
from earthmind_jax.infer.batch import run
from earthmind_jax.infer.requests import read_requests


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return images(tmp_path_factory.mktemp("batch"))


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
