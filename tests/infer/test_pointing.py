"""Pointing at places of a scene: what the language model reads, what the mask decoder hears, and where it lands."""

from __future__ import annotations

import copy
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
import support
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.data.collate import Buckets
from earthmind_jax.data.pointed import visual_prompts
from earthmind_jax.data.read import Images
from earthmind_jax.data.records import Sample, Turn, parse_record, record_values
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.errors import UserError
from earthmind_jax.geo.marks import place
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.infer import pointing
from earthmind_jax.infer import view as view_module
from earthmind_jax.infer.drawing import UNPOINTED
from earthmind_jax.infer.marks import grid_of, regions
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.scene_read import SceneReader

CONFIG = support.model()
BUCKETS = Buckets((1,), (128, 256))
RNG = np.random.default_rng(0)
SCENE = {name: RNG.integers(0, 256, (32, 32, 3), np.uint8) for name in support.BOTH}
LARGE = {name: RNG.integers(0, 256, (80, 100, 3), np.uint8) for name in support.BOTH}
LAKE = Prompt.from_box(4, 6, 20, 30, name="lake")


@pytest.fixture(scope="module")
def model():
    """The tiny model, which says ``[SEG] [SEG]`` first whatever it is asked."""
    made = EarthMind.from_params(CONFIG, support.params(CONFIG), support.tokenizer())
    seg = CONFIG.tokens.seg
    made.engine.generate = functools.partial(made.engine.generate, forced={0: seg, 2: seg})
    made.buckets, made.sensors = BUCKETS, support.BOTH
    return made


def ask(model, question="What is it?", **options):
    return model.ask(question, **{**SCENE, "max_new": 4, **options})


def test_several_regions_in_one_question():
    first, second = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    first[:8, :8], second[16:, 24:] = True, True
    both = Turn("Does {region} touch {region}?", "No", region=(first, second))
    turns = (both, Turn("Is {region} a lake?", None, region=first))
    batch = support.batch([Sample("a", turns, optical=SCENE["optical"])], text=256)
    index = np.asarray(batch.visual_index[0])
    rows = index[index >= 0]
    grid = CONFIG.vision.grid  # 4 x 4 tokens of 8 x 8 pixels
    assert rows[: grid**2].tolist() == list(range(grid**2))
    assert rows[grid**2 :].tolist() == [0, 11, 15, 0]
    text = support.tokenizer().decode(np.asarray(batch.tokens[0])[: int(batch.lengths[0])].tolist())
    assert "There are 3 part regions" in text
    assert "Does region1 touch region2?" in text
    assert "Is region3 a lake?" in text


def test_regions_in_records(tmp_path):
    line = {"id": "a", "optical": "a.png", "turns": [{"question": "How do {region} and {region} relate?", "answer": "x",
            "regions": [{"box": [0, 0, 8, 8]}, {"points": [[20, 20], [31, 31]]}]}]}  # fmt: skip
    record = parse_record(line, "line 1", tmp_path)
    assert record_values(record)["turns"][0]["regions"] == line["turns"][0]["regions"]
    assert parse_record(record_values(record), "again", tmp_path) == record
    from PIL import Image

    from earthmind_jax.data.read import load_record

    Image.fromarray(SCENE["optical"]).save(tmp_path / "a.png")
    box, points = load_record(record, CONFIG.sensors).turns[0].regions
    assert box[:8, :8].all()
    assert box.sum() == 64
    assert np.argwhere(points).tolist() == [
        [20, 20],
        [20, 21],
        [21, 20],
        [21, 21],
        [30, 30],
        [30, 31],
        [31, 30],
        [31, 31],
    ]
    for bad, words in (
        ({"regions": []}, "must be a list of at least one"),
        ({"regions": [3]}, "must be a path"),
        ({"region": {"box": [0, 0, 8]}}, "x0, y0, x1, y1"),
        ({"region": {"points": [[40, 1]]}}, "outside"),
    ):
        values = line | {"turns": [{"question": "a", "answer": "x"} | bad]}
        with pytest.raises(UserError, match=words):
            load_record(parse_record(values, "line 1", tmp_path), CONFIG.sensors)


