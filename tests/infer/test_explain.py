"""The page of an explanation: whole, self-contained, harmless, and with the numbers of the answer itself."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import rasterio
import support
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.simulate import make_scene, write_scene
from earthmind_jax.errors import UserError
from earthmind_jax.geo.prompts import Prompt
from earthmind_jax.geo.quality import cloudy
from earthmind_jax.geo.told import Told
from earthmind_jax.infer.clouds import UNKNOWN_CLOUD, clouds
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.explain import RUNS, Explanation
from earthmind_jax.infer.explain_page import BUDGET, page
from earthmind_jax.infer.panel import panel
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.infer.result import Answer, Mask
from earthmind_jax.infer.timed import Times

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "</title><script>alert('x')</script><img src=x onerror=\"y\"> & \x00\x1b[31m \"' \ud800"
QUESTION = "Where is the river?"


class Pointing(Engine):
    """Every answer has two [SEG]."""

    def generate(self, batch, fused, **options):
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg, 3: self.config.tokens.seg})


@functools.cache
def model():
    config = support.model()
    em = EarthMind(config, Pointing(config, support.params(config), support.tokenizer()), "a <b>model</b>", 1)
    shapes = {"sensors": support.BOTH, "buckets": Buckets((1,), (256,))}  # one compiled program of each kind
    return dataclasses.replace(em, **shapes, source={"made": HOSTILE})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    write_scene(make_scene(3, size=32, gsd=10.0, nodata=1.0), root, "a")
    return {"optical": root / "a_s2.tif", "sar": root / "a_s1.tif"}


class Checked(HTMLParser):
    """Every tag that opens closes, in order; what the page refers to and what it says is collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.words, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.sources.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def checked(text):
    found = Checked(text)
    assert found.tags <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "blockquote", "table", "tr", "td", "th", "p",
        "div", "figure", "img", "figcaption", "ul", "li", "span",
    }  # fmt: skip
    for source in found.sources:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", source).groups()
        Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=[kind]).load()
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    return " ".join(" ".join(found.words).split()), found.sources


def test_a_pair(pair, tmp_path):
    reason = model().explain(QUESTION, **pair, max_new=6, command="earthmind ask 'Where?' --optical <x>")
    asked = model().ask(QUESTION, **pair, max_new=6)
    assert reason.answer.to_dict() == asked.to_dict()
    for mine, other in zip(reason.answer.masks, asked.masks, strict=True):
        np.testing.assert_array_equal(mine.probability, other.probability)
    words, sources = checked(reason.save_page(tmp_path / "reason.html").read_text())
    assert len(sources) == 2 + 3 * 2 + 1 + 2  # images, masks of each run, weights, validity
    shares = asked.sensor_shares
    assert f"Mean weights: optical {shares['optical']:.3f}, SAR {shares['sar']:.3f}" in words
    for mask in asked.masks:
        assert f"{mask.array.mean():.1%} ({mask.score:.2f})" in words
        assert f"{int(mask.array.sum())}" in words
    images = model().images(pair["optical"], pair["sar"])
    for name in support.BOTH:
        alone = model().look(images.only(name), model().turn(QUESTION, images), 6)
        assert reason.alone[name].text == alone.text
        np.testing.assert_allclose(reason.alone[name].masks[0].probability, alone.masks[0].probability, atol=1e-5)
        assert f"{RUNS[name]}" in words
    assert set(reason.agreement) == {"both - optical", "both - sar", "optical - sar"}
    first, second = (reason.alone[n].masks[1].array for n in support.BOTH)
    iou = (first & second).sum() / max((first | second).sum(), 1) if (first | second).any() else 1.0
    assert reason.agreement["optical - sar"]["iou"][1] == pytest.approx(iou)
    for name in support.BOTH:
        share = 1 - images.pictures[name][1].mean()
        assert f"{'SAR' if name == 'sar' else 'optical'}: {share:.1%} without data" in words
    assert min(valid.mean() for valid in reason.valid.values()) < 0.95
    assert "clouds are not detected" in words
    for said in (images.crs.to_string(), "jax 0.", "GDAL", "--optical <x>", str(pair["sar"]), "SAR scale linear"):
        assert said in words, said
    assert set(reason.times["both"].steps) == {"read", "encode", "generate", "masks"}
    assert all(seconds > 0 for times in reason.times.values() for seconds in times.steps.values())
    assert reason.times["sar"].compiling == 0  # the program of the pair serves here, too


def test_one_sensor_and_none(pair):
    for name in support.BOTH:
        reason = model().explain(QUESTION, **{name: pair[name]}, max_new=6)
        words, sources = checked(page(reason))
        assert reason.alone == {}
        assert len(sources) == 1 + 2 + 1 + 1
        assert "Agreement" not in words
    reason = model().explain(QUESTION, max_new=6)
    words, sources = checked(page(reason))
    assert sources == []
    assert "Masks" not in words


