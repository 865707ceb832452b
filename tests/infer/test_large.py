"""Scenes that do not fit into memory, in every way of asking: the whole with fewer pixels, parts of it as they are."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import rasterio
import scenes
import support
from affine import Affine

from earthmind_jax.data import dates, read
from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.encode import sensor_frames
from earthmind_jax.data.read import load_images
from earthmind_jax.errors import UserError
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer import overview, view
from earthmind_jax.infer.conversation_views import seen_from
from earthmind_jax.infer.explain_page import page
from earthmind_jax.infer.overview import look_side
from earthmind_jax.infer.scene_read import SceneReader

QUESTION = "Where is the lake?"
SIZE = (101, 150)
NEW = {"max_new": 6}


@functools.cache
def model():
    """With one shape for all requests."""
    return dataclasses.replace(scenes.model(), sensors=support.BOTH, buckets=Buckets((2,), (512,), (2,)))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return scenes.write(tmp_path_factory.mktemp("large"), "a", SIZE)


@pytest.fixture(scope="module")
def images(pair):
    """The whole in memory."""
    return load_images(pair, model().config.sensors)


@pytest.fixture
def small(monkeypatch):
    """Limits below the scene, as its windows are read: (rows, columns) of each."""
    for module in (view, read, dates):
        monkeypatch.setattr(module, "MOST_PIXELS", 8000)
    monkeypatch.setattr(view, "WHOLE", 4000)
    monkeypatch.setattr(overview, "PICTURED", 16)
    shapes, images = [], SceneReader.images
    monkeypatch.setattr(SceneReader, "images", lambda *a: shapes.append((made := images(*a)).shape) or made)
    return shapes


def lies_on_the_scene(mask, path):
    """A reduced mask covers exactly the ground of the file, and its box is told in the file's pixels."""
    with rasterio.open(path) as file:
        transform, crs = file.transform, file.crs
    rows, columns = mask.array.shape
    assert max(rows, columns) == look_side(model().config) < max(SIZE)
    assert mask.crs == crs
    for corner in ((0, 0), (1, 0), (0, 1)):
        there = mask.transform @ (corner[0] * columns, corner[1] * rows)
        assert there == pytest.approx(transform @ (corner[0] * SIZE[1], corner[1] * SIZE[0]), abs=1e-6)
    if mask.box is not None:
        inside = np.argwhere(mask.array) * (SIZE[0] / rows, SIZE[1] / columns)
        assert mask.box[:2] == pytest.approx(inside.min(0)[::-1])
        assert mask.to_dict()["scale"] == [SIZE[0] / rows, SIZE[1] / columns]


def test_words_and_reasons_come_from_one_look_at_the_whole(pair, small):
    em = model()
    answer = em.ask(QUESTION, **pair, **NEW)
    lies_on_the_scene(answer.masks[0], pair["optical"])
    assert any(note.startswith("Seen with 43 x 64 pixels") and "101 x 150" in note for note in answer.notes)
    assert "segment_scene" in answer.notes[-1]
    reason = em.explain(QUESTION, **pair, **NEW)
    assert reason.answer.text == answer.text
    np.testing.assert_allclose(reason.answer.masks[0].probability, answer.masks[0].probability, atol=1e-5)
    assert set(reason.alone) == {"optical", "sar"}
    text = page(reason)
    assert "150 x 101 pixels" in text
    assert text.count("Seen with 43 x 64 pixels") == 2
    drawn = em.explain("lake", **pair, segment=True, **NEW)
    lies_on_the_scene(drawn.answer.masks[0], pair["optical"])
    with pytest.raises(UserError, match="segment_scene"):
        em.segment("lake", **pair)


def test_parts_are_read_alone_and_those_too_large_are_reduced_or_refused(pair, small):
    em = model()
    wide = (3, 10, 90, 120)
    answer = em.ask(QUESTION, **pair, window=wide, **NEW)
    mask = answer.masks[0]
    assert mask.offset == wide[:2]
    with rasterio.open(pair["optical"]) as file:
        corner = file.transform @ (130, 93)
    assert mask.transform @ mask.array.shape[::-1] == pytest.approx(corner, abs=1e-6)
    with pytest.raises(UserError, match="90 x 120 pixels, too many"):
        em.segment("lake", **pair, window=wide)
    apart = [Prompt.point(5, 5), Prompt.point(145, 95)]
    for ask in (lambda: em.segment(**pair, marks=apart), lambda: em.ask(QUESTION, **pair, marks=apart)):
        with pytest.raises(UserError, match="closer together"):
            ask()
    small.clear()
    near = em.segment(**pair, marks=Prompt.point(120, 60), **NEW)
    assert near.masks[0].array.shape == (32, 32)
    assert small == [(32, 32)]


