"""Several stages from one configuration file, what is published as configurations, and what a run shows beforehand."""

from __future__ import annotations

import importlib
import json
import re

import numpy as np
import pytest
import support

from configs import published
from earthmind_jax import checkpoint
from earthmind_jax.config import LoraConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import api
from earthmind_jax.train import curriculum
from earthmind_jax.train.board import BOARD
from earthmind_jax.train.profile import PROFILE
from earthmind_jax.train.run import load_stages
from earthmind_jax.train.state import assignment
from earthmind_jax.train.watch import CLOCKED, Costs, Watch

STAGES = """
import dataclasses
from configs import tiny
from earthmind_jax.config import Group

def get_config():
    run = tiny.get_config()
    model = dataclasses.replace(run.model, grounding=None, max_length=512)
    groups = (Group(pattern="vision/"), Group(pattern=".*", learning_rate=1.0))
    optim = dataclasses.replace(run.optim, groups=groups)
    data = dataclasses.replace(run.data, text_length=448, batch_size=8, turns=1)
    run = dataclasses.replace(run, model=model, optim=optim, data=data, checkpoint_every=2)
    return (dataclasses.replace(run, name="Words first", steps=6),
            dataclasses.replace(run, name="pairs", steps=2, seed=7))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "stages.py"
    path.write_text(STAGES)
    return path


def test_stages_follow_each_other_and_go_on_where_they_stopped(file, one_device, tmp_path, capsys):
    stages, out = load_stages(file), tmp_path / "out"
    first, second = (curriculum.directory(out, i, config) for i, config in enumerate(stages, 1))
    assert (first.name, second.name) == ("1-words-first", "2-pairs")
    with pytest.raises(UserError, match=r"done 0 of 6 steps; train the stage 'Words first' first"):
        curriculum.train(stages, out, stage="pairs", scenes=8)
    assert not out.exists()
    curriculum.train(stages, out, scenes=8, until=2)
    assert (curriculum.steps_done(first), curriculum.steps_done(second)) == (2, 0)
    code, _, err = support.run(capsys, "train", file, "--out", out, "--scenes", 8, "--report-every", 1, "--profile", 1)
    assert code == 0, err
    assert (curriculum.steps_done(first), curriculum.steps_done(second)) == (6, 2)
    assert (first / checkpoint.TOKENIZER / "tokenizer.json").read_bytes() == (
        second / checkpoint.TOKENIZER / "tokenizer.json"
    ).read_bytes()
    # The second stage went on from the first: two small steps away from it, and from nothing else.
    (_, before), (_, after) = checkpoint.load(first), checkpoint.load(second)
    moved = max(float(np.abs(after[path] - x).max()) for path, x in before.items())
    assert 0 < moved < 3e-3
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6]
    assert all(line["tokens_per_s"] > 0 and 0 <= line["input_wait"] <= 1 and 0 <= line["padding"] < 1 for line in lines)
    assert "mfu" not in lines[0]  # nobody knows the peak of these devices
    assert list((first / BOARD).glob("events.*"))
    assert list((first / PROFILE).rglob("*.xplane.pb"))
    assert curriculum.train(stages, out, scenes=8) is None  # nothing is left to do
    with pytest.raises(UserError, match=r"Unknown stage 'pears'. Did you mean 'pairs'"):
        curriculum.train(stages, out, stage="pears")


def test_stages_need_names_of_their_own(tmp_path):
    (tmp_path / "twice.py").write_text(STAGES.replace('name="pairs"', 'name="Words first"'))
    with pytest.raises(UserError, match="names of their own, not Words first, Words first"):
        load_stages(tmp_path / "twice.py")


def test_a_dry_run_shows_what_would_be_trained(file, tmp_path, capsys):
    code, out, err = support.run(capsys, "train", file, "--out", tmp_path / "run", "--scenes", 8, "--dry-run")
    assert code == 0, err
    assert "parameters by group" in out
    assert re.search(r"sample 0: .*<image x \d+>.*\[\[.+\]\]", out, re.DOTALL)
    assert re.search(r"\d+ % of the batch's token positions are padding", out)
    files = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {"batch.txt", "batch.png"}
    assert (tmp_path / "run" / "dry-run" / "batch.png").read_bytes().startswith(b"\x89PNG")


def test_utilisation_is_the_share_of_the_peak():
    watch = Watch(8, 2, Costs(lambda tiles: 1e9 * tiles, 1e12))
    batch = support.scenes(count=4)
    for _ in range(5):
        watch.took(batch, 0.0)
    found = watch.report()
    assert set(found) == set(CLOCKED)
    np.testing.assert_allclose(found["samples_per_s"], 8 / found["step_s"], rtol=1e-2)
    np.testing.assert_allclose(found["mfu"], 1e9 / found["step_s"] / 1e12, rtol=1e-2)
    np.testing.assert_allclose(found["tokens_per_s"], 2 * batch.lengths.sum() / found["step_s"], rtol=1e-2)
    assert found["memory_gb"] > 0.1


@pytest.mark.parametrize(
    "name", ["earthmind_4b", "earthmind_4b_released", "earthgpt_x", "internvl2_1b", "internvl2_2b", "internvl2_8b"]
)
def test_published_configurations(name):
    """Their freeze tables cover the model, and what learns is what is published."""
    made = importlib.import_module(f"configs.{name}").get_config()
    stages = made if isinstance(made, tuple) else (made,)
    assert [config.name for config in stages] in (["general", "earth", "pairs"], ["released"], ["single stage"])
    assert all(config.data.sources and config.steps > 0 for config in stages)
    config = stages[-1]
    assert all((other.model, other.optim) == (config.model, config.optim) for other in stages)
    assert config.model.lm.lora == LoraConfig(rank=128, alpha=256.0, dropout=0.05)
    if name not in ("earthmind_4b", "internvl2_1b"):  # the others have the same freeze tables
        return
    table, shapes = assignment(config), api.shapes(config.model)
    learns = {path for path in shapes if table.trainable(path)}
    assert {path.split("/")[0] for path in learns} >= {"projector", "lora", "text_hidden_fcs", "grounding", "lm"}
    assert {path.split("/")[1] for path in learns if path.startswith("grounding/")} == {"decoder"}
    assert {path.split("/")[1] for path in learns if path.startswith("lm/")} == {"embed", "head"}
    assert not any(path.startswith("vision/") for path in learns)


def test_differences_between_paper_and_released_code():
    paper, released = published.curriculum(published.earthmind_4b())[-1], published.released_4b()
    found = {field: (one, other) for field, one, other in published.differences(paper, released)}
    for field, values in {
        "optim.method": ("adam", "adamw"),
        "optim.warmup": (0.3, 0.05),
        "data.batch_size": (64, 32),
        "optim.accumulate": (1, 4),
        "loss.sensor_mse": (0.0, 1.0),
        "loss.attention": (0.0, 0.1),
        "model.fusion.mode": ("hca_plus", "release_2025_06"),
        "model.fusion.grounding": ("fused", "sar"),
        "model.sensors.sar_channels": ("zero_pad", "replicate"),
    }.items():
        assert found[field] == values, field
    assert "optim.learning_rate" not in found
