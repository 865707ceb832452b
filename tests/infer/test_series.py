"""Several dates of one scene: one grid, a mask on each date, and more dates than the language model sees."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest
import rasterio
import support
from affine import Affine

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.errors import UserError
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.explain_page import page
from earthmind_jax.infer.predictor import EarthMind

QUESTION = "Where is the river?"
PLAIN = support.model()
MEMORY = dataclasses.replace(
    PLAIN, grounding=dataclasses.replace(PLAIN.grounding, memory=True, memory_dim=8, memory_layers=1, memory_mlp=16)
)


class Pointing(Engine):
    """Every answer has a [SEG]."""

    def generate(self, batch, fused, **options):
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg})


@functools.cache
def model(config=MEMORY):
    em = EarthMind(config, Pointing(config, support.params(config), support.tokenizer()), "tiny")
    return dataclasses.replace(em, sensors=support.BOTH, buckets=Buckets((5,), (256,), (5,)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same ground on three days: as it was, with pixels of half the size, and a part of it."""
    root = tmp_path_factory.mktemp("series")
    write_scene(make_scene(3, size=32, gsd=10.0, nodata=0.0), root, "a")
    for sensor in ("s2", "s1"):
        with rasterio.open(root / f"a_{sensor}.tif") as file:
            data, profile, names, tags = file.read(), file.profile, file.descriptions, file.tags()
        here = profile["transform"]
        fine = {"transform": here @ Affine.scale(0.5), "width": 2 * data.shape[2], "height": 2 * data.shape[1]}
        part = {"transform": here @ Affine.translation(10, 0), "width": data.shape[2] - 10}
        days = {
            "20240501": (data, {}),
            "2024-06-11": (data.repeat(2, 1).repeat(2, 2), fine),
            "20240715": (data[:, :, 10:], part),
        }
        for day, (values, changes) in days.items():
            with rasterio.open(root / f"scene_{day}_{sensor}.tif", "w", **{**profile, **changes}) as file:
                file.write(values)
                file.descriptions = names
                file.update_tags(**tags)
    return root


DAYS = ("20240501", "2024-06-11", "20240715")
NAMES = ("2024-05-01", "2024-06-11", "2024-07-15")


def dates(folder, sensor, days=DAYS):
    return [folder / f"scene_{day}_{sensor}.tif" for day in days]


def test_every_date_has_a_mask_on_the_first_dates_grid(folder, tmp_path):
    answer = model().ask(QUESTION, optical=dates(folder, "s2"), sar=dates(folder, "s1"), max_new=6)
    with rasterio.open(folder / "a_s2.tif") as file:
        transform, crs, shape = file.transform, file.crs, file.shape
    assert [mask.date for mask in answer.masks] == list(NAMES)
    for mask in answer.masks:
        assert (mask.transform, mask.crs, mask.probability.shape) == (transform, crs, shape)
    first, same, part = (mask.probability for mask in answer.masks)
    changed = np.abs(first - part).max()
    assert changed > 5e-3
    assert np.abs(first - same).max() < changed / 4  # the same ground, resampled there and back
    assert answer.masks[0].valid.all()
    assert not answer.masks[2].valid[:, :9].any()  # which that day's images do not cover
    assert answer.masks[2].valid[:, 11:].all()
    assert {f"optical {day}" for day in NAMES} | {"optical", "sar"} <= set(answer.pictures)
    files = [path.name for path in answer.save(tmp_path / "out")]
    kinds = (".tif", "_probability.tif")
    assert [f"mask_1_{day}{kind}" for day in NAMES for kind in kinds] == [n for n in files if n.endswith(".tif")]
    told = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert [mask["date"] for mask in told["masks"]] == list(NAMES)
    assert any("2024-07-15" in note for note in told["notes"])


def test_one_optical_image_beside_several_of_sar(folder):
    answer = model().ask(QUESTION, optical=dates(folder, "s2")[0], sar=dates(folder, "s1"), max_new=6)
    assert [mask.date for mask in answer.masks] == list(NAMES)
    assert model().images(dates(folder, "s2")[:1], dates(folder, "s1")[:1]).date == ""


