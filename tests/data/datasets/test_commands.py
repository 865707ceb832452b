"""Data sets by command and in a run: check, list, convert, sources of a mixture."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import published_layouts as layouts
import pytest
import rasterio
import support

from configs import tiny
from earthmind_jax.config import SourceConfig, from_json, to_json
from earthmind_jax.data import datasets
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.read import load_record
from earthmind_jax.data.records import read_jsonl
from earthmind_jax.data.sources import Packed, most_dates
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.errors import UserError
from earthmind_jax.train.mixture import read_source
from earthmind_jax.train.run import corpus

SENSORS = support.model().sensors


def test_check_takes_a_directory(tmp_path, capsys):
    layouts.whu_opt_sar(tmp_path)
    code, out, _ = support.run(capsys, "data", "check", tmp_path, "--json")
    facts = json.loads(out)
    assert (code, facts["lines"], facts["masks"], facts["sensors"]) == (0, 1, 2, {"optical and sar": 1})
    assert facts["data set"] == "whu_opt_sar"
    code, _, err = support.run(capsys, "data", "check", tmp_path, "--as", "whu_opt_sr")
    assert code == 2
    assert "Unknown data set 'whu_opt_sr'. Did you mean 'whu_opt_sar'?" in err
    code, _, err = support.run(capsys, "data", "check", tmp_path, "--split", "val")
    assert (code, "no folder val of crops" in err) == (2, True)
    (tmp_path / "optical" / "NH49E001013.tif").unlink()
    code, out, err = support.run(capsys, "data", "check", tmp_path)
    assert code == 2
    assert err.strip().startswith(f"error: 1 of 1 lines of '{tmp_path}' are broken: {tmp_path}")
    assert "Traceback" not in out + err
    code, _, err = support.run(capsys, "data", "check", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
    code, _, err = support.run(capsys, "data", "check", tmp_path / "lbl")
    assert (code, f"'{tmp_path}' has the layout of whu_opt_sar; give that folder" in err) == (2, True)


def test_what_an_archive_leaves_around_a_data_set(tmp_path, capsys):
    inner = tmp_path / "unpacked" / "track2"
    inner.mkdir(parents=True)
    layouts.dfc2023_track2(inner)
    for name in ("__MACOSX/unpacked", ".Trashes"):
        (tmp_path / name).mkdir(parents=True)
    code, _, err = support.run(capsys, "data", "check", tmp_path)
    assert (code, f"'{inner}' has the layout of dfc2023_track2; give that folder" in err) == (2, True)
    packed = tmp_path / "a.zip"
    packed.write_bytes(b"PK")
    code, _, err = support.run(capsys, "data", "convert", packed, tmp_path / "out.jsonl")
    assert (code, f"'{packed}' is an archive; unpack it first" in err) == (2, True)


def test_rasters_without_a_place_are_no_news(tmp_path, capsys, recwarn):
    layouts.dfc2023_track2(tmp_path)
    support.run(capsys, "data", "list")
    recwarn.clear()
    with rasterio.open(tmp_path / "train/sar/P0001.tif") as dataset:
        assert dataset.transform.is_identity
    assert not recwarn.list


def test_problems_beyond_those_kept_are_counted(tmp_path, capsys, monkeypatch):
    layouts.sar_ship(tmp_path)
    for path in tmp_path.rglob("*.txt"):
        path.write_text("1 2 3")
    monkeypatch.setattr("earthmind_jax.data.check.MOST_PROBLEMS", 1)
    monkeypatch.setattr("earthmind_jax.cli_data.SHOWN", 1)
    code, out, _ = support.run(capsys, "data", "check", tmp_path)
    assert (code, "... and 1 more (--json shows the first 1)" in out) == (2, True)
    code, out, _ = support.run(capsys, "data", "check", tmp_path, "--json")
    facts = json.loads(out)
    assert (facts["broken"], len(facts["problems"]), facts["untold"]) == (2, 1, 1)


def test_list_names_every_data_set(capsys):
    code, out, _ = support.run(capsys, "data", "list")
    assert code == 0
    for name in datasets.names():
        assert f"{name}: {datasets.get(name).title}\n" in out
    code, out, _ = support.run(capsys, "data", "list", "--json")
    assert (code, list(json.loads(out))) == (0, list(datasets.names()))
    assert {make.__name__ for make in layouts.LAYOUTS} <= set(datasets.names())


@pytest.mark.parametrize("make", layouts.LAYOUTS, ids=lambda make: make.__name__)
def test_convert_keeps_what_a_line_means(tmp_path, capsys, make):
    if make is layouts.bigearthnet_v2:
        pytest.importorskip("pyarrow")
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / "there")
    out = tmp_path / "elsewhere" / "records.jsonl"
    code, said, err = support.run(capsys, "data", "convert", tmp_path / "there", out)
    assert (code, err.strip()) == (0, "")
    records = read_jsonl(out)
    assert said == f"wrote {out}, {len(records)} records\n"
    for record, line in zip(records, datasets.read(tmp_path / "there"), strict=True):
        here, there = load_record(record, SENSORS), load_record(line.record, SENSORS)
        assert here.id == there.id
        for sensor in support.BOTH:
            for (one, _), (other, _) in zip(here.images(sensor), there.images(sensor), strict=True):
                if isinstance(one, np.ndarray):
                    np.testing.assert_array_equal(one, other)
                else:
                    np.testing.assert_array_equal(list(one.values()), list(other.values()))
        for one, other in zip(here.turns, there.turns, strict=True):
            assert (one.question, one.answer) == (other.question, other.answer)
            np.testing.assert_array_equal(one.masks, other.masks)
    assert str(tmp_path) not in out.read_text()  # paths are relative
    assert [path.name for path in out.parent.iterdir()] == ["records.jsonl"]


def test_convert_stops_at_a_broken_entry_or_leaves_it_out(tmp_path, capsys):
    layouts.sar_ship(tmp_path)
    (tmp_path / "ship_dataset_v0" / "Sen_ship_vv_1.txt").write_text("1 2 3")
    out = tmp_path / "r.jsonl"
    code, _, err = support.run(capsys, "data", "convert", tmp_path, out)
    assert (code, out.exists()) == (2, False)
    assert "Sen_ship_vv_1.JPG: line 1 of its boxes must be" in err
    code, said, err = support.run(capsys, "data", "convert", tmp_path, out, "--skip-broken")
    assert (code, said) == (0, f"wrote {out}, 1 records, 1 broken entries left out\n")
    assert "skipped: " in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "ship_dataset_v0"]
    if Path("/proc/self").is_dir():  # where nobody can write, whoever runs this
        code, _, err = support.run(capsys, "data", "convert", tmp_path, "/proc/r.jsonl", "--skip-broken")
        assert code == 1
        assert "failed: '/proc/r.jsonl' could not be written" in err
    for bad in (tmp_path / "no" / "r.jsonl", tmp_path):
        code, _, err = support.run(capsys, "data", "convert", tmp_path, bad)
        assert (code, str(bad.parent if bad != tmp_path else bad) in err) == (2, True)


def run_config(*sources: SourceConfig):
    run = tiny.get_config()
    model = dataclasses.replace(run.model, grounding=None, max_length=4096)
    data = dataclasses.replace(run.data, text_length=2048, batch_size=4, sources=sources)
    return dataclasses.replace(run, model=model, data=data)


def test_data_sets_in_a_mixture(tmp_path):
    layouts.so2sat_lcz42(tmp_path / "lcz")
    layouts.so2sat_lcz42(tmp_path / "lcz", "block/testing.h5", rows=2)
    layouts.open_earth_map_sar(tmp_path / "oem.v1")
    run = run_config(
        SourceConfig(path="lcz", split="training", weight=2.0),
        SourceConfig(path="lcz", dataset="so2sat_lcz42", split="block/testing", weight=1.0, name="blocks"),
        SourceConfig(path="oem.v1/", weight=1.0),
    )
    assert from_json(type(run), to_json(run)) == run
    source = read_source(run, tmp_path)
    assert source.names == ("lcz", "blocks", "oem")
    assert [len(part) for part in source.sources] == [5, 2, 1]
    words = train_bpe(corpus(source), run.model.lm.vocab)
    run = dataclasses.replace(run, model=with_tokens(run.model, words))
    stream = training_pipeline(run, source, words)
    batches = [next(stream) for _ in range(3)]
    assert np.bincount(np.concatenate([batch.source for batch in batches])).tolist() == [6, 3, 3]
    assert all(batch.optical_valid.any() and batch.sar_valid.any() for batch in batches)


def test_data_takes_a_directory_and_stops_or_skips(tmp_path, capsys):
    layouts.sar_ship(tmp_path)
    source = read_source(run_config(), Path(), data=tmp_path)
    assert [record.id for record in source] == ["Gao_ship_hh_0201608254404", "Sen_ship_vv_1"]
    (tmp_path / "ship_dataset_v0" / "Sen_ship_vv_1.txt").write_text("1 2 3")
    with pytest.raises(UserError, match=r"Sen_ship_vv_1.JPG: line 1 of its boxes"):
        read_source(run_config(), Path(), data=tmp_path)
    source = read_source(run_config(), Path(), data=tmp_path, skip_broken=True)
    assert [record.id for record in source] == ["Gao_ship_hh_0201608254404"]
    assert "skipped 1 broken lines" in capsys.readouterr().err
    with pytest.raises(UserError, match="A source with a dataset or split needs its path"):
        SourceConfig(simulated=3, split="train")


def test_packed_records_are_the_same_and_small(tmp_path):
    layouts.bigearthnet_v1(tmp_path)
    records = [line.record for line in datasets.read(tmp_path, None, "all")]
    packed = Packed(iter(records))
    assert list(packed) == records
    assert [(record.root, record.where) for record in packed] == [(record.root, record.where) for record in records]
    assert len(pickle.dumps(packed)) < 1000 * len(records)
    assert most_dates(packed) == 1
    assert pickle.loads(pickle.dumps(packed))[2] == records[2]
