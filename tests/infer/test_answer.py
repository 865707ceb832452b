"""Samples to replies: short batches, missing sensors, and one compiled variant for all of them."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal

import numpy as np
import pytest
import support
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.data.collate import Buckets
from earthmind_jax.errors import UserError, WorkError
from earthmind_jax.infer.answer import Reply, answer, upsample
from earthmind_jax.infer.engine import Engine
from earthmind_jax.infer.result import Answer, Mask

CONFIG = support.model()
BUCKETS = Buckets((1,), (96,))
KINDS = (("optical",), ("sar",), support.BOTH, support.BOTH, ("optical",))
SAMPLES = tuple(support.sample(i, kind) for i, kind in enumerate(KINDS))


class Pointing(Engine):
    """An engine whose every answer has a [SEG] as its second token."""

    def generate(self, batch, fused, **options):
        return super().generate(batch, fused, **options, forced={1: self.config.tokens.seg})


def ask(engine, samples, **options):
    return list(answer(engine, samples, **{"batch_size": 2, "max_new": 6, "buckets": BUCKETS, **options}))


@functools.cache
def engine():
    return Pointing(CONFIG, support.params(CONFIG), support.tokenizer())


@functools.cache
def replies():
    return ask(engine(), SAMPLES, sensors=support.BOTH)


def same(first, second):
    assert first.text == second.text
    assert len(first.masks) == len(second.masks)
    for a, b in zip(first.masks, second.masks, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    np.testing.assert_allclose(first.weights, second.weights, atol=1e-5)


def test_short_batches_are_filled_up():
    assert len(replies()) == 5
    for reply in replies():
        assert len(reply.masks) >= 1
        assert reply.masks[0].shape == (CONFIG.grounding.mask_size,) * 2
        assert reply.weights.shape == (1, CONFIG.vision.grid, CONFIG.vision.grid, 2)


def test_one_variant_serves_every_combination_of_sensors():
    replies()
    assert engine().compiled() == {"encode": 1, "prefill": 1, "decode": 1, "masks": 1}


def test_a_missing_sensor_has_no_weight():
    for kind, reply in zip(KINDS, replies(), strict=True):
        for i, name in enumerate(support.BOTH):
            if kind == (name,):
                np.testing.assert_array_equal(reply.weights[..., i], 1)
    assert 0 < replies()[2].weights.min() < replies()[2].weights.max() < 1


@pytest.mark.parametrize("name", support.BOTH)
def test_room_for_a_missing_sensor_changes_nothing(name):
    """The array of zeros marked invalid, and no array at all."""
    index = KINDS.index((name,))
    narrow = ask(Pointing(CONFIG, support.params(CONFIG), support.tokenizer()), [SAMPLES[index]])
    same(narrow[0], replies()[index])


def test_the_answer_in_the_sample_is_not_seen():
    asked = [support.sample(2, answer="Yes, there is a lake."), SAMPLES[3]]
    same(ask(engine(), asked, sensors=support.BOTH)[0], replies()[2])


def test_text_alone():
    reply = ask(engine(), [support.sample(0, (), answer=None)])[0]
    assert reply.weights is None
    assert reply.masks == ()
    assert isinstance(reply.text, str)


def test_masks_on_the_image():
    logits = np.full((16, 16), -20.0, np.float32)
    logits[:, 8:] = 20.0
    reply = Reply("", (logits,), None)
    mask = reply.mask((40, 60))
    assert mask.shape == (40, 60)
    assert mask[:, :25].max() < 1e-3
    assert mask[:, 35:].min() > 1 - 1e-3
    assert reply.mask((40, 60), 1) is None
    np.testing.assert_allclose(upsample(np.full((4, 4), 1e4, np.float32), (5, 5)), 1)


def test_maps_need_a_place_and_the_message_names_the_file(tmp_path):
    """Before anything is written."""
    size = np.full((4, 5), 0.7, np.float32), np.ones((4, 5), bool)
    for crs, said in ((None, "there is no georeference"), (CRS.from_epsg(4978), "is no map of the Earth")):
        mask = Mask(*size, Affine(10, 0, 5e5, 0, -10, 5e6), crs)
        made = Answer("q", "a", (mask,), sources={"optical": "scene.png"})
        with pytest.raises(UserError, match=rf"scene\.png: .*{said}"):
            made.save(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in made.save(tmp_path / "out", maps=False)] == ["mask_1.png", "answer.json"]


def test_a_full_disk_leaves_the_former_answer(tmp_path):
    """The limit on the size of a file stands for the disk; it lets the small rasters through."""
    place = Affine(10, 0, 5e5, 0, -10, 5e6), CRS.from_epsg(32632)

    def answered(side):
        noise = np.random.default_rng(0).random((side, side), np.float32)
        picture = {"optical": np.zeros((side, side, 3), np.uint8)}
        return Answer("q", "a", (Mask(noise, noise > 0, *place),), pictures=picture, sources={"optical": "s2.tif"})

    former = answered(4).save(tmp_path / "out")
    contents = {path: path.read_bytes() for path in former}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        for folder in ("out", "new/out"):
            with pytest.raises(WorkError, match=rf"/{folder}/mask_1\.geojson could not be written .*free space"):
                answered(200).save(tmp_path / folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == contents
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    item = json.loads((tmp_path / "out/item.json").read_text())
    assert {asset["href"] for asset in item["assets"].values()} <= {f"./{path.name}" for path in former}
    assert [link["href"] for link in item["links"]] == [os.path.relpath("s2.tif", tmp_path / "out")]
    (tmp_path / "file").mkdir()
    (tmp_path / "file/mask_1.tif").mkdir()
    with pytest.raises(UserError, match=r"mask_1\.tif is a folder"):
        answered(4).save(tmp_path / "file")
    assert [path.name for path in (tmp_path / "file").iterdir()] == ["mask_1.tif"]


def test_nothing_of_a_former_answer_is_left(tmp_path):
    """Its masks would be taken for those of the answer beside them; other files of the folder stay."""
    place = Affine(10, 0, 5e5, 0, -10, 5e6), CRS.from_epsg(32632)
    filled = np.full((4, 5), 0.7, np.float32)

    def answered(*dates):
        return Answer("q", "a", tuple(Mask(filled, filled > 0, *place, date) for date in dates))

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    (tmp_path / "mask_9.tif").write_text("of someone else")
    former = answered("2024-05-01", "2024-06-11", "2024-05-01").save(tmp_path)
    assert {"mask_2_2024-05-01.geojson", "mask_1_2024-06-11.tif"} < {path.name for path in former}
    made = answered("").save(tmp_path)
    assert names() == sorted([*(path.name for path in made), "mask_9.tif"])
    answered("").save(tmp_path, maps=False)
    assert names() == ["answer.json", "mask_1.png", "mask_9.tif"]
    for told in ('{"files": ["../kept.tif", "mask_9.tif/..", 3, "notes.txt"]}', '["mask_9.tif"]', "no json"):
        (tmp_path / "answer.json").write_text(told)
        (tmp_path / "notes.txt").touch()
        answered("").save(tmp_path)
        assert {"mask_9.tif", "notes.txt"} < set(names())
