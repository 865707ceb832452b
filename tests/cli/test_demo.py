"""The demo from end to end with two training steps a stage: everything it promises is there, and it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from earthmind_jax import checkpoint, demo
from earthmind_jax.errors import UserError
from earthmind_jax.infer.predictor import EarthMind


def test_demo_writes_everything_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SCENES", 2)
    monkeypatch.setattr(demo, "SHOWN", 1)
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