def test_more_dates_than_the_language_model_sees(folder):
    six = [dates(folder, "s1")[i % 2] for i in range(6)]
    answer = model().ask(QUESTION, sar=six, max_new=6)
    assert len(answer.masks) == 6
    assert len({mask.date for mask in answer.masks}) == 6
    changed = model().ask(QUESTION, sar=[*six[:5], dates(folder, "s1")[2]], max_new=6)
    assert changed.text == answer.text
    for mine, other in zip(answer.masks[:5], changed.masks[:5], strict=True):
        np.testing.assert_allclose(mine.probability, other.probability, atol=1e-5)
    assert np.abs(changed.masks[5].probability - answer.masks[5].probability).max() > 1e-4


def test_conversations_and_reasons_about_several_dates(folder):
    given = {"optical": dates(folder, "s2"), "sar": dates(folder, "s1")}
    talk = model().conversation(**given)
    alone = model().ask(QUESTION, **given, max_new=6)
    first = talk.ask(QUESTION, max_new=6)
    assert first.text == alone.text
    for mine, other in zip(first.masks, alone.masks, strict=True):
        np.testing.assert_allclose(mine.probability, other.probability, atol=1e-4)
    assert [m.date for m in talk.ask(QUESTION, max_new=6).masks] == list(NAMES)
    assert talk.zoom((0, 0, 16, 16)).ask(QUESTION, max_new=6).masks[1].probability.shape == (16, 16)
    reason = model().explain(QUESTION, **given, max_new=6)
    assert reason.answer.to_dict() == alone.to_dict()
    assert all(f"mask 1 {day}" in page(reason) for day in NAMES)


def test_dates_that_do_not_fit(folder, tmp_path):
    with pytest.raises(UserError, match="2 optical images but 3 of the other sensor"):
        model().ask(QUESTION, optical=dates(folder, "s2")[:2], sar=dates(folder, "s1"))
    with pytest.raises(UserError, match="list of optical images is empty"):
        model().ask(QUESTION, optical=[])
    write_scene(make_scene(4, size=32, gsd=10.0, nodata=0.0), tmp_path, "elsewhere")
    with pytest.raises(UserError, match="do not overlap"):
        model().ask(QUESTION, optical=[folder / "a_s2.tif", tmp_path / "elsewhere_s2.tif"])
    with pytest.raises(UserError, match=r"none\.tif"):
        model().ask(QUESTION, optical=[folder / "a_s2.tif", tmp_path / "none.tif"])
    small = [np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]
    with pytest.raises(UserError, match="every date must have one size"):
        model().ask(QUESTION, optical=small)


def test_marks_steer_every_date(folder):
    """Each of the first dates hears the mark as a single image does; those beyond are followed from there."""
    given = {"optical": dates(folder, "s2"), "sar": dates(folder, "s1"), "max_new": 6}
    lake = Prompt.from_box(4, 6, 20, 30, name="lake")
    plain, steered = model().ask(QUESTION, **given, marks=lake), model().ask(QUESTION, **given, marks=lake, steer=True)
    assert plain.text == steered.text
    assert [mask.date for mask in steered.masks] == list(NAMES)
    for first, second in zip(plain.masks, steered.masks, strict=True):
        assert np.abs(first.probability - second.probability).max() > 1e-3
    days = [np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8) for i in range(6)]
    given = {"optical": days, "max_new": 6, "marks": lake}
    far = model().ask(QUESTION, **given, steer=True)
    assert len(far.masks) == 6
    near = model().ask(QUESTION, **{**given, "marks": Prompt.point(30, 30)}, steer=True)
    assert np.abs(far.masks[5].probability - near.masks[5].probability).max() > 1e-4


def test_what_is_pointed_at_on_every_date(folder):
    """One mask a date, as of that date alone: the decoder hears the mark and no words."""
    marks = [Prompt.from_box(4, 6, 20, 30, name="lake"), Prompt.point(28, 3)]
    answer = model().segment(optical=dates(folder, "s2"), marks=marks)
    assert [(mask.name, mask.date) for mask in answer.masks] == [(n, d) for n in ("lake", "region2") for d in NAMES]
    for i, images in enumerate((first := model().images(dates(folder, "s2"), None), *first.later)):
        single = dataclasses.replace(images, later=(), date="")
        alone = model().drawn(model().view(single, marks=marks), "")
        for number in range(2):
            found = answer.masks[len(NAMES) * number + i]
            np.testing.assert_allclose(found.probability, alone.masks[number].probability, atol=1e-5)
