"""The stream of batches: deterministic, sharded, resumable."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs.tiny import get_config
from earthmind_jax.data.collate import Buckets, collate, with_tokens
from earthmind_jax.data.pipeline import Lazy, pipeline, simulated, training_pipeline
from earthmind_jax.data.read import load_images, load_record
from earthmind_jax.data.records import Record, RecordTurn, Sample, Turn, read_jsonl, write_jsonl
from earthmind_jax.data.tokenizer import Tokenizer, train_bpe
from earthmind_jax.errors import UserError

RUN = get_config()
TOKENIZER = train_bpe(["Where is the river? It is [SEG].", "Is there a lake? Yes."] * 3, 300)
CFG = with_tokens(RUN.model, TOKENIZER)
DATA = dataclasses.replace(RUN.data, batch_size=4, drop_optical=0.3, drop_sar=0.3)


def make(index: int) -> Sample:
    rng = np.random.default_rng(index)
    optical = {name: rng.uniform(0, 0.3, (32, 32)).astype(np.float32) for name in ("B04", "B03", "B02")}
    sar = {name: rng.uniform(-25, 0, (32, 32)).astype(np.float32) for name in ("VV", "VH")}
    turns = [Turn(f"Where is river {index}?", "It is [SEG].", rng.random((32, 32)) > 0.5) for _ in range(2)]
    return Sample(str(index), tuple(turns), optical, sar)


SOURCE = [make(i) for i in range(23)]


def stream(source=SOURCE, data=DATA, **options):
    return iter(pipeline(source, CFG, data, TOKENIZER, **{"seed": 5, **options}))


def equal(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def asked(batch) -> list[str]:
    return [TOKENIZER.decode(row[mark]) for row, mark in zip(batch.tokens, batch.question, strict=True)]


def test_batches_are_static_and_deterministic():
    first, second, other = stream(), stream(), stream(seed=6)
    shapes = set()
    differs = False
    for _ in range(12):
        a, b, c = next(first), next(second), next(other)
        assert equal(a, b)
        differs |= not equal(a, c)
        shapes.add(tuple(x.shape for x in jax.tree.leaves(a)))
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(a))
    assert differs
    assert len(shapes) == 1
    assert a.tokens.shape == (4, DATA.text_length)


def test_resume_is_exact():
    whole = stream()
    batches = [next(whole) for _ in range(100)]
    state = None
    again = stream()
    for i in range(50):
        assert equal(next(again), batches[i])
    state = json.loads(json.dumps(again.get_state()))
    resumed = stream()
    resumed.set_state(state)
    for i in range(50, 100):
        assert equal(next(resumed), batches[i])


def test_shards_make_up_the_global_batch():
    buckets = Buckets(tiles=(1,), text=(DATA.text_length,))
    whole = stream(buckets=buckets)
    parts = [stream(buckets=buckets, process=p, processes=2) for p in range(2)]
    for _ in range(8):
        batch, (left, right) = next(whole), (next(p) for p in parts)
        merged = jax.tree.map(lambda a, b: np.concatenate([a, b]), left, right)
        assert equal(batch, merged)
    # The state is the number of global batches: it moves to another number of processes.
    resumed = stream(buckets=buckets)
    resumed.set_state(parts[0].get_state())
    assert equal(next(resumed), next(whole))


def test_finite_streams_end_and_resume_at_the_end():
    data = dataclasses.replace(DATA, batch_size=5)
    finite = stream(data=data, epochs=1)
    assert len(list(finite)) == 4
    again = stream(data=data, epochs=1)
    again.set_state(finite.get_state())
    assert list(again) == []
    with pytest.raises(UserError, match="not one of this pipeline"):
        again.set_state({"next_index": 3})


def test_every_epoch_sees_every_sample_in_a_new_order():
    data = dataclasses.replace(DATA, batch_size=1, drop_optical=0.0, drop_sar=0.0)
    seen = [asked(batch)[0] for batch in stream(data=data, epochs=2)]
    assert len(seen) == 46
    assert len(set(seen[:23])) == len(set(seen[23:])) == 23
    assert seen[:23] != seen[23:]
    plain = [asked(batch)[0] for batch in stream(data=data, epochs=1, shuffle=False)]
    assert plain == [f"Where is river {i}?" * 2 for i in range(23)]


def test_dropout_differs_between_epochs_and_can_be_off():
    data = dataclasses.replace(DATA, batch_size=1)
    drops = [(b.optical_valid.any(), b.sar_valid.any()) for b in stream(data=data, epochs=4, shuffle=False)]
    assert {(True, True), (True, False), (False, True)} == set(drops)
    assert drops[:23] != drops[23:46]
    assert all(b.optical_valid.any() and b.sar_valid.any() for b in stream(data=data, epochs=2, augment=False))


def test_lazy_sources_are_read_on_demand():
    made = []

    def noted(index):
        made.append(index)
        return make(index)

    lazy = Lazy(noted, 1_000_000)
    it = iter(training_pipeline(dataclasses.replace(RUN, model=CFG, data=DATA), lazy, TOKENIZER))
    next(it)
    assert 0 < len(made) < 100
    assert max(made) > 1000


def test_simulated_scenes_follow_from_seed_and_index():
    scenes = simulated(1000, seed=3, size=32)
    first, again, other = scenes[7], simulated(10, seed=3, size=32)[7], scenes[8]
    assert [t.question for t in first.turns] == [t.question for t in again.turns]
    np.testing.assert_array_equal(first.sar["VV"], again.sar["VV"])
    assert not np.array_equal(first.sar["VV"], other.sar["VV"])
    long = dataclasses.replace(DATA, text_length=1024, turns=2)
    cfg = dataclasses.replace(CFG, max_length=1024)
    batch = next(iter(pipeline(scenes, cfg, long, TOKENIZER)))
    assert batch.sar.shape[0] == 4
    assert batch.loss_mask.any(1).all()


def test_simulated_views():
    """Parts of scenes of several sizes, drawn equally often, follow from seed and index, too."""
    told = {"seed": 3, "tasks": ("referring_segmentation",), "views": ((32, 32), (64, 32), (64, 48))}
    scenes = simulated(1000, **told)
    sides = [len(scenes[i].sar["VV"]) for i in range(30)]
    assert set(sides) == {32, 48}
    assert 15 < sides.count(32) < 25
    np.testing.assert_array_equal(scenes[7].sar["VV"], simulated(10, **told)[7].sar["VV"])
    for shown in (65, 8):
        with pytest.raises(UserError, match=f"not {shown} of 64"):
            dataclasses.replace(DATA, views=((64, shown),))


def test_bad_requests():
    with pytest.raises(UserError, match="empty"):
        stream([])
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        stream(process=0, processes=3)
    with pytest.raises(UserError, match="Process 2 of 2"):
        stream(process=2, processes=2)
    with pytest.raises(UserError, match="do not fill one batch"):
        stream(SOURCE[:3], epochs=1)
    with pytest.raises(UserError, match=r"Sample 'bad'.*masks"):
        next(stream([dataclasses.replace(SOURCE[0], id="bad", turns=(Turn("a", "[SEG]"),))]))


class Counting:
    """A tokenizer's inside that notes every string it really encodes."""

    def __init__(self, inner, seen):
        self.inner, self.seen = inner, seen

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def backend_tokenizer(self):
        return Counting(self.inner.backend_tokenizer, self.seen)

    def encode(self, text, **options):
        self.seen.append(text)
        return self.inner.encode(text, **options)


