"""Samples of several dates: an image block each, stacks for the mask decoder, masks where they are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import support
from PIL import Image

from earthmind_jax.config import DataConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.buckets import Buckets
from earthmind_jax.data.collate import collate, encode_sample, stack
from earthmind_jax.data.layout import measure
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import Dated, Record, RecordTurn, Sample, Turn, read_jsonl, write_jsonl
from earthmind_jax.errors import UserError

CFG = dataclasses.replace(support.model(), sensors=dataclasses.replace(support.model().sensors, max_tiles=4))
DATA = DataConfig(text_length=512, masks_per_sample=2)
N = CFG.vision.tokens
TOKENIZER = support.tokenizer()


def pictures(count: int, shape=(32, 64), seed: int = 0) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, (count, *shape, 3), np.uint8))


def encoded(sample: Sample, cfg=CFG, **options):
    return encode_sample(sample, cfg, DATA, TOKENIZER, Buckets(text=(1024,)), **options)


def ask(mask=None, **images) -> Sample:
    return Sample("s", (Turn("Where is the river?", "It is [SEG]." if mask is not None else "Yes", mask),), **images)


def test_each_date_is_one_tile_and_one_block():
    optical = pictures(3)
    example = encoded(ask(optical=optical))
    assert example.dates == example.tiles == 3
    assert example.grid == (1, 1)
    size = CFG.vision.image_size
    for made, picture in zip(example.pixels["optical"], optical, strict=True):
        np.testing.assert_array_equal(made, tiles.resize_uint8(picture, (size, size)))
    text = TOKENIZER.decode(example.prompt.tokens)
    block = "<img>" + "<IMG_CONTEXT>" * N + "</img>"
    assert text.startswith("<|im_start|>user\n" + "\n".join([block] * 3) + "\nWhere is the river?<|im_end|>")
    rows = example.prompt.visual_index[example.prompt.visual_index >= 0]
    np.testing.assert_array_equal(rows, np.arange(3 * N))


def test_the_first_five_of_many():
    many = pictures(8)
    example, five = (
        encoded(ask(np.ones((1, 32, 64)), optical=many)),
        encoded(ask(np.ones((1, 32, 64)), optical=many[:5])),
    )
    assert example.dates == 5
    np.testing.assert_array_equal(example.pixels["optical"], five.pixels["optical"])
    np.testing.assert_array_equal(example.ground["optical"], five.ground["optical"])
    np.testing.assert_array_equal(example.prompt.tokens, five.prompt.tokens)
    assert example.masks[0].shape == (5, CFG.grounding.mask_size, CFG.grounding.mask_size)


def test_a_single_image_stands_beside_every_date():
    optical, sar = pictures(3), pictures(1, seed=1)[0]
    example = encoded(ask(optical=optical, sar=sar))
    assert len(example.pixels["sar"]) == 3
    assert (example.pixels["sar"] == example.pixels["sar"][0]).all()
    batch = stack([example], CFG, DATA, Buckets(tiles=(4,), text=(512,), dates=(4,)))
    assert batch.ground_sar_valid.tolist() == batch.ground_optical_valid.tolist() == [[True, True, True, False]]
    np.testing.assert_array_equal(batch.ground_sar[0, 0], batch.ground_sar[0, 2])
    assert not batch.ground_sar[0, 3].any()
    with pytest.raises(UserError, match="the sar image makes 2 dates and the other 3"):
        encoded(ask(optical=optical, sar=pictures(2)))


def test_rows_of_two_sensor_modes():
    cfg = dataclasses.replace(CFG, fusion=dataclasses.replace(CFG.fusion, mode="concat"))
    both, radar = (encoded(ask(**images), cfg) for images in (
        {"optical": pictures(2), "sar": pictures(2)}, {"sar": pictures(2)}
    ))  # fmt: skip
    rows = [e.prompt.visual_index[e.prompt.visual_index >= 0] for e in (both, radar)]
    np.testing.assert_array_equal(rows[0], np.arange(4 * N))
    np.testing.assert_array_equal(rows[1], np.r_[0:N, 2 * N : 3 * N])


def test_band_triplets_of_each_date():
    bands = ("B04", "B03", "B02", "B08", "B11", "B12")
    cfg = dataclasses.replace(CFG, sensors=dataclasses.replace(CFG.sensors, optical_bands=bands))
    rng = np.random.default_rng(0)
    dates = tuple({b: rng.uniform(0, 0.3, (32, 32)).astype(np.float32) for b in bands} for _ in range(2))
    sar = {b: rng.uniform(-25, 0, (32, 32)).astype(np.float32) for b in ("VV", "VH")}
    example = encoded(ask(optical=dates, sar=sar), cfg)
    assert example.tiles == 4
    single = [encoded(ask(optical=d), cfg).pixels["optical"] for d in dates]
    np.testing.assert_array_equal(example.pixels["optical"], np.concatenate(single))
    text = TOKENIZER.decode(example.prompt.tokens)
    assert text.count("<img>") == 2
    assert text.count("<IMG_CONTEXT>") == 4 * N


def test_masks_of_each_date():
    first, last = np.zeros((32, 64), bool), np.zeros((32, 64), bool)
    first[:16], last[16:] = True, True
    dated = ask((Dated((first, None, last)),), optical=pictures(3))
    everywhere = ask(first, optical=pictures(3))
    alone = ask(first, optical=pictures(1)[0])
    batch = collate([dated, everywhere, alone], CFG, DATA, TOKENIZER, Buckets(tiles=(3,), text=(512,), dates=(3,)))
    half = CFG.grounding.mask_size // 2
    assert batch.mask_valid[..., 0].tolist() == [[True, False, True], [True, True, True], [True, False, False]]
    assert not batch.mask_valid[..., 1].any()
    assert batch.masks[0, 0, 0, :half].all()
    assert batch.masks[0, 2, 0, half:].all()
    assert not batch.masks[0, 1].any()
    np.testing.assert_array_equal(batch.masks[1, :, 0], np.stack([batch.masks[0, 0, 0]] * 3))
    with pytest.raises(UserError, match="given for 2 dates but the sample has 3"):
        encoded(ask((Dated((first, None)),), optical=pictures(3)))


def test_regions_lie_on_the_last_date():
    region = np.ones((32, 64), bool)
    sample = Sample("r", (Turn("Describe {region}.", "A lake", region=region),), pictures(3))
    rows = encoded(sample).prompt.visual_index
    np.testing.assert_array_equal(rows[rows >= 0][3 * N :], np.arange(2 * N, 3 * N))


def write(folder, dates: int):
    for i in range(dates):
        Image.fromarray(pictures(1, seed=i)[0]).save(folder / f"{i}.png")
    turn = RecordTurn("Where?", "It is [SEG].", ({"dates": [[[0, 0, 9, 0, 9, 9]], *[None] * (dates - 1)]},))
    write_jsonl(folder / "r.jsonl", [Record("a", (turn,), tuple(f"{i}.png" for i in range(dates)), "0.png")])
    return read_jsonl(folder / "r.jsonl")[0]


def test_records(tmp_path):
    record = write(tmp_path, 3)
    assert record.optical == ("0.png", "1.png", "2.png")
    assert record.dates == 3
    sample = load_record(record, CFG.sensors)
    assert len(sample.optical) == 3
    assert isinstance(sample.sar, np.ndarray)
    assert sample.turns[0].masks[0].masks[0].any()
    assert sample.turns[0].masks[0].masks[1:] == (None, None)
    buckets = Buckets(text=(1024,))
    found = measure(record, CFG, DATA, TOKENIZER, buckets)
    assert found.shape == encoded(sample).shape
    Image.fromarray(pictures(1, (40, 40))[0]).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"r.jsonl line 1: .*1.png' lies on another grid than the first date"):
        load_record(record, CFG.sensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optical": []}, "field 'optical' must be text"),
        ({"optical": ["a.png", 3]}, r"field 'optical\[1\]' must be text"),
        ({"sar": ["a.png", "b.png"]}, "field 'sar' has 2 dates but the other sensor 3"),
        ({"mask": {"dates": [None]}}, r"'turns\[0\].mask.dates' must be a list of 3"),
        ({"mask": {"dates": [None, 3, None]}}, r"'turns\[0\].mask' must be a path"),
        ({"mask": {"dates": [None, {"dates": []}, None]}}, r"'turns\[0\].mask' must be a path"),
        ({"region": {"dates": [None] * 3}}, "must be one region"),
    ],
)
def test_wrong_lines(tmp_path, change, message):
    values = {"id": "x", "optical": ["a.png"] * 3, "turns": [{"question": "a", "answer": "[SEG]", "mask": "m.png"}]}
    target = values["turns"][0] if set(change) & {"mask", "region"} else values
    target.update(change)
    (tmp_path / "r.jsonl").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_jsonl(tmp_path / "r.jsonl")


def test_radar_dates_on_the_grid_of_one_optical_image(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    optical = rng.integers(1000, 4000, (3, 32, 32)).astype(np.uint16)
    radar = rng.uniform(0.01, 0.3, (2, 2, 50, 50)).astype(np.float32)
    for name, values, pixel in (("s2", optical, 10), ("s1a", radar[0], 8), ("s1b", radar[1], 9)):
        transform = rasterio.Affine(pixel, 0, 500000 - 10 + pixel, 0, -pixel, 5000000 + 10 - pixel)
        shape = {"height": values.shape[1], "width": values.shape[2], "count": len(values), "dtype": values.dtype}
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **shape) as file:
            file.write(values)
            for i, band in enumerate(("B02", "B03", "B04") if name == "s2" else ("VV", "VH"), 1):
                file.set_band_description(i, band)
    record = Record("r", (RecordTurn("Where?", "There"),), "s2.tif", ("s1a.tif", "s1b.tif"), tmp_path)
    sample = load_record(record, CFG.sensors)
    assert [bands["VV"].shape for bands in sample.sar] == [(32, 32), (32, 32)]
    assert measure(record, CFG, DATA, TOKENIZER, Buckets()).shape == encoded(sample).shape
    swapped = dataclasses.replace(record, optical=None)
    with pytest.raises(UserError, match=r"s1b.tif' lies on another grid"):
        load_record(swapped, CFG.sensors)
