"""The README's road from published files to a fine-tuned model, one command after the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import published
import support

from benchmarks import finetune
from earthmind_jax import checkpoint
from earthmind_jax.models import api


def test_from_published_files_to_a_tuned_model(one_device, tmp_path, capsys, monkeypatch):
    """By relative paths, as the README has them."""
    monkeypatch.chdir(tmp_path)
    model = published.config()
    checkpoint.save(tmp_path / "trained", model, support.params(model), support.tokenizer(), {})
    found = finetune.road(Path(), steps=2, scenes=3, held_out=1)
    assert set(found) == {"base", "tuned", "merged", "adapters_bytes", "base_bytes"}
    assert 0 < found["adapters_bytes"] < found["base_bytes"]
    said = capsys.readouterr().err
    assert len(json.loads(said[said.rindex('{\n  "question"') :])["fusion"]) == 2
    for file in ("published/config.json", "base/source.json", "tuned/dry-run/batch.png", "tuned/result/base/base.json"):
        assert (tmp_path / file).is_file(), file
    # The base is the files' model to the bit, and the merged one computes with what was tuned.
    (_, drawn), (_, base) = checkpoint.load(tmp_path / "trained"), checkpoint.load(tmp_path / "base")
    for path, x in drawn.items():
        np.testing.assert_array_equal(base[path], x, err_msg=path)
    (config, tuned), (_, merged) = checkpoint.load(tmp_path / "tuned" / "result"), checkpoint.load(tmp_path / "merged")
    assert any(np.abs(np.asarray(tuned[path], np.float32) - base[path]).max() > 0 for path in base)
    for path, x in api.merge_lora(tuned, config.lm.lora).items():
        np.testing.assert_array_equal(merged[path], x, err_msg=path)