def test_each_distinct_string_is_encoded_once():
    seen = []
    tokenizer = Tokenizer(Counting(TOKENIZER.inner, seen))
    images = dict.fromkeys(("B04", "B03", "B02"), np.zeros((32, 32), np.float32))
    turns = tuple(Turn("Where is the river?", "It is [SEG].", np.ones((32, 32), bool)) for _ in range(3))
    samples = [Sample(str(i), turns, images) for i in range(16)]
    first = collate(samples, CFG, dataclasses.replace(DATA, text_length=512), tokenizer)
    # The first question stands behind the image, the others do not, and all answers are alike. Counts do not matter:
    # an image block is encoded as one token, however many it becomes.
    assert len(seen) == len(set(seen)) == 3
    assert not any(text.count("<IMG_CONTEXT>") > 1 for text in seen)
    assert equal(collate(samples, CFG, dataclasses.replace(DATA, text_length=512), tokenizer), first)
    assert len(seen) == 3


def test_record_files_to_batches(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("optical", "sar", "mask"):
        values = rng.integers(0, 256, (40, 40, 3) if name == "optical" else (40, 40), dtype=np.uint8)
        Image.fromarray(values if name != "mask" else (values > 127).astype(np.uint8) * 255).save(
            tmp_path / f"{name}.png"
        )
    turn = RecordTurn("Where?", "It is [SEG].", ("mask.png",))
    box = RecordTurn("Describe {region}.", "A lake", (), [[5, 5, 30, 5, 30, 30, 5, 30]])
    write_jsonl(tmp_path / "r.jsonl", [Record(str(i), (turn, box), "optical.png", "sar.png") for i in range(4)])
    records = read_jsonl(tmp_path / "r.jsonl")
    sample = load_record(records[0], CFG.sensors)
    assert sample.optical.shape == (40, 40, 3)
    assert sample.turns[0].mask.dtype == bool
    assert (sample.sar[..., 0] == sample.sar[..., 2]).all()
    assert sample.turns[1].region[10, 10]
    batch = next(stream(records, augment=False))
    assert batch.mask_valid[:, 0].all()
    assert "region1" in asked(batch)[0]
    left = load_images({"optical": tmp_path / "optical.png"}, CFG.sensors).crop((slice(0, 40), slice(0, 20)))
    assert left.shape == (40, 20)
    assert left.crs is None
    assert left.valid.all()
    missing = dataclasses.replace(records[0], sar="absent.png")
    with pytest.raises(UserError, match=r"r.jsonl line 1: there is no file"):
        load_record(missing, CFG.sensors)
    wrong = dataclasses.replace(records[0], turns=(RecordTurn("a", "[SEG]", ({"size": [10, 40], "counts": [400]},)),))
    with pytest.raises(UserError, match="do not match"):
        load_record(wrong, CFG.sensors)


def test_rasters_are_calibrated_and_aligned(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    transform = rasterio.Affine(10, 0, 500000, 0, -10, 5000000)
    rng = np.random.default_rng(0)
    optical = rng.integers(1000, 4000, (3, 32, 32)).astype(np.uint16)
    sar = rng.uniform(0.01, 0.3, (2, 32, 32)).astype(np.float32)
    for name, values, bands in (("s2", optical, ("B02", "B03", "B04")), ("s1", sar, ("VV", "VH"))):
        profile = {"driver": "GTiff", "height": 32, "width": 32, "count": len(values), "dtype": values.dtype}
        with rasterio.open(tmp_path / f"{name}.tif", "w", crs="EPSG:32633", transform=transform, **profile) as file:
            file.write(values)
            for i, band in enumerate(bands, 1):
                file.set_band_description(i, band)
    sample = load_record(Record("r", (RecordTurn("Where?"),), "s2.tif", "s1.tif", tmp_path), CFG.sensors)
    assert set(sample.optical) == {"B02", "B03", "B04"}
    assert set(sample.sar) == {"VV", "VH"}
    np.testing.assert_allclose(sample.sar["VV"], 10 * np.log10(sar[0]), atol=1e-4)
    assert sample.optical_valid.all()
    assert sample.optical["B04"].max() < 1
    images = load_images({"optical": tmp_path / "s2.tif", "sar": tmp_path / "s1.tif"}, CFG.sensors)
    part = images.crop((slice(8, 16), slice(4, 24)))
    assert part.shape == (8, 20)
    assert part.crs.to_epsg() == 32633
    assert part.transform @ (0, 0) == (500040, 4999920)
    np.testing.assert_array_equal(part.pictures["sar"][0]["VV"], images.pictures["sar"][0]["VV"][8:16, 4:24])
    batch = next(stream([Record("r", (RecordTurn("Where?", "There"),), "s2.tif", "s1.tif", tmp_path)], augment=False))
    assert batch.optical_valid.all()
    assert batch.sar_valid.all()
