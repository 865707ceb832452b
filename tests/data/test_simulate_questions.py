"""Answers follow from the masks, and no answer can be guessed."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from earthmind_jax.data.prompts import SEGMENTATION_QUESTIONS
from earthmind_jax.data.simulate import TASKS, Cover, make_questions, make_scene, scene_kind, to_sample
from earthmind_jax.data.simulate.materials import OBJECTS
from earthmind_jax.data.simulate.qa import NOUNS, list_words, place_in_words, sensors_for
from earthmind_jax.data.simulate.questions import ASKED_SHARE, SCENES, counting, segmentation
from earthmind_jax.errors import UserError

BY_NOUN = {noun: cover for cover, nouns in NOUNS.items() for noun in nouns}


@pytest.fixture(scope="module")
def asked():
    rng = np.random.default_rng(11)
    scenes = [make_scene(seed) for seed in range(400)]
    return [(scene, qa) for scene in scenes for qa in make_questions(scene, rng)]


def of(asked, task):
    return [(scene, qa) for scene, qa in asked if qa.task == task]


def text(qa):
    """The answer without its letter."""
    return qa.answer[3:] if qa.options else qa.answer


def noun_in(question):
    """The class that a question is about: the longest noun in it."""
    return BY_NOUN[max((noun for noun in BY_NOUN if noun in question), key=len)]


def test_same_generator_same_questions():
    scene = make_scene(5)
    first = make_questions(scene, np.random.default_rng(2))
    second = make_questions(scene, np.random.default_rng(2))
    told = [[(qa.task, qa.prompt, qa.answer, qa.needs) for qa in questions] for questions in (first, second)]
    assert told[0] == told[1]
    for a, b in zip(first, second, strict=True):
        for name in ("mask", "region"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or np.array_equal(x, y)


def test_every_task_appears_and_can_be_chosen(asked):
    assert {qa.task for _, qa in asked} == set(TASKS)
    scene = make_scene(1)
    chosen = make_questions(scene, np.random.default_rng(0), ["caption", "urban"])
    assert [qa.task for qa in chosen] == ["caption", "urban"]
    with pytest.raises(UserError, match="Did you mean 'caption'"):
        make_questions(scene, np.random.default_rng(0), ["captions"])


def test_form(asked):
    for scene, qa in asked:
        assert set(qa.needs) <= {"optical", "sar"}
        assert "[SEG]" not in qa.question
        assert (qa.mask is not None) == ("[SEG]" in qa.answer)
        assert (qa.region is not None) == ("{region}" in qa.question)
        if qa.options is not None:
            assert qa.options.count(qa.answer) == 1
            assert [o[:3] for o in qa.options] == [f"{letter}. " for letter in "ABCD"[: len(qa.options)]]
            assert len({o[3:] for o in qa.options}) == len(qa.options)
            assert qa.prompt == "\n".join([qa.question, *qa.options])
        for mask in (qa.mask, qa.region):
            if mask is not None:
                assert mask.shape == scene.shape
                assert mask.dtype == bool
                assert mask.any()


@pytest.mark.parametrize("task", ["object_existence", "hallucination_detection"])
def test_yes_and_no(asked, task):
    found = of(asked, task)
    for scene, qa in found:
        assert (text(qa) == "yes") == bool((scene.class_map == noun_in(qa.question)).any())
    share = np.mean([text(qa) == "yes" for _, qa in found])
    assert 0.5 - 2 / len(found) ** 0.5 < share < 0.5 + 2 / len(found) ** 0.5
    letters = np.mean([qa.answer[0] == "A" for _, qa in found])
    assert 0.4 < letters < 0.6


def test_counts(asked):
    found = of(asked, "object_counting")
    numbers = Counter()
    for scene, qa in found:
        cover = noun_in(qa.question)
        assert int(text(qa)) == scene.layout.counts[cover] == sum(t.cover == cover for t in scene.instances)
        numbers[int(text(qa))] += 1
    assert max(numbers.values()) < 0.35 * len(found)
    assert len(numbers) >= 6
    letters = Counter(qa.answer[0] for _, qa in found if qa.options)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 0.4 * sum(letters.values())
    # the right number is not always the lowest or the middle one of the options
    ranks = Counter(sorted(int(o[3:]) for o in qa.options).index(int(text(qa))) for _, qa in found if qa.options)
    assert min(ranks[i] for i in range(4)) > 0.08 * sum(ranks.values())
    rng = np.random.default_rng(0)
    numbers = [counting(scene, rng, choice=False) for scene, _ in found[:40]]
    assert all(qa.options is None for qa in numbers)


def test_scene_kinds(asked):
    kinds = Counter()
    for scene, qa in of(asked, "scene_classification"):
        assert text(qa) == scene_kind(scene)
        kinds[text(qa)] += 1
        share = scene.fractions
        if text(qa) in ("forest", "farmland", "open water", "bare land", "grassland"):
            assert share[SCENES[text(qa)]] >= 0.4
        else:
            assert share[SCENES[text(qa)]] >= 0.05
        for option in qa.options:
            assert option == qa.answer or share[SCENES[option[3:]]] < 0.2
    assert set(kinds) == set(SCENES)
    assert max(kinds.values()) < 0.4 * sum(kinds.values())


def test_spatial_relations(asked):
    answers = Counter()
    for scene, qa in of(asked, "spatial_relationship"):
        first, second = (noun_in(part) for part in qa.question.split(" relative to "))
        (y0, x0), (y1, x1) = (np.argwhere(scene.mask(c)).mean(0) for c in (first, second))
        dx, dy = x0 - x1, y0 - y1
        seen = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
        assert seen in text(qa)
        answers[text(qa)] += 1
    assert min(answers.values()) > 0.15 * sum(answers.values())


def test_segmentation(asked):
    absent = 0
    found = of(asked, "referring_segmentation")
    for scene, qa in found:
        cover = noun_in(qa.question)
        if qa.mask is not None:
            phrase = qa.answer.removeprefix("<p> ").removesuffix(" </p> [SEG].")
            assert qa.answer == f"<p> {phrase} </p> [SEG]."
            assert phrase in qa.question
        if qa.mask is None:
            absent += 1
            assert qa.answer == f"There is no {NOUNS[cover][0]} in this image."
            assert not scene.mask(cover).any()
        else:
            np.testing.assert_array_equal(qa.mask, scene.mask(cover))
            assert qa.mask.mean() >= ASKED_SHARE
    assert 0.08 < absent / len(found) < 0.25
    stems = {q.format(c="water") for q in SEGMENTATION_QUESTIONS}
    assert {qa.question for _, qa in found if qa.question in stems} <= stems


def test_segmentation_of_what_is_not_there():
    """An empty mask in the form of a full one; only by name, and not where everything is there."""
    scenes = [make_scene(seed) for seed in range(20)]
    asked = [(s, qa) for s in scenes for qa in make_questions(s, np.random.default_rng(0), ["absent_segmentation"] * 6)]
    assert 30 < len(asked) < 90  # in half of the cases; none twice
    for scene, qa in asked:
        assert scene.fractions[noun_in(qa.question)] == 0
        assert qa.answer == f"<p> {NOUNS[noun_in(qa.question)][1]} </p> [SEG]."
        assert qa.mask.shape == scene.shape
        assert not qa.mask.any()


def test_segmentation_of_an_object(asked):
    found = of(asked, "object_segmentation")
    assert len(found) > 40
    for scene, qa in found:
        thing = next(o for o in scene.layout.things if np.array_equal(o.mask, qa.mask))
        assert NOUNS[thing.cover][0] in qa.question
        assert qa.answer.endswith(" </p> [SEG].")


def test_a_repeated_task_asks_something_else():
    scene, rng = make_scene(3), np.random.default_rng(0)
    asked = make_questions(scene, rng, ["referring_segmentation"] * 12)
    drawn = [qa.answer for qa in asked if qa.mask is not None]
    assert len(drawn) == len(set(drawn)) > 1


def test_segmentation_of_a_class():
    rng = np.random.default_rng(0)
    scene = make_scene(4)
    for cover in Cover:
        qa = segmentation(scene, rng, cover)
        if scene.mask(cover).any():
            np.testing.assert_array_equal(qa.mask, scene.mask(cover))
        else:
            assert qa is None


def test_descriptions(asked):
    for scene, qa in of(asked, "caption"):
        largest = max((c for c in Cover if c not in OBJECTS and c != Cover.ROAD), key=lambda c: scene.fractions[c])
        assert qa.answer.startswith(f"An area of {NOUNS[largest][1]}")
        for cover in OBJECTS:
            assert (NOUNS[cover][0] in qa.answer) == bool(scene.mask(cover).any())
    for scene, qa in of(asked, "region_description"):
        assert len(np.unique(scene.class_map[qa.region])) == 1
    for scene, qa in of(asked, "route"):
        assert ("no bridge" in qa.answer) == (scene.layout.counts[Cover.BRIDGE] == 0)
    for scene, qa in of(asked, "urban"):
        assert ("no buildings" in qa.answer) == (scene.layout.counts[Cover.BUILDING] == 0)


def test_needs_follow_the_clouds(asked):
    able = defaultdict(list)
    for scene, qa in of(asked, "referring_segmentation"):
        able[scene.cloud_kind].append("optical" in qa.needs)
    assert np.mean(able["clear"]) > 0.9
    assert np.mean(able["cloudy"]) < 0.4
    scene = make_scene(2, cloud="clear", nodata=0.0)
    assert all("optical" in sensors_for(scene, cover) for cover in Cover)


def test_words():
    assert place_in_words((0, 0, 4, 4), (30, 30)) == "in the upper left"
    assert place_in_words((13, 26, 15, 30), (30, 30)) == "at the bottom"
    assert [list_words(w) for w in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_sample_for_the_pipeline():
    scene = make_scene(9, nodata=1.0)
    questions = make_questions(scene, np.random.default_rng(0))
    sample = to_sample(scene, questions, "nine")
    assert [turn.question for turn in sample.turns] == [qa.prompt for qa in questions]
    for turn in sample.turns:
        assert len(turn.masks) == turn.answer.count("[SEG]")
    assert list(sample.sar) == ["VV", "VH"]
    assert len(sample.optical) == 12
    assert all(np.isfinite(band).all() for band in (*sample.optical.values(), *sample.sar.values()))