@pytest.mark.parametrize("sensors", [("optical",), ("sar",), support.BOTH])
def test_the_region_reaches_the_words(model, sensors):
    """Marks change the prompt of the language model, by the tokens that lie there and their name."""
    images = {name: SCENE[name] for name in sensors}
    placed, _ = place([Prompt.point(3, 3), LAKE], grid_of(view(images)))
    made = regions(placed, view(images), CONFIG)
    assert [m.sum() for m in made] == [64, 16 * 24]
    answer = model.ask("Is {lake} larger than region1?", **images, marks=[Prompt.point(3, 3), LAKE], max_new=4)
    wanted = Sample("a", (Turn("Is region2 larger than region1?", region=made),), **images)
    batch = support.batch([wanted], sensors=support.BOTH, text=128)
    said = model.engine.generate(batch, model.engine.encode(batch), max_new=4)
    assert answer.text == said.texts[0]
    assert len(answer.masks) == 2


def view(images):
    return Images({name: (picture, None) for name, picture in images.items()})


def test_one_band_is_pointed_at_like_any_other(model):
    """An infrared image of one band."""
    answer = model.ask(
        "What is region1?", optical=SCENE["optical"][..., 0], marks=Prompt.point(9, 9), steer=True, max_new=4
    )
    assert answer.masks[0].array.shape == (32, 32)


def test_marks_steer_the_masks(model):
    plain, pointed, steered = ask(model), ask(model, marks=LAKE), ask(model, marks=LAKE, steer=True)
    assert pointed.text == steered.text
    assert np.abs(pointed.masks[0].probability - steered.masks[0].probability).max() > 1e-3
    assert len(plain.masks) == len(steered.masks) == 2
    # A single mark goes with both [SEG]; of two marks each has its own.
    two = ask(model, marks=[LAKE, Prompt.point(28, 3)], steer=True)
    other = ask(model, marks=[LAKE, Prompt.point(3, 28)], steer=True)
    assert np.abs(two.masks[1].probability - other.masks[1].probability).max() > 1e-3


def quiet(model):
    """An engine whose mask decoder has nothing to tell pixels apart: no logit is above 0."""
    params = {k: jnp.zeros_like(v) if k.startswith("grounding/decoder/") else v for k, v in model.engine.params.items()}
    engine = copy.copy(model.engine)
    engine.params = params
    return engine


def test_the_decoder_alone(model):
    """One mask for each object, whatever else is pointed at, and as the decoder says it of the marks by themselves."""
    marks = [Prompt.point(9, 9), LAKE, Prompt.polygon([(2, 2), (30, 4), (10, 28)], name="field")]
    answer = model.segment(**SCENE, marks=marks)
    assert [mask.name for mask in answer.masks] == ["region1", "lake", "field"]
    assert answer.text == ""
    for i, mark in enumerate(marks):
        alone = model.segment(**SCENE, marks=mark)
        np.testing.assert_allclose(alone.masks[0].probability, answer.masks[i].probability, atol=1e-5)
    assert (UNPOINTED in answer.notes) == (not all(mask.array.any() for mask in answer.masks))
    unseen = dataclasses.replace(model, engine=quiet(model))
    assert UNPOINTED in unseen.segment(**SCENE, marks=marks).notes
    together = model.segment("lake", **SCENE, marks=marks)
    assert np.abs(together.masks[1].probability - answer.masks[1].probability).max() > 1e-3


def test_thirty_two_marks_take_one_encoding_and_one_call(model, monkeypatch):
    calls = {"encode": 0, "_masks": 0}
    for name in calls:
        original = getattr(model.engine, name)

        def counted(*args, name=name, original=original):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(model.engine, name, counted)
    marks = [Prompt.point(1 + i % 30, 1 + i) for i in range(30)] + [LAKE, Prompt.points([(3, 3), (9, 9)])]
    answer = model.segment(**SCENE, marks=marks)
    assert len(answer.masks) == 32
    assert calls == {"encode": 1, "_masks": 1}
    last = model.segment(**SCENE, marks=marks[-1]).masks[0]
    np.testing.assert_allclose(last.probability, answer.masks[-1].probability, atol=1e-5)


@pytest.mark.parametrize("sensors", [("sar",), support.BOTH])
def test_many_targets_are_as_one_by_one(model, sensors):
    images = {name: SCENE[name] for name in sensors}
    targets = ["river", "lake", "ships near the harbour"]
    before = 0 if model.many is None else model.many.compiled()["begin"]
    answer = model.segment(targets, **images)
    # What the questions have in common is prefilled once where they read the same tokens, that is for one sensor.
    assert model.many.compiled()["begin"] - before == (len(sensors) == 1)
    assert [mask.name for mask in answer.masks] == targets
    for i, target in enumerate(targets):
        alone = model.segment(target, **images)
        assert answer.text.splitlines()[i] == f"{target}: {alone.text}"
        np.testing.assert_allclose(alone.masks[0].probability, answer.masks[i].probability, atol=1e-5)
    compiled = model.many.compiled()
    model.segment([targets[2], "lake", "river"], **images)
    assert model.many.compiled() == compiled


