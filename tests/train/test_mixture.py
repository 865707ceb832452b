"""What a run is trained on: ``--data``, the configuration's sources, simulated scenes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import support

from configs import tiny
from earthmind_jax.config import SourceConfig
from earthmind_jax.data.collate import with_tokens
from earthmind_jax.data.pipeline import training_pipeline
from earthmind_jax.data.records import Record, RecordTurn, read_jsonl, write_jsonl
from earthmind_jax.data.sources import Mixture
from earthmind_jax.data.tokenizer import train_bpe
from earthmind_jax.errors import UserError
from earthmind_jax.train.mixture import read_source
from earthmind_jax.train.run import corpus, load_config, run

SOURCES = (
    SourceConfig(path="sub/words.jsonl", weight=2.0),
    SourceConfig(path="sub/more.jsonl", weight=1.0, name="others"),
    SourceConfig(simulated=6, weight=1.0),
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("words", "more"):
        turns = (RecordTurn("Is there a lake?", f"{name} lake"),)
        write_jsonl(tmp_path / "sub" / f"{name}.jsonl", [Record(f"{name}{i}", turns) for i in range(3)])
    return tmp_path


def config(sources=SOURCES):
    given = tiny.get_config()
    model = dataclasses.replace(given.model, grounding=None, max_length=1024)
    data = dataclasses.replace(given.data, text_length=1024, turns=1, sources=sources, sky="clear")
    return dataclasses.replace(given, model=model, data=data)


def test_a_mixture_of_files_and_scenes(root):
    run_config = config()
    source = read_source(run_config, root)
    assert source.names == ("words", "others", "simulated")
    assert source.shares == (2, 1, 1)
    words = train_bpe(corpus(source), run_config.model.lm.vocab)
    run_config = dataclasses.replace(run_config, model=with_tokens(run_config.model, words))
    stream = training_pipeline(run_config, source, words)
    assert stream.names == source.names
    batches = [next(stream) for _ in range(4)]
    told = np.concatenate([b.source for b in batches])
    assert np.bincount(told).tolist() == [16, 8, 8]
    for batch in batches:
        seen = [words.decode(row[:n]) for row, n in zip(batch.tokens, batch.lengths, strict=True)]
        for number, text, pixels in zip(batch.source, seen, batch.sar_valid | batch.optical_valid, strict=True):
            assert ("words lake" in text, "more lake" in text, bool(pixels.any())) == tuple(
                number == i for i in range(3)
            )


def test_sources_of_one_name_are_told_apart():
    configs = [SourceConfig(simulated=2), SourceConfig(path="a/x.jsonl"), SourceConfig(simulated=3)]
    assert Mixture.of([[0], [1], [2]], configs).names == ("simulated", "x", "simulated 2")


def test_data_stands_instead_of_the_sources(root):
    assert len(read_source(config(), root, data=root / "sub" / "more.jsonl")) == 3
    alone = config(())
    alone = dataclasses.replace(alone, data=dataclasses.replace(alone.data, tasks=("caption",), views=((48, 32),)))
    scenes = read_source(alone, root, scenes=5)
    assert len(scenes) == 5
    assert len(scenes[0].turns) == 1  # of all tasks there would be several
    assert scenes[0].sar["VV"].shape == (32, 32)
    assert [r.id for r in read_source(config(SOURCES[:1]), root)] == [
        r.id for r in read_jsonl(root / "sub/words.jsonl")
    ]


def test_broken_lines_stop_or_are_skipped(root, capsys):
    path = root / "sub" / "words.jsonl"
    with path.open("a") as file:
        file.write('{"id": 5, "optical": "absent.png", "turns": [{"question": "a"}]}\n{\n')
    with pytest.raises(UserError, match=r"words\.jsonl line 5 is not JSON"):
        read_source(config(), root)
    source = read_source(config(), root, skip_broken=True)
    assert [len(part) for part in source.sources] == [3, 3, 6]
    told = capsys.readouterr().err
    assert "line 4: field 'optical': there is no file" in told
    assert "line 5 is not JSON" in told
    assert f"skipped 2 broken lines of '{path}', 3 are left." in told
    path.write_text("\n".join(path.read_text().splitlines()[:4]))
    with pytest.raises(UserError, match="line 4: field 'optical': there is no file"):
        read_source(config(), root)


def test_paths_start_from_the_configuration_file(root, capsys):
    file = root / "own.py"
    file.write_text(
        "import dataclasses\nfrom configs import tiny\nfrom earthmind_jax.config import SourceConfig\n"
        "def get_config():\n    run = tiny.get_config()\n"
        "    data = dataclasses.replace(run.data, sources=(SourceConfig(path='sub/none.jsonl'),))\n"
        "    return dataclasses.replace(run, data=data)\n"
    )
    with pytest.raises(UserError, match=f"record file '{root}/sub/none.jsonl' cannot be read"):
        run(load_config(file), root / "run", data_root=root)
    with pytest.raises(UserError, match=f"record file '{root}/other/sub/none.jsonl' cannot be read"):
        run(load_config(file), root / "run", data_root=root / "other")
    code, _, err = support.run(capsys, "train", file, "--out", root / "run", "--data-root", root / "other")
    assert code == 2
    assert "other/sub/none.jsonl" in err
    assert not (root / "run").exists()
