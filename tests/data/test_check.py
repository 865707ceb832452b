"""Record files checked before a run depends on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import support
from PIL import Image

from earthmind_jax.config import DataConfig
from earthmind_jax.data.check import check_records, line_problems
from earthmind_jax.data.records import read_jsonl, read_lines
from earthmind_jax.data.simulate import make_questions, make_scene, write_scene
from earthmind_jax.data.usable import require_files, usable
from earthmind_jax.errors import UserError

CFG = dataclasses.replace(support.model(), sensors=dataclasses.replace(support.model().sensors, max_tiles=4))
DATA = DataConfig(batch_size=2, text_length=448)
TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]
GOOD = (
    {"id": 1, "turns": [{"question": "Is there a lake?", "answer": "Yes"}]},
    {"id": 2, "optical": "a.png", "turns": [{"question": "Describe {region}", "answer": "A lake", "region": SQUARE}]},
    {
        "id": 3,
        "optical": "wide.png",
        "sar": "wide.png",
        "turns": [{"question": "Show both", "answer": "[SEG] [SEG]", "masks": [SQUARE, "mask.png"]}] * 2,
    },
    {"id": 4, "optical": ["a.png"] * 3, "turns": [{"question": "Show it", "answer": "[SEG]", "mask": SQUARE}]},
)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("a", (32, 32, 3)), ("wide", (32, 64, 3)), ("mask", (32, 64))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "torn.tif").write_bytes(b"II*\0 and no more")
    write(tmp_path, *GOOD)
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "r.jsonl").write_text(text + "\n")
    return folder / "r.jsonl"


def test_what_a_file_holds(folder):
    report = check_records(folder / "r.jsonl", CFG, DATA, support.tokenizer())
    assert report.problems == ()
    assert report.counts["lines"] == 4
    assert (report.counts["turns"], report.counts["masks"], report.counts["regions"]) == (5, 5, 1)
    assert report.counts["sensors"] == {"none": 1, "optical": 2, "optical and sar": 1}
    assert report.counts["dates"] == {"0": 1, "1": 2, "3": 1}
    assert report.counts["tiles"] == {"0": 1, "1": 1, "3": 2}
    assert 0 < report.tokens["least"] < report.tokens["median"] < report.tokens["most"] <= 448
    assert 0 < report.padding["training"] < report.padding["fixed"] < 1
    assert json.loads(json.dumps(report.to_dict()))["broken"] == 0
    plain = check_records(folder / "r.jsonl", CFG, DATA)
    assert plain.counts == report.counts
    assert plain.tokens is plain.padding is None


WRONG = {
    "{": ["is not JSON"],
    '{"id": 9, "turn": [], "turns": []}': ["unknown field 'turn'", "field 'turns' must be a list"],
    '{"id": null, "sar": 3, "turns": [{"question": ""}]}': ["field 'id'", "field 'sar'", r"'turns[0].question'"],
    '{"id": 9, "optical": "absent.png", "turns": [{"question": "a", "answer": "[SEG]", "mask": "absent_mask.png"}]}': [
        "field 'optical': there is no file", "absent_mask.png",
    ],
    '{"id": 9, "sar": "torn.tif", "turns": [{"question": "a"}]}': ["field 'sar': "],
    '{"id": 9, "optical": ["a.png", "wide.png", "gone.png"], "turns": [{"question": "a"}]}': [
        "field 'optical[1]': ", "field 'optical[2]': there is no file",
    ],
    '{"id": 9, "optical": "a.png", "turns": [{"question": "a", "answer": "[SEG] [SEG]", "masks": ["mask.png", '
    '{"size": [3, 3], "counts": [8]}]}]}': ["field 'turns[0].masks[0]': ", "field 'turns[0].masks[1]': "],
    '{"id": 9, "turns": [{"question": "a"}, {"question": "b", "answer": "[SEG]"}]}': [
        "field 'turns[0].answer' is missing", "'turns[1].answer' has 1 [SEG] but there are 0 masks",
    ],
    '{"id": 9, "turns": [{"question": "a", "region": [[0, 0, 1, 1, 0, 1]]}]}': ["the record has no image"],
}  # fmt: skip


def test_every_problem_is_told(folder):
    path = write(folder, GOOD[0], *WRONG, GOOD[1])
    report = check_records(path, CFG, DATA)
    assert report.broken == len(WRONG)
    for number, told in enumerate(WRONG.values(), 2):
        found = [p for p in report.problems if p.startswith(f"{path} line {number}")]
        assert len(found) == len(told), found
        for problem, words in zip(found, told, strict=True):
            assert words in problem
    assert report.counts["lines"] == len(WRONG) + 2
    assert report.counts["turns"] == 2


MASKS = {
    "[[100, 100, 120, 100, 120, 120]]": "its polygons lie outside the image",
    "[[NaN, 1, 3, 1, 3, 3]]": "a polygon is a list of at least three points",
    f"[[1{'0' * 400}, 1, 3, 1, 3, 3]]": "a polygon is a list of at least three points",
    '{"size": [1000000000, 1000000000], "counts": [1000000000000000000]}': "is too large for a mask",
    '"nan.npy"': "each a finite one",
    '"text.npy"': "must be of numbers",
    f'"{"x" * 300}.png"': "is no path that a file can have",
    '{"file": "a\\u0000.png", "value": 1}': "is no path that a file can have",
}


def test_masks_that_are_none(folder):
    np.save(folder / "nan.npy", np.full((30, 40), np.nan))
    np.save(folder / "text.npy", np.array([["a"]]))
    turn = '{"question": "a", "answer": "[SEG]", "mask": %s}'
    path = write(folder, *('{"id": 9, "optical": "a.png", "turns": [%s]}' % (turn % mask) for mask in MASKS))
    problems = check_records(path, CFG, DATA).problems
    assert len(problems) == len(MASKS)
    for number, (problem, told) in enumerate(zip(problems, MASKS.values(), strict=True), 1):
        assert problem.startswith(f"{path} line {number}")
        assert told in problem
        assert len(problem) < 1000


def test_lines_that_are_no_record_are_told_in_few_words(folder):
    path = write(
        folder, "[" * 100_000, "9" * 10_000, json.dumps([{"id": "x" * 10_000}] * 3), '{"id": ["%s"]}' % ("x" * 9999)
    )
    told = ["brackets without end", "without end", "not a list of 3; a record file has one object in each line", "'id'"]
    problems = check_records(path, CFG, DATA).problems
    assert all(words in "".join(problems) for words in told)
    assert all(len(problem) < 1000 for problem in problems)


def test_conversations_that_are_too_long(folder):
    path = write(folder, GOOD[0], {"id": 7, "turns": [{"question": "lake " * 600, "answer": "Yes"}]})
    assert check_records(path, CFG, DATA).problems == ()
    (problem,) = check_records(path, CFG, DATA, support.tokenizer()).problems
    assert problem.startswith(f"{path} line 2: the conversation has")


def test_images_of_too_many_tiles(folder):
    data = dataclasses.replace(DATA, tile_buckets=(1, 2))
    for tokenizer in (None, support.tokenizer()):
        report = check_records(folder / "r.jsonl", CFG, data, tokenizer)
        assert [p.split(": ")[0].rpartition(" ")[2] for p in report.problems] == ["3", "4"]
        assert all("needs 3 tiles but the largest bucket holds 2" in p for p in report.problems)


def test_rasters_by_their_headers(tmp_path):
    pytest.importorskip("rasterio")
    scene = make_scene(0, size=32)
    write_scene(scene, tmp_path, "s", questions=make_questions(scene, np.random.default_rng(0)))
    report = check_records(tmp_path / "records.jsonl", CFG, DATA, pixels=True)
    assert report.problems == ()
    assert report.counts["sensors"] == {"optical and sar": 1}
    (line,) = read_lines(tmp_path / "records.jsonl")
    missing = dataclasses.replace(CFG.sensors, optical_bands=("B04", "B03", "B99"))
    (problem,) = line_problems(line, missing)
    assert "field 'optical': " in problem
    assert "no band 'B99'" in problem
    swapped = dataclasses.replace(line.record, optical=line.record.sar, sar=line.record.optical)
    found = list(line_problems(dataclasses.replace(line, record=swapped), CFG.sensors))
    assert len([p for p in found if "swap the two" in p]) == 2
    whole = (tmp_path / "s_s2.tif").read_bytes()
    (tmp_path / "s_s2.tif").write_bytes(whole[: len(whole) // 2])
    damaged = check_records(tmp_path / "records.jsonl", CFG, DATA, pixels=True)
    assert damaged.broken == 1


def test_skipping_broken_lines(folder):
    path = write(folder, GOOD[0], "{", GOOD[1], '{"id": 9, "sar": "absent.png", "turns": [{"question": "a"}]}')
    told: list[str] = []
    assert [r.id for r in usable(path, CFG.sensors, told.append)] == ["1", "2"]
    assert [t.split(":")[0] for t in told[:2]] == ["skipped", "skipped"]
    assert "line 2 is not JSON" in told[0]
    assert "line 4: field 'sar'" in told[1]
    assert told[2].startswith("skipped 2 broken lines")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_jsonl(path)
    write(folder, GOOD[0], '{"id": 9, "sar": "absent.png", "turns": [{"question": "a"}]}')
    with pytest.raises(UserError, match=r"line 2: field 'sar': there is no file '.*absent.png'"):
        require_files(read_jsonl(path))
    write(folder, "{")
    with pytest.raises(UserError, match="no good line"):
        usable(path, CFG.sensors, told.append)


def test_the_command(folder, capsys):
    support.tokenizer().save(folder / "words")
    options = ("--config", TINY, "--tokenizer", folder / "words")
    code, out, err = support.run(capsys, "data", "check", folder / "r.jsonl", *options)
    assert code == 0, err
    assert "optical and sar: 1" in out
    assert "fixed: " in out
    path = write(folder, GOOD[0], "{", "[]")
    code, out, err = support.run(capsys, "data", "check", path, "--json")
    assert code == 2
    assert json.loads(out)["broken"] == 2
    assert len(json.loads(out)["problems"]) == 2
    assert "2 of 3 lines" in err
    code, out, err = support.run(capsys, "data", "check", path, "--skip-broken")
    assert code == 0, err
    assert f"{path} line 3: the record must be an object" in out
    code, _, err = support.run(capsys, "data", "check", write(folder, "{"), "--skip-broken")
    assert code == 2
    code, _, err = support.run(capsys, "data", "check", folder / "absent.jsonl")
    assert (code, len(err.strip().splitlines())) == (2, 1)


def test_repeated_ids_are_told(folder, capsys):
    first, second, *_ = GOOD
    path = write(folder, first, "", second, "{", {**first, "id": "1"}, {**second, "id": 7}, {**first, "id": 1})
    report = check_records(path, CFG, DATA)
    assert (report.broken, report.counts["lines"], report.counts["repeated"]) == (1, 6, 2)
    assert report.repeated == tuple(
        f"{path} line {number}: the id '1' is that of {path} line 1 already." for number in (5, 7)
    )
    write(folder, *({**first, "id": number % 1000} for number in range(1050)))
    code, out, err = support.run(capsys, "data", "check", path)
    assert code == 0, err  # a run learns from both
    assert [line for line in out.splitlines() if " already." in line or "more" in line] == [
        *(f"{path} line {1001 + n}: the id '{n}' is that of {path} line {1 + n} already." for n in range(20)),
        "... and 30 more (--json shows all)",
    ]
    code, out, _ = support.run(capsys, "data", "check", path, "--json")
    assert (json.loads(out)["repeated"], len(json.loads(out)["repeated ids"])) == (50, 50)


def test_half_a_character_is_told(folder):
    path = folder / "r.jsonl"
    turns = '"turns": [{"question": "a", "answer": "\\ud83d\\ude00"}]'  # a pair of halves is one character
    path.write_text(f'{{"id": "\\uD800", {turns}}}\n{{"id": 2, {turns}}}\n{{"id": 3, "\\udfff": 1, {turns}}}\n')
    report = check_records(path, CFG, DATA)
    assert [problem.partition(" holds half of a character")[0] for problem in report.problems] == [
        f"{path} line 1",
        f"{path} line 3",
    ]
    assert report.broken == 2