def test_a_target_of_a_large_scene(tmp_path):
    write_scene(make_scene(5, size=72, gsd=10.0, nodata=0.0), tmp_path, "b")
    given = {"optical": tmp_path / "b_s2.tif", "sar": tmp_path / "b_s1.tif"}
    reason = model().explain("water", segment=True, **given, max_new=6)
    drawn = model().segment("water", **given, max_new=6)
    np.testing.assert_array_equal(reason.answer.masks[0].probability, drawn.masks[0].probability)
    assert reason.alone["sar"].masks[0].array.shape == (72, 72)
    checked(page(reason))


def test_hostile_words_stay_words(pair):
    reason = model().explain(HOSTILE.replace("\ud800", ""), optical=pair["optical"], max_new=3, command=HOSTILE)
    text = page(dataclasses.replace(reason, answer=dataclasses.replace(reason.answer, text=HOSTILE, notes=(HOSTILE,))))
    words, _ = checked(text)
    assert "<script" not in text
    assert words.count("<script>alert('x')</script>") >= 5  # title, question, answer, note, checkpoint, command
    assert "\x00" not in text
    text.encode("utf-8")


def test_a_page_stays_small():
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (1000, 1000, 3), np.uint8) for name in support.BOTH}
    grid = from_origin(5e5, 5e6, 10, 10), CRS.from_epsg(32632)
    masks = tuple(Mask(rng.random((1000, 1000), np.float32), np.ones((1000, 1000), bool), *grid) for _ in range(3))
    answer = Answer(QUESTION, "[SEG] [SEG] [SEG]", masks, rng.random((16, 16, 2)), pictures, (), "m")
    valid = {name: rng.random((1000, 1000)) > 0.1 for name in support.BOTH}
    alone = {name: dataclasses.replace(answer, pictures={name: pictures[name]}) for name in support.BOTH}
    text = page(Explanation(answer, alone, valid, None, "", {"both": Times()}, {}))
    assert BUDGET / 4 < len(text) < 3e6
    _, sources = checked(text)
    assert len(sources) == 14


def test_clouds_are_told_by_the_classification_band(pair, tmp_path):
    with rasterio.open(pair["optical"]) as file:
        data, profile, names, tags = file.read(), file.profile, file.descriptions, file.tags()
    classes = np.full(data.shape[1:], 4, data.dtype)
    classes[:8, :16] = 9
    classes[8:10] = 3
    profile.update(count=len(data) + 1)
    with rasterio.open(tmp_path / "scl.tif", "w", **profile) as file:
        file.write(np.concatenate([data, classes[None]]))
        file.descriptions = (*names, "SCL")
        file.update_tags(**tags)
    images = model().images(pair["optical"], None)
    cloud, note = clouds(tmp_path / "scl.tif", images)
    np.testing.assert_array_equal(cloud, np.isin(classes, (3, 9)))
    assert clouds(pair["optical"], images) == (None, UNKNOWN_CLOUD)
    reason = model().explain(QUESTION, optical=pair["optical"], max_new=3)
    words, _ = checked(page(dataclasses.replace(reason, cloud=cloud, cloud_note=note)))
    assert f"cloud and its shadow: {np.isin(classes, (3, 9)).mean():.1%}" in words


