"""Samples to static batches: which row goes where, what is padded, what is dropped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.tiny import get_config
from earthmind_jax.config import FusionConfig, SensorConfig
from earthmind_jax.data import tiles
from earthmind_jax.data.collate import Buckets, collate, encode_sample, stack, with_tokens
from earthmind_jax.data.masks import decode_rle, draw_polygons, encode_rle
from earthmind_jax.data.records import Record, RecordTurn, Sample, Turn, read_jsonl, write_jsonl
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.errors import UserError
from earthmind_jax.geo.burn import burn

RUN = get_config()
TOKENIZER = train_bpe(["Where is the river? It is [SEG].", "Is there a lake? Yes."] * 3, 300)
DATA = RUN.data
CFG = with_tokens(dataclasses.replace(RUN.model, lm=dataclasses.replace(RUN.model.lm, vocab=len(TOKENIZER))), TOKENIZER)
BUCKETS = Buckets(tiles=(1, 2, 5, 10), text=(64, 128, 256))
N = CFG.vision.tokens


def variant(mode="hca_plus", **sensors):
    return dataclasses.replace(CFG, fusion=FusionConfig(mode=mode), sensors=SensorConfig(**{"max_tiles": 4, **sensors}))


def bands(names, shape, low, high, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(low, high, shape).astype(np.float32) for name in names}


def sample(shape=(32, 32), *, optical=True, sar=True, turns=2, name="s", **more):
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2] = True
    asked = [
        Turn(f"Where is river {i}?", "It is [SEG].", mask if i % 2 == 0 else ~mask) if i < 3 else Turn("A lake?", "Yes")
        for i in range(turns)
    ]
    return Sample(
        name,
        tuple(asked),
        optical=bands(("B02", "B03", "B04"), shape, 0, 0.3) if optical else None,
        sar=bands(("VV", "VH"), shape, -25, 0, 1) if sar else None,
        **more,
    )


def test_shapes_and_dtypes():
    batch = collate([sample(), sample(turns=1)], CFG, DATA, TOKENIZER, BUCKETS)
    side, ground = CFG.vision.image_size, CFG.grounding.image_size
    t = batch.tokens.shape[1]
    assert t in BUCKETS.text
    assert batch.tokens.dtype == np.int32
    assert batch.optical.shape == batch.sar.shape == (2, 1, side, side, 3)
    assert batch.optical.dtype == np.float32
    assert batch.optical_valid.shape == (2, 1, N)
    assert batch.optical_valid.all()
    assert batch.ground_sar.shape == (2, ground, ground, 3)
    assert batch.ground_sar_valid.all()
    assert batch.masks.shape == (2, DATA.masks_per_sample, CFG.grounding.mask_size, CFG.grounding.mask_size)
    assert batch.mask_valid.tolist() == [[True, True], [True, False]]
    for row in range(2):
        length = batch.lengths[row]
        assert (batch.tokens[row, length:] == CFG.tokens.pad).all()
        assert not batch.loss_mask[row, length:].any()
        assert (batch.visual_index[row, length:] == -1).all()
        assert not batch.question[row, length:].any()
        for m in np.flatnonzero(batch.mask_valid[row]):
            assert batch.tokens[row, batch.seg_index[row, m]] == CFG.tokens.seg
    assert (batch.masks[0, 0] == 1 - batch.masks[0, 1]).all()
    assert batch.masks[0, 0, : CFG.grounding.mask_size // 2].all()


def test_text_alone_has_no_image_arrays():
    batch = collate([Sample("t", (Turn("Hello?", "Yes"),))], CFG, DATA, TOKENIZER, BUCKETS)
    assert batch.optical is None
    assert batch.sar is None
    assert batch.ground_sar is None
    assert (batch.visual_index == -1).all()
    assert TOKENIZER.id("<img>") not in batch.tokens


def test_pictures_are_used_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    grey = image[..., 0]
    made = Sample("p", (Turn("What?", "Yes"),), optical=image, sar=grey)
    cfg = variant(max_tiles=12)
    batch = collate([made], cfg, DATA, TOKENIZER, Buckets(tiles=(5, 10), text=(1024,)))
    size = cfg.vision.image_size
    expected = tiles.normalise(tiles.dynamic_tiles(image, size))
    np.testing.assert_array_equal(batch.optical[0, : len(expected)], expected)
    np.testing.assert_array_equal(batch.sar[0, 0, ..., 0] * tiles.STD[0] + tiles.MEAN[0] > -1, True)
    ground = tiles.sam_preprocess_image(tiles.direct_resize(image, cfg.grounding.image_size))
    np.testing.assert_array_equal(batch.ground_optical[0], ground)
    hidden = np.ones((80, 80), bool)
    hidden[:40] = False
    marked = dataclasses.replace(made, optical_valid=hidden)
    batch = collate([marked], cfg, DATA, TOKENIZER, Buckets(tiles=(10,), text=(1024,)))
    assert np.abs(batch.ground_optical[0, : cfg.grounding.image_size // 2 - 2]).max() < 0.01
    assert 0 < batch.optical_valid.sum() < batch.sar_valid.sum()


def test_tile_padding_comes_last_and_is_invalid():
    cfg = variant()
    wide, small = sample((32, 64), name="wide"), sample((32, 32), name="small")
    batch = collate([wide, small], cfg, DATA, TOKENIZER, BUCKETS)
    assert batch.sar.shape[1] == 5  # two tiles and the thumbnail, in a bucket of five
    assert batch.sar_valid.all(-1).tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4]
    assert not batch.sar[0, 3:].any()
    assert not batch.sar[1, 1:].any()
    for row, count in ((0, 3), (1, 1)):
        used = batch.visual_index[row][batch.visual_index[row] >= 0]
        np.testing.assert_array_equal(used, np.arange(count * N))


@pytest.mark.parametrize("mode", ["concat", "release_2025_06"])
def test_rows_of_two_sensor_modes(mode):
    cfg = variant(mode)
    both, radar, optic = sample((32, 64)), sample((32, 64), optical=False), sample((32, 64), sar=False)
    text = Buckets(tiles=(5,), text=(256,))
    batch = collate([both, radar, optic], cfg, DATA, TOKENIZER, text)
    rows = [row[row >= 0] for row in batch.visual_index]
    tile = np.arange(3)[:, None] * 2 * N
    np.testing.assert_array_equal(rows[0], np.arange(3 * 2 * N))
    np.testing.assert_array_equal(rows[1], (tile + np.arange(N)).ravel())
    np.testing.assert_array_equal(rows[2], (tile + N + np.arange(N)).ravel())
    assert not batch.optical_valid[1].any()
    assert not batch.optical[1].any()
    assert not batch.ground_optical_valid[1]
    assert batch.ground_optical_valid.tolist() == [True, False, True]


def test_band_triplets_pair_with_the_one_sar_frame():
    cfg = variant(optical_bands=("B04", "B03", "B02", "B02", "B03", "B04"))
    batch = collate([sample((32, 64))], cfg, DATA, TOKENIZER, Buckets(tiles=(6,), text=(256,)))
    np.testing.assert_array_equal(batch.sar[0, :3], batch.sar[0, 3:])
    swapped = tiles.normalise(np.ones((1, 1, 3), np.float32)) * 0 + batch.optical[0, :3] * tiles.STD + tiles.MEAN
    np.testing.assert_allclose(swapped[..., ::-1], batch.optical[0, 3:] * tiles.STD + tiles.MEAN, atol=1e-5)
    assert (batch.visual_index >= 0).sum() == 6 * N


def test_optical_follows_the_grid_of_sar():
    pair = sample((32, 64))
    large = dataclasses.replace(pair, optical=bands(("B02", "B03", "B04"), (96, 96), 0, 0.3))
    example = encode_sample(large, variant(), DATA, TOKENIZER, BUCKETS)
    assert example.grid == (2, 1)
    assert len(example.pixels["optical"]) == len(example.pixels["sar"]) == 3


def test_regions_repeat_rows_of_the_thumbnail():
    region = np.zeros((32, 64), bool)
    region[:16, :32] = True
    turn = Turn("Describe {region}.", "A lake", region=region)
    side = CFG.vision.grid
    for mode, offsets in (("hca", [0]), ("concat", [0, N])):
        cfg = variant(mode)
        stride = N * len(offsets)
        asked = dataclasses.replace(sample((32, 64)), turns=(turn, dataclasses.replace(turn, region=~region)))
        example = encode_sample(asked, cfg, DATA, TOKENIZER, Buckets(text=(512,)))
        rows = example.prompt.visual_index[example.prompt.visual_index >= 0][3 * stride :]
        quarter = [y * side + x for y in range(side // 2) for x in range(side // 2)]
        rest = [i for i in range(N) if i not in quarter]
        expected = [2 * stride + o + i for cells in (quarter, rest) for o in offsets for i in cells]
        assert rows.tolist() == expected
        assert "Describe region2." in TOKENIZER.decode(example.prompt.tokens)


def test_sensor_dropout_follows_its_generator():
    data = dataclasses.replace(DATA, drop_optical=0.3, drop_sar=0.3)
    made = [encode_sample(sample(), CFG, data, TOKENIZER, BUCKETS, rng=np.random.default_rng(i)) for i in range(200)]
    kinds = [tuple(sorted(e.pixels)) for e in made]
    again = [
        tuple(sorted(encode_sample(sample(), CFG, data, TOKENIZER, BUCKETS, rng=np.random.default_rng(i)).pixels))
        for i in range(200)
    ]
    assert kinds == again
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert set(counts) == {("optical",), ("sar",), ("optical", "sar")}
    assert min(counts.values()) > 30
    lone = encode_sample(
        sample(sar=False), CFG, dataclasses.replace(DATA, drop_optical=1.0), TOKENIZER, BUCKETS,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert set(lone.pixels) == {"optical"}
    batch = stack([made[kinds.index(("sar",))]], CFG, data, BUCKETS, sensors=("optical", "sar"))
    assert batch.optical.shape == batch.sar.shape
    assert not batch.optical_valid.any()
    assert batch.sar_valid.all()


def test_turns_and_masks_over_the_limit():
    data = dataclasses.replace(DATA, turns=4, masks_per_sample=2)
    example = encode_sample(sample(turns=6), CFG, data, TOKENIZER, BUCKETS)
    assert example.prompt.question.any()
    assert len(example.prompt.seg) == 3
    assert len(example.seg) == 2
    assert example.seg == example.prompt.seg[:2]
    drawn = {
        encode_sample(sample(turns=6), CFG, data, TOKENIZER, BUCKETS, rng=np.random.default_rng(i)).seg
        for i in range(20)
    }
    assert len(drawn) > 1


def test_long_conversations_lose_their_last_turns():
    short = encode_sample(sample(turns=3), CFG, DATA, TOKENIZER, Buckets(text=(100,)))
    assert len(short.prompt) <= 100
    assert 1 <= len(short.seg) < 3
    with pytest.raises(UserError, match=r"Sample 's': the conversation has \d+ tokens but 16"):
        encode_sample(sample(), CFG, DATA, TOKENIZER, Buckets(text=(16,)))
    limited = dataclasses.replace(CFG, max_length=20)
    with pytest.raises(UserError, match="20 is the most"):
        encode_sample(sample(), limited, DATA, TOKENIZER, BUCKETS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": (Turn("Where?", "It is [SEG]."),)}, r"1 \[SEG\] but there are 0 masks"),
        ({"turns": (Turn("Where?", "No", np.ones((4, 4))),)}, r"0 \[SEG\] but there are 1 masks"),
        ({"sar": {"VH": np.zeros((4, 4))}}, "no band 'VV'"),
        ({"sar_valid": np.ones((3, 3), bool)}, "validity mask"),
        ({"optical": np.zeros((4, 4, 3))}, "8-bit"),
        ({"optical": None, "sar": None}, "needs an image"),
        ({"turns": (Turn("Describe", "A", region=np.zeros((8, 8))),)}, "at least one pixel"),
    ],
)
def test_errors_name_the_sample(change, message):
    with pytest.raises(UserError, match=f"Sample 's': .*{message}"):
        encode_sample(dataclasses.replace(sample(), **change), CFG, DATA, TOKENIZER, BUCKETS)


def test_buckets():
    assert Buckets().fit_tiles(5) == 7
    assert Buckets().fit_text(129) == 256
    with pytest.raises(UserError, match="14 tiles but the largest bucket holds 13"):
        Buckets().fit_tiles(14)
    with pytest.raises(UserError, match="longer than the largest bucket"):
        Buckets().fit_text(10000)
    with pytest.raises(UserError, match="increasing"):
        Buckets(tiles=(4, 2))
    with pytest.raises(UserError, match="ids but the model"):
        with_tokens(dataclasses.replace(CFG, lm=dataclasses.replace(CFG.lm, vocab=10)), TOKENIZER)


def test_run_length_codes():
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (1, 3), (16, 16)):
        for mask in (rng.random(shape) > 0.5, np.ones(shape, bool), np.zeros(shape, bool)):
            np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)
    # Runs 3, 5, 4, 1, 2 of a 3 x 5 image, compressed by hand: 3 5 4, then 1 - 5 and 2 - 4.
    code = {"size": [3, 5], "counts": "354LN"}
    np.testing.assert_array_equal(decode_rle(code), decode_rle({"size": [3, 5], "counts": [3, 5, 4, 1, 2]}))
    with pytest.raises(UserError, match="cover 3 pixels"):
        decode_rle({"size": [3, 5], "counts": [3]})
    union = draw_polygons([[0, 0, 3, 0, 3, 3, 0, 3], [2, 2, 5, 2, 5, 5, 2, 5]], (8, 8))
    assert union[1, 1]
    assert union[4, 4]
    assert not union[6, 6]
    assert union.dtype == bool


def test_polygons_cover_the_pixels_whose_centres_they_hold():
    box = np.zeros((9, 12), bool)
    box[2:7, 3:11] = True
    np.testing.assert_array_equal(draw_polygons([[3, 2, 11, 2, 11, 7, 3, 7]], (9, 12)), box)
    np.testing.assert_array_equal(draw_polygons([[2.6, 1.6, 11.4, 1.6, 11.4, 7.4, 2.6, 7.4]], (9, 12)), box)
    assert draw_polygons([[-1e8, -5, 1e8, -5, 1e8, 99, -1e8, 99]], (9, 12)).all()
    assert not draw_polygons([[20, 20, 30, 20, 30, 30]], (9, 12)).any()
    rows, columns = np.nonzero(draw_polygons([[4.1, 3.1, 4.3, 3.1, 4.3, 3.3, 4.1, 3.3]], (9, 12)))
    assert (rows.tolist(), columns.tolist()) == ([3], [4]), "it lies between the centres of pixels"
    rng = np.random.default_rng(0)
    for _ in range(20):  # beside GDAL's, edges through no centre
        corners = rng.random((7, 2)) * 16 - 2
        shape = {"type": "Polygon", "coordinates": [[*corners.tolist(), corners[0].tolist()]]}
        drawn = draw_polygons([corners.ravel().tolist()], (9, 12))
        np.testing.assert_array_equal(drawn, burn([(shape, 1)], (9, 12)))


def test_record_files(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [
        Record("a", (RecordTurn("Where?", "It is [SEG].", (np.eye(3, dtype=bool),)),), optical="a.tif", sar="b.tif"),
        Record("b", (RecordTurn("Both?", "[SEG] [SEG]", ([[0, 0, 1, 0, 1, 1]], "m.png")),), sar="c.png"),
        Record("c", (RecordTurn("Describe region1.", "A lake", (), [[0, 0, 1, 0, 1, 1]]),), optical="d.png"),
    ]
    write_jsonl(path, records)
    again = read_jsonl(path)
    assert [r.id for r in again] == ["a", "b", "c"]
    assert again[1] == records[1]
    assert again[2] == records[2]
    assert again[0].root == tmp_path
    assert decode_rle(again[0].turns[0].masks[0]).sum() == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2: the record must be an object"),
        ('{"id": "x", "turn": []}', r"line 2: the record has the unknown field 'turn'. Did you mean 'turns'"),
        ('{"id": "x", "turns": []}', "line 2: field 'turns' must be a list of at least one"),
        ('{"turns": [{"question": "a"}]}', "line 2: field 'id' must be text"),
        ('{"id": "x", "turns": [{"question": 5}]}', r"line 2: field 'turns\[0\].question' must be text, not 5"),
        ('{"id": "x", "turns": [{"question": "a", "answer": "[SEG]"}]}', r"has 1 \[SEG\] but there are 0 masks"),
        ('{"id": "x", "turns": [{"question": "a", "region": 3}]}', r"'turns\[0\].region' must be a path"),
        ('{"id": "x", "sar": 3, "turns": [{"question": "a"}]}', "field 'sar' must be text"),
    ],
)
def test_record_errors_name_line_and_field(tmp_path, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "ok", "turns": [{"question": "a", "answer": null}]}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


def test_unreadable_record_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_jsonl(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no records"):
        read_jsonl(tmp_path / "empty.jsonl")
