"""From a configuration file and data to a trained checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from earthmind_jax import checkpoint
from earthmind_jax.data.simulate import make_questions, make_scene, write_scene
from earthmind_jax.data.tokenizer import Tokenizer
from earthmind_jax.errors import UserError
from earthmind_jax.train.run import load_config, run

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"


def test_changes_are_applied():
    config = load_config(TINY, ["steps=3", "model.fusion.mode=average", "optim.betas=[0.8, 0.9]", "name = other "])
    assert (config.steps, config.model.fusion.mode, config.optim.betas) == (3, "average", (0.8, 0.9))
    assert config.name == "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "written key=value, not 'steps'"),
        ("stebs=3", "'stebs'.*Did you mean 'steps'"),
        ("model.fusion.mod=hca", "Did you mean 'mode'"),
        ("model.fusion.mode=averag", "Did you mean 'average'"),
        ("steps=many", "'steps' must be int, not 'many'"),
    ],
)
def test_wrong_changes(change, message):
    with pytest.raises(UserError, match=message):
        load_config(TINY, [change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1\n", r"has no function get_config\(\)"),
        ("def get_config(:\n", "cannot be run"),
        ("import no_such_module\n", "cannot be run: No module named 'no_such_module'"),
        ("def get_config():\n    return {}\n", "returns dict, not a RunConfig"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "config.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_a_file_that_is_not_python(tmp_path):
    (tmp_path / "config.txt").write_text("steps: 3")
    with pytest.raises(UserError, match="not a Python file"):
        load_config(tmp_path / "config.txt")


def test_geotiffs_to_a_trained_model(tmp_path):
    pytest.importorskip("rasterio")
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(4):
        scene = make_scene(seed, size=32)
        write_scene(scene, data, f"scene{seed}", questions=make_questions(scene, np.random.default_rng(seed)))
    # Text alone, so that the test measures the road and not the compilation of the mask decoder's gradient.
    changes = ["steps=2", "model.max_length=1024", "data.text_length=768", "data.turns=1", "model.grounding=null",
               'optim.groups=[{"pattern": ".*", "learning_rate": 1.0}]', "mesh.fsdp=2"]  # fmt: skip
    state = run(load_config(TINY, changes), tmp_path / "run", data=data / "records.jsonl")
    assert int(state.step) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2]
    assert np.isfinite(lines[0]["loss"])
    config, params = checkpoint.load(tmp_path / "run")
    words = Tokenizer.load(tmp_path / "run" / checkpoint.TOKENIZER)
    assert config.tokens == words.special_tokens()
    assert config.tokens.seg >= 0
    for path, x in state.params.items():
        np.testing.assert_array_equal(params[path], x, err_msg=path)


def test_a_missing_record_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        run(load_config(TINY), tmp_path / "run", data=tmp_path / "absent.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_start_must_be_the_same_model(tmp_path):
    import support

    model = support.model("average", None)
    checkpoint.save(tmp_path / "start", model, support.params(model), support.tokenizer(), {})
    with pytest.raises(UserError, match="holds another model than"):
        run(load_config(TINY), tmp_path / "run", start=tmp_path / "start")
    assert not (tmp_path / "run").exists()
