"""The demo from end to end with two training steps a stage: everything it promises is there, and it resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support import params

from earthmind_jax import checkpoint, demo
from earthmind_jax.config import EarthMindConfig, Group, RunConfig
from earthmind_jax.errors import UserError
from earthmind_jax.evaluate import training
from earthmind_jax.infer.predictor import EarthMind
from earthmind_jax.models import api


@pytest.fixture
def small(one_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer layers and scenes, weights drawn by numpy, and little that learns, with a plain optimiser: nearly all of
    the time would go into compiling gradients, Muon and random numbers, which have tests of their own."""
    whole, both = demo.settings.model, demo.settings.stages

    def model(mode: str = "hca_plus", grounding: str = "fused") -> EarthMindConfig:
        config = whole(mode, grounding)
        blocks = dataclasses.replace(config.grounding, stages=(1, 1, 1, 1), global_blocks=(2,), decoder_depth=1)
        return dataclasses.replace(config, grounding=blocks)

    def stages(*arguments: Any, **options: Any) -> tuple[RunConfig, ...]:
        made = both(*arguments, **options)
        groups = (Group(pattern="(vision|grounding)/"), Group(pattern=".*", learning_rate=1.0))
        return tuple(
            dataclasses.replace(s, optim=dataclasses.replace(s.optim, method="adamw", groups=groups)) for s in made
        )

    monkeypatch.setattr(demo.settings, "model", model)
    monkeypatch.setattr(demo.settings, "stages", stages)
    monkeypatch.setattr(api, "init", lambda config, key, only=None: params(config))
    monkeypatch.setattr(training, "CORPUS", 40)
    monkeypatch.setattr(demo, "SCENES", 2)
    monkeypatch.setattr(demo, "SHOWN", 1)


def test_demo_writes_everything_and_resumes(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    shown = demo._show

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_show", cut_off)
    with pytest.raises(KeyboardInterrupt):
        demo.run(out, steps=2)
    before = checkpoint.load(out / "checkpoint")[1]
    monkeypatch.setattr(demo, "_show", shown)
    demo.run(out, steps=2)

    page = (out / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "trained for a few minutes on simulated scenes" in page
    assert "http" not in page
    after = checkpoint.load(out / "checkpoint")[1]
    assert all((before[path] == after[path]).all() for path in before)
    assert (out / "results" / "scene_0" / "mask_1.tif").is_file()
    assert (out / "results" / "scene_0" / "mask_1.geojson").is_file()
    model = EarthMind.load(out / "checkpoint")
    assert isinstance(model.ask("What does the image show?", optical=out / "scenes" / "scene_0_s2.tif").text, str)
    with pytest.raises(UserError, match="finished demo"):
        demo.run(out, steps=2)