def test_a_window_keeps_the_scenes_positions(model):
    transform = Affine(10, 0, 500000, 0, -10, 5600000)
    images = Images({"optical": (LARGE["optical"], None)}, transform, CRS.from_epsg(32633))
    window, _ = pointing.zoomed((40, 60, 32, 32), images)
    alone = model.ask("What is it?", optical=LARGE["optical"][40:72, 60:92], max_new=4)
    answer = model.ask("What is it?", optical=LARGE["optical"], window=(40, 60, 32, 32), max_new=4)
    assert answer.text == alone.text
    np.testing.assert_allclose(answer.masks[0].probability, alone.masks[0].probability, atol=1e-6)
    here, there = alone.masks[0], answer.masks[0]
    np.testing.assert_allclose(np.array(there.box), np.add(here.box, (60, 40, 60, 40)))
    assert there.polygons[0][0][0] == tuple(np.add(here.polygons[0][0][0], (60, 40)))
    crop = images.crop(window)
    x, y = crop.transform @ (0, 0)
    box = Prompt.from_box(x, y - 320, x + 320, y, crs="EPSG:32633")
    assert pointing.zoomed(box, images)[0] == window
    for bad in ((0, 0, 81, 10), (0, 0, 1), (-1, 0, 3, 3), "all"):
        with pytest.raises(UserError):
            pointing.zoomed(bad, images)


def test_marks_on_a_large_scene_are_drawn_around_them(model):
    marks = [Prompt.point(90, 70), Prompt.point(88, 66), Prompt.from_box(2, 2, 60, 70, name="wood")]
    answer = model.segment(**LARGE, marks=marks)
    assert [mask.array.shape for mask in answer.masks] == [(80, 100)] * 3
    assert not answer.masks[0].probability[:48].any()  # the window of 32 x 32 pixels around it ends there
    assert answer.masks[2].probability[:70, :60].all()
    crop = {name: picture[48:80, 68:100] for name, picture in LARGE.items()}
    alone = model.segment(**crop, marks=[Prompt.point(22, 22), Prompt.point(20, 18)])
    for i in range(2):
        np.testing.assert_allclose(answer.masks[i].probability[48:, 68:], alone.masks[i].probability, atol=1e-5)
    closer = model.ask("What is region1?", **LARGE, marks=marks[0], max_new=4)
    assert closer.masks[0].offset == (48, 68)
    assert "rows 48 to 80 and columns 68 to 100" in closer.notes[-1]


def test_answers_say_where_masks_are(model):
    answer = ask(model, marks=LAKE)
    values = answer.to_dict()["masks"][0]
    mask = answer.masks[0].array
    rows, columns = np.nonzero(mask)
    assert values["box"] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert "map" not in values
    area = sum(shoelace(rings[0]) - sum(shoelace(hole) for hole in rings[1:]) for rings in values["polygons"])
    assert area == mask.sum()


def shoelace(ring):
    x, y = np.asarray(ring).T
    return abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def test_map_positions_of_masks(model):
    from dataclasses import replace

    mask = replace(ask(model).masks[0], transform=Affine(10, 0, 500000, 0, -10, 5600000), crs=CRS.from_epsg(32633))
    values = mask.to_dict()
    x0, y0, x1, y1 = values["box"]
    assert values["map"]["crs"] == "EPSG:32633"
    assert values["map"]["box"] == [500000 + 10 * x0, 5600000 - 10 * y1, 500000 + 10 * x1, 5600000 - 10 * y0]
    column, row = values["polygons"][0][0][0]
    assert values["map"]["polygons"][0][0][0] == (500000 + 10 * column, 5600000 - 10 * row)


def test_shapes_of_prompts_come_from_a_table():
    placed, _ = place([Prompt.points([(i, i) for i in range(1, 1 + n)]) for n in (1, 3, 5)], grid_of(view(SCENE)))
    prompts = visual_prompts(placed, CONFIG.grounding)
    assert prompts.points.shape == (1, 3, 8, 2)
    assert prompts.valid.sum(-1).tolist() == [[1, 3, 5]]
    assert prompts.masks is None


