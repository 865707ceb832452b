"""Records whose regions point the mask decoder at the masks of the answer."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import support
from PIL import Image

from earthmind_jax.config import DataConfig
from earthmind_jax.data.check import check_records
from earthmind_jax.data.collate import collate, stack
from earthmind_jax.data.encode import encode_sample
from earthmind_jax.data.pipeline import pipeline
from earthmind_jax.data.pointed import CERTAIN, visual_prompts
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import Sample, Turn, parse_record, read_jsonl, record_values
from earthmind_jax.data.sources import Mixture, Packed, is_steered
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import Mark

CONFIG = support.model()
DATA = DataConfig(batch_size=2, text_length=320, masks_per_sample=3, drop_optical=0.0, drop_sar=0.0)
SIDE = CONFIG.grounding.image_size
SQUARE, CORNER = [[10, 4, 30, 4, 30, 20, 10, 20]], [[0, 0, 8, 0, 8, 8, 0, 8]]


def turn(*regions, masks=(SQUARE,), **more):
    shown = {"region": regions[0]} if len(regions) == 1 else {"regions": list(regions)}
    answer = " ".join(["[SEG]"] * len(masks)) or "Yes"
    return {"question": "Show {region}", "answer": answer, "masks": list(masks)} | shown | more


STEERED = [
    turn({"box": [10, 4, 30, 20]}, steer=True),
    turn({"points": [[12.5, 6], [20, 9]], "background": [[2, 2]]}, {"box": [0, 0, 8, 8], "points": [[4, 4]]},
         masks=(SQUARE, CORNER), steer=True),
]  # fmt: skip
OTHERS = [
    turn({"line": [[11, 5], [29, 19]]}, masks=(SQUARE, CORNER), steer=True),
    turn(SQUARE, steer=True),
    turn({"box": [10, 4, 30, 20]}),
]


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def write(folder, *records):
    lines = [{"id": i, "optical": "a.png", "turns": turns} for i, turns in enumerate(records)]
    (folder / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "r.jsonl"


def scaled(*positions):
    return np.array(positions) * SIDE / (40, 24)


def test_marks_reach_the_batch(folder):
    """In pixels of the grounding image, which is square; each with its own mask, one for all, or none."""
    records = read_jsonl(write(folder, STEERED, OTHERS[:2]))
    batch = next(pipeline(records, CONFIG, DATA, support.tokenizer(), shuffle=False, augment=False))
    marks, room = batch.marks, DATA.prompt_points
    assert marks.points.shape == (2, 3, room, 2)
    assert marks.masks.shape == batch.masks.shape
    np.testing.assert_allclose(marks.points[0, 0, :2], scaled((10, 4), (30, 20)))
    np.testing.assert_allclose(marks.points[0, 1, :3], scaled((12.5, 6), (20, 9), (2, 2)))
    np.testing.assert_allclose(marks.points[0, 2, :3], scaled((0, 0), (8, 8), (4, 4)))
    assert [row[ok].tolist() for row, ok in zip(marks.labels[0], marks.valid[0], strict=True)] == [
        [2, 3], [1, 1, 0], [2, 3, 1],
    ]  # fmt: skip
    # A single region goes with both masks; a polygon as its bounds and as a mask.
    along = marks.points[1, 0][marks.valid[1, 0]]
    assert len(along) >= 2
    assert (marks.labels[1, 0][marks.valid[1, 0]] == 1).all()
    np.testing.assert_array_equal(marks.points[1, 0], marks.points[1, 1])
    assert marks.labels[1, 2, :2].tolist() == [2, 3]
    assert marks.masked.tolist() == [[False] * 3, [False, False, True]]
    inside, target = marks.masks[1, 2] > 0, batch.masks[1, 2] > 0.5  # shares of a cell, and the pixel at its centre
    assert inside.sum() > 0.7 * target.sum()
    assert not (inside & ~target).any()
    assert np.abs(marks.masks).max() == CERTAIN


def test_every_batch_of_a_run_has_the_same_shape(folder):
    """Where one record steers, batches of the others have room for marks, too, and "no point at all" in it."""
    plain = read_jsonl(write(folder, OTHERS[2:], OTHERS[2:]))
    assert next(pipeline(plain, CONFIG, DATA, support.tokenizer())).marks is None
    mixed = read_jsonl(write(folder, *[OTHERS[2:]] * 3, STEERED))
    made = pipeline(mixed, CONFIG, DATA, support.tokenizer(), shuffle=False, augment=False)
    first, second = next(made), next(made)
    assert [first.marks.points.shape] * 2 == [second.marks.points.shape, (2, 3, DATA.prompt_points, 2)]
    assert (first.marks.labels == -1).all()
    assert first.marks.valid.sum(-1).tolist() == [[1, 1, 1]] * 2
    assert second.marks.valid.sum(-1).tolist() == [[1, 1, 1], [2, 3, 3]]
    packed = Packed(mixed)
    assert packed.steered
    assert is_steered(Mixture((plain, packed), (1, 1), ("a", "b")))
    assert not is_steered(Mixture((plain, plain), (1, 1), ("a", "b")))


def test_masks_that_are_left_out_take_their_marks_along(folder):
    """Of three masks two are kept, drawn at random: each still has the mark that was written with it."""
    (record,) = read_jsonl(write(folder, STEERED))
    sample, data = load_record(record, CONFIG.sensors), dataclasses.replace(DATA, masks_per_sample=2)
    seen = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        example = encode_sample(sample, CONFIG, data, support.tokenizer(), rng=rng)
        marks = stack([example], CONFIG, data).marks
        for mask, mark, labels in zip(example.masks, example.marks, marks.labels[0], strict=True):
            small = mask[0, :4, :4].any()  # the corner's
            assert mark.bounds[0] < 8 if small else mark.bounds[0] >= 10
            seen.add((bool(small), labels[:3].tolist() == [2, 3, 1]))
    assert seen == {(False, False), (True, True)}


def test_records_say_it_and_are_written_again(folder):
    (record,) = read_jsonl(write(folder, [*STEERED, *OTHERS[2:]]))
    assert [t.steer for t in record.turns] == [True, True, False]
    assert parse_record(record_values(record), record.where, record.root) == record
    assert "steer" not in record_values(record)["turns"][2]


WRONG = {
    "must be true or false, not 'yes'": turn(SQUARE, steer="yes"),
    "one region for all masks or one for each: 2 regions, 1 masks": turn(SQUARE, CORNER, steer=True),
    "one for each: 0 regions": {"question": "a", "answer": "[SEG]", "mask": SQUARE, "steer": True},
    "needs an answer with [SEG]": turn(SQUARE, masks=(), steer=True),
    "lies outside": turn({"points": [[41, 2]]}, steer=True),
    "background only": turn({"background": [[4, 2]]}, steer=True),
    "unknown field 'label'": turn({"points": [[4, 2]], "label": 1}, steer=True),
    "has no pixel": turn({"size": [24, 40], "counts": [960]}, steer=True),
    "has 9 points (two of a box among them) but data.prompt_points 8": turn({"points": [[4, 2]] * 9}, steer=True),
}  # fmt: skip


def test_what_check_says(folder):
    good = check_records(write(folder, STEERED, OTHERS), CONFIG, DATA, support.tokenizer())
    assert good.problems == ()
    assert good.counts["steered"] == 6
    path = write(folder, *([t] for t in WRONG.values()))
    report = check_records(path, CONFIG, DATA)
    assert [p.partition(":")[0] for p in report.problems] == [f"{path} line {i + 1}" for i in range(len(WRONG))]
    for words, problem in zip(WRONG, report.problems, strict=True):
        assert words in problem, problem
    dates = {"id": 1, "optical": ["a.png"] * 2, "turns": STEERED}
    (folder / "r.jsonl").write_text(json.dumps(dates))
    assert all("masks of one image, not of 2 dates" in p for p in check_records(path, CONFIG, DATA).problems)


def test_samples_that_do_not_fit():
    """Samples that were never a record are held to the same."""
    points = np.arange(20).reshape(10, 2) / 2 + 1
    mark = Mark("a", (24, 40), points, np.ones(10, np.int32))
    mask, picture = np.zeros((2, 24, 40), bool), np.zeros((24, 40, 3), np.uint8)
    for marks, words in (((mark,), "Sample 'a': a mark has 10 points"), ((mark,) * 3, "3 marks steer 2 masks")):
        sample = Sample("a", (Turn("Show it", "[SEG] [SEG]", mask, marks=marks),), optical=picture)
        with pytest.raises(UserError, match=words):
            collate([sample], CONFIG, DATA, support.tokenizer())
    wide = dataclasses.replace(DATA, prompt_points=12)
    made = collate([dataclasses.replace(sample, turns=(dataclasses.replace(sample.turns[0], marks=(mark,)),))], CONFIG,
                   wide, support.tokenizer()).marks  # fmt: skip
    np.testing.assert_array_equal(made.points[0, 0, :10], visual_prompts([mark], CONFIG.grounding).points[0, 0, :10])
