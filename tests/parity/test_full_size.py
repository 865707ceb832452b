"""The full-size comparison (``benchmarks/full_size_parity.py``) at toy size: it passes, and a wrong weight fails it."""

from __future__ import annotations

import gzip
import json

import published
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import full_size_parity
from checkpoints_convert.published_config import published_config
from earthmind_jax.errors import UserError

pytest.importorskip("torch")
pytest.importorskip("transformers")

CONFIG = published.config(grounding=False)
STEPS = ("make", "theirs", "convert", "ours")


@pytest.fixture
def manifest(tmp_path):
    """What is kept of a published checkpoint for the comparison: names with shapes, and its configuration."""
    shapes = {name: x.shape for name, x in published.tensors("internvl", CONFIG).items()}
    (tmp_path / "toy.config.json").write_text(json.dumps(published_config(CONFIG, "internvl")))
    file = tmp_path / "toy.json.gz"
    file.write_bytes(gzip.compress(json.dumps(shapes).encode()))
    return file


def run(steps, manifest, folder):
    """Exit code of the last step."""
    folder.mkdir(exist_ok=True)
    return [full_size_parity.in_process(step, manifest, folder) for step in steps][-1]


def test_passes(manifest, tmp_path, capsys):
    assert run(STEPS, manifest, tmp_path / "work") == 0
    *steps, table = capsys.readouterr().out.split("\n", len(STEPS))
    assert [json.loads(line)["step"] for line in steps] == list(STEPS)
    assert all(json.loads(line)["GB peak"] > 0 for line in steps)
    assert "FAILS" not in table
    names = [line.split("  ")[0] for line in table.splitlines()[2:]]
    layers = [f"hidden.{i}" for i in range(CONFIG.lm.depth + 1)]
    assert names[:-2] == ["image tokens", *layers, "logits", "decoded"]
    assert f"greedy tokens: {full_size_parity.NEW} of {full_size_parity.NEW} equal" in table


@pytest.mark.parametrize(
    ("weight", "first"),
    [
        ("mlp1.0.bias", "image tokens"),
        ("language_model.model.layers.1.mlp.down_proj.weight", "hidden.2"),
        ("language_model.lm_head.weight", "logits"),
    ],
)
def test_a_wrong_weight_fails(weight, first, manifest, tmp_path, capsys):
    folder = tmp_path / "work"
    run(("make", "theirs"), manifest, folder)
    file = folder / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors[weight] = -tensors[weight]
    save_file(tensors, file)
    assert run(("convert", "ours"), manifest, folder) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if "FAILS" in line]
    assert failed[0].startswith(first)
    if "lm_head" in weight:  # the best token became the worst
        assert failed[-1].startswith(f"greedy tokens: 0 of {full_size_parity.NEW} equal")


def test_what_cannot_be_compared(manifest, tmp_path):
    """One sentence each: no manifest, a language model without a class, the pixel shuffle of the first releases."""
    with pytest.raises(UserError, match=r"There is no .*nothing.json.gz and no .*nothing.config.json: name a manifest"):
        full_size_parity.main(tmp_path / "nothing.json.gz")
    run(("make",), manifest, tmp_path / "work")
    config = tmp_path / "work" / "source" / "config.json"
    given = json.loads(config.read_text())
    language = given["llm_config"] | {"architectures": ["InternLM2ForCausalLM"]}
    config.write_text(json.dumps(given | {"llm_config": language}))
    with pytest.raises(UserError, match="transformers has no InternLM2ForCausalLM"):
        run(("theirs",), manifest, tmp_path / "work")
    config.write_text(json.dumps(given | {"ps_version": "v1"}))
    with pytest.raises(UserError, match="pixel shuffle of v1"):
        run(("theirs",), manifest, tmp_path / "work")
