"""Converted checkpoints beside the classes of transformers: every family, adapters, and what a wrong weight does."""

from __future__ import annotations

import dataclasses

import published
import pytest
import support

from checkpoints_convert.export import find_layout, tensors_of
from checkpoints_convert.streaming import convert_to_checkpoint
from checkpoints_convert.verify import against_live, live
from earthmind_jax import checkpoint
from earthmind_jax.config import FusionConfig, LoraConfig, RopeConfig
from earthmind_jax.models.families import FAMILIES

pytest.importorskip("torch")
pytest.importorskip("transformers")

PHI3 = FAMILIES["phi3"].tiny
PLANES = PHI3.head_dim // 2


def longrope(original):
    short, long = (tuple(1.0 + step * i for i in range(PLANES)) for step in (0.1, 1.5))
    return RopeConfig(
        kind="longrope", max_position=2048, original_max_position=original, short_factor=short, long_factor=long
    )


LANGUAGE = {
    "phi3": PHI3,
    "phi3_window": dataclasses.replace(PHI3, sliding_window=100),
    "phi3_short": dataclasses.replace(PHI3, rope=longrope(live.TOKENS)),
    "phi3_long": dataclasses.replace(PHI3, rope=longrope(live.TOKENS // 2)),
    "internlm2": FAMILIES["internlm2"].tiny,
}


def model(lm):
    return dataclasses.replace(published.config(grounding=False), lm=lm)


def converted(lm, tmp_path):
    """A published InternVL around ``lm``, converted."""
    config = model(lm)
    tensors = tensors_of(find_layout("internvl", config), support.params(config))
    source = {name: make() for name, (_, _, make) in tensors.items()}
    published.write(tmp_path / "source", "internvl", config, source)
    convert_to_checkpoint(tmp_path / "source", tmp_path / "ours", fusion=FusionConfig(mode="concat"))
    return tmp_path / "ours"


@pytest.mark.parametrize("name", LANGUAGE)
def test_internvl_of_other_families(name, tmp_path):
    language, vision = against_live(converted(LANGUAGE[name], tmp_path))
    assert (language.passed, vision.passed) == (True, True), language.text + vision.text
    assert vision.text.count("hidden.") == published.config().vision.depth + 1
    if name == "internlm2":
        assert "\n" not in language.text
        assert "not compared, transformers has no InternLM2ForCausalLM" in language.text
    else:
        assert language.text.count("hidden.") == PHI3.depth + 1
        assert "logits" in language.text


def test_adapters_count(tmp_path):
    """A checkpoint with factors of its own is compared with them folded in."""
    config = model(dataclasses.replace(PHI3, lora=LoraConfig(rank=4, alpha=8, dropout=0.0)))
    checkpoint.save(tmp_path / "ours", config, support.params(config), None, {})
    plain = {path: x for path, x in support.params(config).items() if not path.startswith("lora/")}
    checkpoint.save(tmp_path / "plain", model(PHI3), plain, None, {})
    with_adapters, without = (against_live(tmp_path / name)[0] for name in ("ours", "plain"))
    assert with_adapters.passed, with_adapters.text
    assert without.passed, without.text
    assert with_adapters.text.splitlines()[-1] != without.text.splitlines()[-1]


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.qkv_proj.weight", "encoder.layers.1.mlp.fc1.bias"])
def test_a_wrong_weight_shows_from_its_layer_on(name, tmp_path, monkeypatch):
    state = live._state

    def wrong(layout, params):
        tensors = state(layout, params)
        if name in tensors:
            tensors[name] += 0.1
        return tensors

    monkeypatch.setattr(live, "_state", wrong)
    results = against_live(converted(PHI3, tmp_path))
    (failed,) = (result for result in results if not result.passed)
    assert ("qkv_proj" in name) == (failed.name == "language model")
    lines = {line.split()[0]: "FAILS" in line for line in failed.text.splitlines()[2:]}
    assert [lines[f"hidden.{layer}"] for layer in range(3)] == [False, False, True]
