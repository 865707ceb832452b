"""The experiment at two steps a run: it trains what is missing, continues where it was, and renders the table."""

from __future__ import annotations

import dataclasses
import json

import pytest
import support

from earthmind_jax.config import Group, LossConfig
from earthmind_jax.errors import UserError
from earthmind_jax.evaluate import fusion_bench, training


@pytest.fixture
def small(one_device, monkeypatch):
    """The tiny model, two scenes of each sky, and the regime that trains both ways."""

    def stage(mode, seed, steps):
        config = support.run_config(
            support.model(mode), (Group(pattern="grounding/prompt/"), *support.ALL), steps=steps
        )
        data = dataclasses.replace(config.data, batch_size=8, text_length=200, masks_per_sample=2)
        loss = LossConfig(points=0, text=0.0, seg=0.0, phrase=1.0, mask_contrast=1.0)
        return dataclasses.replace(config, data=data, loss=loss, seed=seed)

    monkeypatch.setattr(fusion_bench, "stage", stage)
    monkeypatch.setattr(training, "CORPUS", 40)
    for name, value in (("SCENES", 2), ("BATCH", 2), ("ALONE", 1), ("REGIMES", ("frozen",))):
        monkeypatch.setattr(fusion_bench, name, value)


def test_runs_once_and_continues(small, tmp_path, capsys):
    fusion_bench.run(tmp_path, modes=("average",), seeds=1, steps=1)
    first = (tmp_path / "results.jsonl").read_text()
    result = json.loads(first)
    assert (result["regime"], result["mode"], result["seed"], result["steps"]) == ("frozen", "average", 0, 1)
    assert 0 <= result["cloudy_iou"] <= 1
    assert result["cloudy_masks"] > 0
    assert result["sar_cloud"] == pytest.approx(0.5, abs=0.02)  # the average weighs both alike
    fusion_bench.run(tmp_path, modes=("average",), seeds=1, steps=1)
    assert (tmp_path / "results.jsonl").read_text() == first
    assert "| average | 1 |" in (tmp_path / "table.md").read_text()
    assert "| average | 1 |" in capsys.readouterr().out


def test_table():
    runs = [
        {"regime": "scratch", "mode": mode, "seed": seed, "cloudy_iou": iou + 0.01 * seed, "clear_iou": 0.5,
         "sar_cloud": 0.8, "sar_clear": 0.2}
        for mode, iou in (("average", 0.2), ("hca_gated", 0.4)) for seed in range(3)
    ]  # fmt: skip
    lines = [line for line in fusion_bench.render(runs).splitlines() if line.startswith("| ")]
    assert lines[2].startswith("| hca_gated | 3 | 0.410 ± 0.025 | 0.500 ± 0.000 | 0.80 / 0.20 |")
    assert lines[3].startswith("| average | 3 |")
    alone = fusion_bench.over_seeds([0.3])
    assert alone.mean == 0.3
    assert alone.low != alone.low  # one run has no interval


def test_an_unknown_mode(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'average'"):
        fusion_bench.run(tmp_path / "x", modes=("averag",))
    assert not (tmp_path / "x").exists()