def test_clouds_are_told_by_a_file_beside_the_image(pair, tmp_path):
    """A classification of 20 m for an image of 10 m, and Landsat's bits."""
    with rasterio.open(pair["optical"]) as file:
        transform, crs, (height, width) = file.transform, file.crs, file.shape
    place = {"driver": "GTiff", "crs": crs, "count": 1, "height": height // 2, "width": width // 2}
    classes = np.full((height // 2, width // 2), 5, np.uint8)
    classes[2:5, 1:9] = 9
    classes[6:7, 2:4] = 0  # no data is no cloud
    with rasterio.open(
        tmp_path / "scl.tif", "w", dtype="uint8", transform=transform @ Affine.scale(2), **place
    ) as file:
        file.write(classes, 1)
    told = Told(scl=tmp_path / "scl.tif")
    reason = model().explain(QUESTION, optical=pair["optical"], told=told, max_new=3)
    np.testing.assert_array_equal(reason.cloud, np.repeat(np.repeat(classes == 9, 2, 0), 2, 1))
    assert "scl.tif (SCL)" in reason.cloud_note
    bits = np.array([[1, 1 << 3, 1 << 4, 1 << 5, 1 << 6, (1 << 6) | (1 << 2)]])
    assert cloudy("QA_PIXEL", bits).tolist() == [[False, True, True, False, False, True]]


def test_clouds_of_an_image_that_control_points_place(pair, tmp_path):
    """South up in the file: the page's cloud lies where the map has it."""
    with rasterio.open(pair["optical"]) as file:
        data, names, tags, transform, crs = file.read(), file.descriptions, file.tags(), file.transform, file.crs
    classes = np.full(data.shape[1:], 4, data.dtype)
    classes[2:10, 4:16] = 9
    height, width = classes.shape
    corners = [(r, c) for r in (0, height / 2, height) for c in (0, width / 2, width)]
    points = [GroundControlPoint(height - r, c, *(transform @ (c, r))) for r, c in corners]
    size = {"height": height, "width": width, "count": len(data) + 1, "dtype": data.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(tmp_path / "gcp.tif", "w", **size)
    with file:
        file.write(np.concatenate([data, classes[None]])[:, ::-1])
        file.gcps = (points, crs)
        file.descriptions = (*names, "SCL")
        file.update_tags(**tags)
    images = model().images(tmp_path / "gcp.tif", pair["sar"])
    cloud, _ = clouds(tmp_path / "gcp.tif", images)
    assert cloud.shape == images.shape
    rows, columns = np.nonzero(cloud)
    west, north = images.transform @ (columns.min(), rows.min())
    east, south = images.transform @ (columns.max() + 1, rows.max() + 1)
    expected = (*(transform @ (4, 2)), *(transform @ (16, 10)))
    np.testing.assert_allclose((west, north, east, south), expected, atol=10)


def test_a_place_in_a_scene_is_explained_as_it_is_answered(pair, tmp_path):
    """Larger than the model's own window, so that the window around the mark is what is asked about."""
    em = model()
    scene = tmp_path / "scene"
    scene.mkdir()
    write_scene(make_scene(5, size=80, gsd=10.0), scene, "b")
    given = {"optical": scene / "b_s2.tif", "sar": scene / "b_s1.tif", "marks": Prompt.from_box(60, 50, 70, 58)}
    for options in ({}, {"steer": True}, {"window": (40, 44, 30, 34)}):
        reason = em.explain("What is region1?", **given, **options, max_new=4)
        asked = em.ask("What is region1?", **given, **options, max_new=4)
        assert reason.answer.to_dict() == asked.to_dict()
        for alone in reason.alone.values():
            assert [m.offset for m in alone.masks] == [m.offset for m in asked.masks]
        assert {valid.shape for valid in reason.valid.values()} == {asked.masks[0].array.shape}
        assert asked.masks[0].array.shape != (80, 80)
        words, _ = checked(page(reason))
        for box in (mask.box for mask in asked.masks):
            assert box is None or f"{box[1]:.0f} to {box[3] - 1:.0f}, {box[0]:.0f} to {box[2] - 1:.0f}" in words


def test_wrong_requests(pair, tmp_path):
    with pytest.raises(UserError, match="question is empty"):
        model().explain(" ", **pair)
    with pytest.raises(UserError, match="give an optical image"):
        model().explain("water", segment=True)
    with pytest.raises(UserError, match="not drawn at random"):
        model().explain("water", segment=True, temperature=1.0, **pair)
    reason = model().explain(QUESTION, max_new=2)
    with pytest.raises(UserError, match="does not exist"):
        reason.save_page(tmp_path / "no" / "page.html")
    with pytest.raises(UserError, match="is a folder"):
        reason.save_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def green(image):
    """Whether what is pointed at is drawn: its colour is in no other part of a picture of greys."""
    r, g, b = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
    return ((g > 150) & (r < 90) & (b < 140)).any()


@pytest.mark.parametrize("target", ["", "water"])
def test_what_is_pointed_at_with_the_reason(pair, target):
    marks = [Prompt.from_box(4, 6, 20, 28, name="lake <b>"), Prompt.point(28, 3), Prompt.point(3, 3, 0)]
    given = {**pair, "marks": marks, "window": (0, 0, 30, 32)}
    drawn = model().segment(target, **given)
    reason = model().explain(target, segment=True, **given)
    assert reason.answer.to_dict() == drawn.to_dict()
    assert set(reason.alone) == {"optical", "sar"}
    images = model().images(pair["optical"], pair["sar"])
    alone = model().segment(target, marks=marks, window=given["window"], optical=images.pictures["optical"][0])
    for mine, other in zip(reason.alone["optical"].masks, alone.masks, strict=True):
        assert mine.array.shape == other.array.shape == (30, 32)
    assert drawn.sensor_shares["optical"] + drawn.sensor_shares["sar"] == pytest.approx(1, abs=1e-3)
    words, sources = checked(page(reason))
    assert len(sources) == 2 + 2 * 3 + 1 + 2  # images, masks of each run, weights, validity
    assert "lake <b> a box 6 to 28, 4 to 20 region2 1 point(s), 1 background point(s) 3 to 3, 28 to 28" in words
    assert "mask 2 (region2), SAR alone" in words
    assert ("no words" in words) == (not target)
    assert ("What is pointed at" in reason.answer.question + words[:20]) == (not target)
    with pytest.raises(UserError, match="Name something to segment"):
        model().explain("", segment=True, **pair)


def test_marks_are_drawn_over_the_pictures():
    grey = {name: np.full((60, 40, 3), 90, np.uint8) for name in support.BOTH}
    lake = Prompt.polygon([(5, 5), (30, 8), (20, 50)], name="$lake$ 湖")
    marks = [lake, Prompt.line([(2, 2), (30, 30)]), Prompt.point(38, 58), Prompt.from_mask(grey["sar"][..., 0] > 0)]
    for given, there in (({}, False), ({"marks": marks}, True)):
        reason = model().explain(QUESTION, **grey, max_new=2, window=(0, 0, 60, 40), **given)
        shown = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in checked(page(reason))[1]]
        assert [green(image) for image in shown[:2]] == [there, there]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks
            assert green(Image.open(io.BytesIO(panel(reason.answer)))) == there