def test_of_a_large_raster_the_part_alone_is_read(model, tmp_path, monkeypatch):
    """The same words and masks as from the scene read as a whole, in the same place, from a few of its pixels."""
    write_scene(make_scene(5, size=120, gsd=10.0, nodata=0.0), tmp_path, "a")
    given = {"optical": tmp_path / "a_s2.tif", "sar": tmp_path / "a_s1.tif"}
    with rasterio.open(given["optical"]) as file:
        x, y = file.xy(80, 95)
        crs = file.crs.to_string()
    marks = [Prompt.point(x, y, crs=crs), Prompt.from_box(70, 60, 90, 75, name="lake")]
    area = Prompt.from_box(x - 200, y - 200, x + 120, y + 120, crs=crs)
    asked = [{"marks": marks, "steer": True}, {"window": area}]
    drawn = [{"marks": marks}, {"target": "lake", "window": (10, 20, 40, 50)}]
    whole = [model.ask("What is it?", **given, **options, max_new=4) for options in asked]
    masks = [model.segment(**given, **options) for options in drawn]
    read = []
    monkeypatch.setattr(view_module, "WHOLE", 1000)
    monkeypatch.setattr(EarthMind, "images", lambda *_: pytest.fail("read as a whole"))
    images = SceneReader.images
    monkeypatch.setattr(SceneReader, "images", lambda *a: read.append((made := images(*a)).shape) or made)
    for options, expected in zip(asked, whole, strict=True):
        answer = model.ask("What is it?", **given, **options, max_new=4)
        assert (answer.text, answer.offset) == (expected.text, expected.offset)
        assert answer.sensor_shares == pytest.approx(expected.sensor_shares, abs=1e-5)
        for mask, other in zip(answer.masks, expected.masks, strict=True):
            assert (mask.transform, mask.crs, mask.offset) == (other.transform, other.crs, other.offset)
            np.testing.assert_allclose(mask.probability, other.probability, atol=1e-5)
    for options, expected in zip(drawn, masks, strict=True):
        answer = model.segment(**given, **options)
        for mask, other in zip(answer.masks, expected.masks, strict=True):
            (row, column), (height, width) = mask.offset, mask.array.shape
            begin = row - other.offset[0], column - other.offset[1]
            found = other.probability[begin[0] : begin[0] + height, begin[1] : begin[1] + width]
            np.testing.assert_allclose(mask.probability, found, atol=1e-5)
            assert mask.box == other.box
    assert len(read) == len(asked) + len(drawn)
    assert max(np.prod(shape) for shape in read) < 120 * 120 / 2
    with pytest.raises(UserError, match="lies outside"):
        model.segment(**given, marks=Prompt.point(120, 3))


def test_what_no_sensor_sees_is_told(model, tmp_path):
    """Nothing is said or drawn from nodata alone; what another sensor or date sees is seen."""
    valid = {"optical": np.ones((32, 32), bool), "sar": np.ones((32, 32), bool)}
    valid["optical"][:, :16] = valid["sar"][:16, :20] = False

    def images(**shown):
        return Images({name: (SCENE[name], shown[name]) for name in shown})

    pair, alone = images(**valid), images(optical=valid["optical"])
    line = Prompt.line([(1, 1), (9, 14)])
    for mark in (Prompt.point(3, 3), Prompt.from_box(0, 0, 16, 16), line, Prompt.polygon([(2, 2), (9, 2), (2, 9)])):
        with pytest.raises(UserError, match="'region1' lies where no sensor has data"):
            model.view(pair, marks=mark)
        dated = Images(pair.pictures, date="a", later=(images(optical=valid["optical"][:, ::-1]),))
        assert model.view(dated, marks=mark).marks
    for mark in (Prompt.point(3, 31.9), Prompt.from_box(0, 0, 16.1, 9), Prompt.line([(1, 1), (31, 1)])):
        assert model.view(pair, marks=mark).marks
    with pytest.raises(UserError, match="lies where no sensor"):
        model.view(alone, marks=Prompt.point(3, 31.9))
    with pytest.raises(UserError, match="all of it is nodata"):
        model.view(alone, window=(0, 0, 32, 16))
    several = np.zeros((2, 32, 32), np.uint8) + 1
    grid = {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", width=32, height=32, count=2, dtype="uint8", **grid
    ) as file:
        file.write(several)
    placed = Images(pair.pictures, grid["transform"], CRS.from_epsg(32632))
    with pytest.raises(UserError, match="has 2 bands; a mask has one"):
        model.view(placed, marks=tmp_path / "m.tif")
