"""Turns of a conversation against the whole prompt run from scratch, and windows in and out of it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import support
from rasterio.crs import CRS
from rasterio.transform import from_origin

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.read import Images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import WGS84, Grid, project, to_map
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer.conversation import Conversation
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.models import families

NEW = 7
QUESTIONS = ("Is there a lake in the image?", "Where is the river?", "Show the ships near the harbour, all of them.")


class Watched(Engine):
    """Counts what is encoded, can force a [SEG] into every answer, and can run every prompt from scratch, too."""

    compare = point = False
    encoded = looked = 0

    def generate(self, batch, fused, *, kept=None, **options):
        options |= {"forced": {1: self.config.tokens.seg}} if self.point else {}
        options |= {"keep_logits": True}
        saved = 0 if kept is None else kept.shared(self.config.lm.rope, batch)
        scratch = super().generate(batch, fused, **options) if self.compare else None
        made = super().generate(batch, fused, kept=kept, **options)
        self.runs.append((made, scratch, saved, int(batch.lengths[0])))
        return made

    def encode(self, *args):
        self.encoded += 1
        return super().encode(*args)

    def pyramids(self, *args):
        self.looked += 1
        return super().pyramids(*args)


def family(name, **rope):
    tiny = families.FAMILIES[name].tiny
    lm = dataclasses.replace(tiny, rope=dataclasses.replace(tiny.rope, **rope))
    template = "internvl2_5" if name == "internlm2" else families.FAMILIES[name].template
    return dataclasses.replace(support.model(grounding=None), lm=lm, template=template)


CASES = {
    "qwen2": support.model(grounding=None),
    "phi3": family("phi3", original_max_position=135),
    "internlm2": family("internlm2", max_position=265),
}
"""The rotary frequencies of the last two change between the second and the third turn; InternVL2.5's 8B has InternLM2
and a template whose separator is part of the suffix."""


def images(seed=0, size=32, sensors=support.BOTH, place=False):
    sample = support.sample(seed, sensors, size=size)
    pictures = {name: (getattr(sample, name), None) for name in sensors}
    grid = (from_origin(5e5, 5e6, 10, 10), CRS.from_epsg(32632)) if place else (None, None)
    return Images(pictures, *grid)


@functools.cache
def watched(config):
    return Watched(config, support.params(config), support.tokenizer())


def model(config=None, **settings):
    engine = watched(config or support.model())
    engine.runs, engine.compare, engine.point = [], False, False
    engine.encoded = engine.looked = 0
    vars(engine).update(settings)
    return EarthMind(engine.config, engine, buckets=Buckets((1,), (256, 512)))


def chat(**options):
    return Conversation(model(), images(**options))


def near(first, second):
    """Equal to within float32's rounding of sums in another order."""
    size = max(1.0, float(np.abs(second).max()))
    np.testing.assert_allclose(np.asarray(first) / size, np.asarray(second) / size, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_turn_is_that_of_the_whole_prompt_from_scratch(name):
    config = CASES[name]
    talk = Conversation(model(config, compare=True), images())
    for question in QUESTIONS:
        talk.ask(question, max_new=NEW)
    runs, rope = talk.model.engine.runs, config.lm.rope
    assert len(runs) == 3
    for made, scratch, _, _ in runs:
        assert made.ids == scratch.ids
        near(made.logits, scratch.logits)
        near(made.hidden, scratch.hidden)
    lengths, saved = [run[3] for run in runs], [run[2] for run in runs]
    assert saved[1] >= lengths[0]  # no more than the new turn is prefilled
    if rope.kind == "default":
        assert saved[2] >= lengths[1]
    else:
        switch = rope.original_max_position if rope.kind == "longrope" else rope.max_position
        assert lengths[1] <= switch < lengths[2]
        assert saved[2] == 0  # keys of the other frequencies are no use


def test_the_first_turn_is_a_single_question():
    alone = model().look(images(), model().turn(QUESTIONS[1], images()), NEW)
    first = chat().ask(QUESTIONS[1], max_new=NEW)
    assert first.text == alone.text
    np.testing.assert_allclose(first.fusion, alone.fusion, atol=1e-6)


def test_masks_of_later_turns_come_from_the_same_features():
    em = model(point=True)
    talk = Conversation(em, images())
    answers = [talk.ask(question, max_new=NEW) for question in QUESTIONS]
    assert (em.engine.encoded, em.engine.looked) == (1, 1)
    assert all(len(answer.masks) >= 1 for answer in answers)
    alone = em.look(images(), em.turn(QUESTIONS[0], images()), NEW)
    np.testing.assert_allclose(answers[0].masks[0].probability, alone.masks[0].probability, atol=1e-4)
    assert np.abs(answers[0].masks[0].probability - answers[2].masks[0].probability).max() > 1e-4


def test_a_window_is_seen_as_if_it_had_been_the_image():
    """The same fused tokens, history and question, from the cropped image alone."""
    em = model(compare=True)
    talk = Conversation(em, images(size=64))
    talk.ask(QUESTIONS[0], max_new=NEW)
    whole = talk.ask(QUESTIONS[1], max_new=NEW)
    talk.zoom((16, 8, 32, 40))
    assert talk.window == (16, 8, 32, 40)
    near_by = talk.ask(QUESTIONS[1], max_new=NEW)
    for made, scratch, _, _ in em.engine.runs:
        assert made.ids == scratch.ids
        near(made.logits, scratch.logits)
    assert em.engine.runs[-1][2] < 40  # the image's own tokens are others
    cut = images(size=64).crop((slice(16, 48), slice(8, 48)))
    np.testing.assert_array_equal(near_by.pictures["optical"], em.look(cut, em.turn("x", cut), 2).pictures["optical"])
    first = em.look(cut, em.turn(QUESTIONS[1], cut), NEW)
    np.testing.assert_allclose(near_by.fusion, first.fusion, atol=1e-6)
    assert np.abs(near_by.fusion - whole.fusion).max() > 1e-4
    back = talk.zoom_out()
    assert back.window is None
    np.testing.assert_array_equal(talk.ask(QUESTIONS[2], max_new=NEW).fusion, whole.fusion)
    assert [turn.question for turn in talk.turns] == [QUESTIONS[0], QUESTIONS[1], QUESTIONS[1], QUESTIONS[2]]


def test_features_of_a_window_are_kept():
    em = model(point=True)
    talk = Conversation(em, images(size=64))
    for window in ((0, 0, 32, 32), (32, 32, 32, 32), (0, 0, 32, 32)):
        answer = talk.whole().zoom(window).ask(QUESTIONS[0], max_new=2)
        assert answer.masks
        for mask in answer.masks:  # told in pixels of the whole image, as of a window that is asked about
            assert mask.offset == window[:2]
    assert em.engine.encoded == 2
    assert all(mask.offset == (0, 0) for mask in talk.whole().ask(QUESTIONS[0], max_new=2).masks)


def test_windows_on_the_map():
    talk = chat(size=64, place=True)
    grid = Grid(talk.images.transform, talk.images.crs, 64, 64)
    columns, rows = np.array([8.5, 39.5]), np.array([48.5, 16.5])
    x, y = to_map(grid.transform, columns, rows)
    talk.zoom((x[0], y[0], x[1], y[1]), crs="EPSG:32632")
    assert talk.window == (16, 8, 33, 32)
    lon, lat = project(grid.crs, WGS84, x, y)
    row, column, height, width = talk.zoom((lon[0], lat[0], lon[1], lat[1]), crs="EPSG:4326").window
    assert abs(row - 16) <= 1
    assert abs(column - 8) <= 1
    assert abs(height - 33) <= 2
    assert abs(width - 32) <= 2
    mask_of = talk.ask(QUESTIONS[0], max_new=2)
    assert mask_of.pictures["optical"].shape == (height, width, 3)
    assert talk._views.of(talk.window).images.transform.c == pytest.approx(5e5 + 10 * column)


def test_regions_move_with_the_window():
    talk = chat(size=64)
    region = np.zeros((64, 64), bool)
    region[20:30, 20:30] = True
    talk.ask("What is {region}?", region=region, max_new=NEW)
    talk.zoom((16, 16, 32, 32)).ask(QUESTIONS[0], max_new=NEW)
    with pytest.raises(UserError, match="Question 1 speaks of a region"):
        talk.whole().zoom((40, 40, 24, 24)).ask(QUESTIONS[0], max_new=NEW)
    inner = np.ones((8, 8), bool)
    talk.whole().zoom((20, 20, 8, 8)).ask("And {region}?", region=inner, max_new=NEW)
    (placed,) = talk.whole()._shown(talk.turns[-1], 3).regions
    np.testing.assert_array_equal(np.argwhere(placed)[[0, -1]], [[20, 20], [27, 27]])


def test_without_an_image():
    talk = Conversation(model(), None)
    answers = [talk.ask(question, max_new=NEW) for question in QUESTIONS[:2]]
    alone = model().look(None, model().turn(QUESTIONS[0], None), NEW)
    assert answers[0].text == alone.text
    assert answers[1].fusion is None
    with pytest.raises(UserError, match="no image to zoom"):
        talk.zoom((0, 0, 1, 1))
    with pytest.raises(UserError, match="no image to point at"):
        talk.ask("What is {region}?", region=np.ones((4, 4), bool))


def test_an_interrupted_turn_leaves_the_conversation_as_it_was():
    em = model(point=True)
    talk = Conversation(em, images())
    first = talk.ask(QUESTIONS[0], max_new=NEW)
    kept, em.engine._decode = em.engine._decode, None
    with pytest.raises(TypeError):
        talk.ask(QUESTIONS[1], max_new=NEW)
    em.engine._decode = kept
    again = talk.ask(QUESTIONS[1], max_new=NEW)
    other = Conversation(em, images())
    assert other.ask(QUESTIONS[0], max_new=NEW).text == first.text
    assert other.ask(QUESTIONS[1], max_new=NEW).text == again.text
    assert len(talk.turns) == 2


def test_at_the_end_of_the_models_reach():
    config = dataclasses.replace(support.model(grounding=None), max_length=200)
    talk = Conversation(model(config), images())
    said = [talk.ask(question, max_new=NEW).text for question in QUESTIONS[:2]]
    with pytest.raises(UserError, match="reached the 200 tokens that the model can read; start a new conversation"):
        talk.ask(" ".join(QUESTIONS * 2), max_new=NEW)
    assert [turn.answer for turn in talk.turns] == said
    with pytest.raises(UserError, match="ask a shorter question"):
        Conversation(talk.model, images()).ask("river " * 400)


@pytest.mark.parametrize(
    ("place", "crs", "says"),
    [
        ((0, 0, 65, 10), None, "not inside the image of 64 x 64"),
        ((-1, 0, 5, 5), None, "not inside"),
        ((0, 0, 0, 5), None, "not inside"),
        ((0, 0, 5), None, "four whole numbers"),
        ((0, 0, 5.5, 5), None, "four whole numbers"),
        ((0, float("nan"), 5, 5), None, "four whole numbers"),
        (("0", 0, 5, 5), None, "four whole numbers"),
        ((9.0, 45.0, 8.0, 46.0), "EPSG:4326", "each below its opposite"),
        ((100.0, 10.0, 101.0, 11.0), "EPSG:4326", "not on the image"),
        ((9.0, 45.0, 9.1, 45.1), "EPSG:99999", "no known"),
        ((9.0, 45.0, float("inf"), 45.1), "EPSG:4326", "A box is"),
    ],
)
def test_places_that_cannot_be_looked_at(place, crs, says):
    talk = chat(size=64, place=True)
    with pytest.raises(UserError, match=says):
        talk.zoom(place, crs=crs)
    assert talk.window is None


def test_a_picture_has_no_map():
    with pytest.raises(UserError, match="no georeference"):
        chat().zoom((0.0, 0.0, 1.0, 1.0), crs="EPSG:4326")
    with pytest.raises(UserError, match="nothing to zoom out of"):
        chat().zoom_out()
    with pytest.raises(UserError, match="The question is empty"):
        chat().ask("  ")


def test_regions_are_counted_through_the_conversation():
    """A name of the second turn is what the model calls it there, and the answer says which is which."""
    talk = chat()
    first = talk.ask("What is {lake}?", max_new=NEW, marks=Prompt.from_box(2, 2, 9, 9, name="lake"))
    second = talk.ask("Is {wood} larger?", max_new=NEW, marks=[Prompt.point(20, 20, name="wood"), Prompt.point(3, 30)])
    assert [turn.question for turn in talk.turns] == ["What is region1?", "Is region2 larger?"]
    assert [mark.name for mark in first.marks] == ["lake"]
    assert [mark.name for mark in second.marks] == ["wood", "region3"]
    assert talk.ask("And here?", max_new=NEW).marks == ()


def test_masks_of_a_large_image_are_said_to_be_coarse():
    talk = Conversation(model(point=True), images(size=48))
    assert "drawn from 48 x 48 pixels at one look" in talk.ask(QUESTIONS[0], max_new=NEW).notes[-1]
    near_by = talk.zoom((8, 8, 32, 32)).ask(QUESTIONS[0], max_new=NEW)
    assert near_by.masks
    assert not any("at one look" in note for note in near_by.notes)