def test_a_conversation_about_a_large_scene(pair, images, small):
    em, window = dataclasses.replace(model(), buckets=Buckets((1,), (512,))), (20, 60, 40, 50)
    talk = em.conversation(**pair)
    assert small == []
    whole = talk.ask(QUESTION, **NEW)
    lies_on_the_scene(whole.masks[0], pair["optical"])
    assert "Masks are drawn from 43 x 64 pixels at one look; zoom in" in whole.notes[-1]
    count = len(small)
    near = talk.zoom(window).ask(QUESTION, **NEW)
    assert small[count:] == [(40, 50)]
    part = images.crop((slice(20, 60), slice(60, 110)))
    assert near.masks[0].transform == part.transform
    frames, _ = sensor_frames(*part.pictures["optical"], "optical", em.config.sensors)
    np.testing.assert_array_equal(near.pictures["optical"], frames[0])
    point = Prompt.point(120, 60, name="pond")
    count = len(small)
    marked = talk.whole().ask("What is {pond}?", marks=point, **NEW)
    assert talk.window is None
    assert small[count:] == [(32, 32)]
    alone = em.part(pair["optical"], pair["sar"], marks=point, closer=True)
    assert (marked.offset, marked.masks[0].transform) == (alone.offset, alone.images.transform)
    assert talk.turns[-1].question == "What is region1?"
    assert "around what is pointed at" in "".join(marked.notes)
    talk.ask(QUESTION, **NEW)  # the region is seen in the whole, too
    assert len(small) == count + 2  # once by each of the two, and nothing else was read again
    with pytest.raises(UserError, match="Question 3 speaks of a region that lies outside"):
        talk.zoom((*window[:2], 10, 10)).ask(QUESTION, **NEW)
    with pytest.raises(UserError, match="lies too far apart"):
        talk.whole().ask("What?", marks=[Prompt.point(5, 5), Prompt.point(145, 95)])


def test_regions_between_views():
    """A small one is not lost in a view with larger pixels, one of larger pixels has no holes in finer ones."""
    region = np.zeros((10, 10), bool)
    region[7, 3] = True
    seen = seen_from(region, (20, 40, 10, 10), (0, 0, 100, 100), (10, 10))
    np.testing.assert_array_equal(np.argwhere(seen), [[2, 4]])
    fine = seen_from(seen, (0, 0, 100, 100), (15, 35, 20, 20), (20, 20))
    np.testing.assert_array_equal(np.argwhere(fine)[[0, -1]], [[5, 5], [14, 14]])
    assert fine.sum() == 100
    assert not seen_from(region, (20, 40, 10, 10), (60, 60, 40, 40), (40, 40)).any()


def test_dates_of_a_large_scene(pair, small, tmp_path, monkeypatch):
    """A part of every date is as the same part of the whole; the later date lies on a grid of its own."""
    files = {}
    for name, path in pair.items():
        with rasterio.open(path) as file:
            data, profile, names, tags = file.read(), file.profile, file.descriptions, file.tags()
        here = profile["transform"]
        fine = {"transform": here @ Affine.scale(0.5), "width": 2 * data.shape[2], "height": 2 * data.shape[1]}
        later = tmp_path / f"20240611_{name}.tif"
        with rasterio.open(later, "w", **{**profile, **fine}) as file:
            file.write(data.repeat(2, 1).repeat(2, 2))
            file.descriptions = names
            file.update_tags(**tags)
        files[name] = [path, later]
    assert [view.most_whole(count) for count in (1, 2, 3)] == [4000, 4000, 8000 // 3]
    em, window = model(), (20, 60, 32, 40)
    with monkeypatch.context() as large:
        for module in (view, read, dates):
            large.setattr(module, "MOST_PIXELS", 10**6)
        large.setattr(view, "WHOLE", 10**6)
        images = em.images(files["optical"], files["sar"]).crop((slice(20, 52), slice(60, 100)))
    small.clear()
    part = em.part(files["optical"], files["sar"], window=window)
    assert small == [(32, 40)]
    for mine, other in zip((part.images, *part.images.later), (images, *images.later), strict=True):
        assert (mine.date, mine.transform) == (other.date, other.transform)
        for name, (bands, valid) in mine.pictures.items():
            np.testing.assert_array_equal(valid, other.pictures[name][1])
            for band, values in bands.items():
                np.testing.assert_allclose(values, other.pictures[name][0][band], atol=1e-3)  # of up to 10 dB a pixel
    answer = em.ask(QUESTION, **files, **NEW)
    assert len(answer.masks) == 2
    for mask in answer.masks:
        lies_on_the_scene(mask, pair["optical"])
    with pytest.raises(UserError, match="2 dates in memory at once"):
        em.segment("lake", **files)
    with rasterio.open(files["sar"][1], "r+") as file:
        file.transform = file.transform @ Affine.translation(5000, 0)
    with pytest.raises(UserError, match=r"covers 0\.0%"):
        em.part(files["optical"], files["sar"], window=window)
