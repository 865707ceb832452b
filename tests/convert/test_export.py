"""Both round trips, for every layout and dtype: published -> ours -> published, and ours -> published -> ours."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import ml_dtypes
import numpy as np
import published
import pytest
from safetensors.numpy import load_file
from support import model, params, tokenizer

from checkpoints_convert import peft_export, safetensors_writer, store
from checkpoints_convert.convert import absent, convert
from checkpoints_convert.export import export_checkpoint
from checkpoints_convert.plan import apply_plan, build_plan
from checkpoints_convert.published_config import published_config
from checkpoints_convert.reader import open_source
from checkpoints_convert.streaming import convert_to_checkpoint
from earthmind_jax import checkpoint
from earthmind_jax.config import LoraConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models.api import merge_lora
from earthmind_jax.models.families import FAMILIES

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def same(one, other):
    """Equal names, shapes, dtypes and bits."""
    one, other = open_source(one), open_source(other)
    assert one.tree() == other.tree()
    for name in one.index:
        assert one.read(name).tobytes() == other.read(name).tobytes(), name


@functools.cache
def config(kind):
    return published.config(grounding=kind == "earthmind")


def imported(source, out, kind):
    """``source`` as a checkpoint; the mask decoder of the tiny model is of no published size."""
    options = {"grounding": config(kind).grounding} if kind == "earthmind" else {}
    return convert_to_checkpoint(source, out, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["internvl", "earthmind"])
def test_published_files_come_back(tmp_path, kind, dtype):
    weights = published.tensors(kind, config(kind), dtype) | published.ignored(kind, dtype)
    name = next(iter(weights))
    weights[name] = weights[name].copy()
    weights[name].flat[:3] = np.nan, -0.0, np.inf  # bits, not numbers
    source = published.write(tmp_path / "source", kind, config(kind), weights, shards=3)
    imported(source, tmp_path / "ours", kind)
    files = export_checkpoint(tmp_path / "ours", tmp_path / "back", kind, shard=100_000)
    assert len([file for file in files if file.suffix == ".safetensors"]) > 1
    same(source, tmp_path / "back")
    theirs, again = (json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "back"))
    assert theirs == again
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in weights.values())
    assert all(name in load_file(tmp_path / "back" / file) for name, file in index["weight_map"].items())
    imported(tmp_path / "back", tmp_path / "again", kind)
    first, second = checkpoint.load(tmp_path / "ours"), checkpoint.load(tmp_path / "again")
    assert first[0] == second[0]
    for path, array in first[1].items():
        assert np.asarray(array).tobytes() == np.asarray(second[1][path]).tobytes()


def test_arrays_of_several_chunks_come_back(tmp_path, monkeypatch):
    """Also where one chunk file is gone, which then stands for zeros."""
    monkeypatch.setattr(store, "CHUNK", 1000)
    monkeypatch.setattr(safetensors_writer, "BLOCK", 500)
    weights = published.tensors("internvl", config("internvl"), ml_dtypes.bfloat16)
    embedding = weights["language_model.model.embed_tokens.weight"]
    source = published.write(tmp_path / "source", "internvl", config("internvl"), weights)
    imported(source, tmp_path / "ours", "internvl")
    export_checkpoint(tmp_path / "ours", tmp_path / "back", "internvl")
    same(source, tmp_path / "back")
    (tmp_path / "ours" / "weights" / "lm" / "embed" / "embedding" / "0.0").unlink()
    export_checkpoint(tmp_path / "ours", tmp_path / "lost", "internvl")
    lost = open_source(tmp_path / "lost").read("language_model.model.embed_tokens.weight")
    rows = int(np.flatnonzero(lost.any(1))[0])
    assert 0 < rows < len(lost)
    np.testing.assert_array_equal(lost[rows:], embedding[rows:])


def test_layers_of_different_dtypes_come_back(tmp_path):
    weights = published.tensors("internvl", config("internvl"), ml_dtypes.bfloat16)
    wide = [name for name in weights if ".1." in name or "mlp1" in name]
    weights |= {name: weights[name].astype(np.float32) * 1.1 for name in wide}
    source = published.write(tmp_path / "source", "internvl", config("internvl"), weights)
    imported(source, tmp_path / "ours", "internvl")
    export_checkpoint(tmp_path / "ours", tmp_path / "back", "internvl")
    same(source, tmp_path / "back")


def test_a_tied_head_that_was_stored_comes_back(tmp_path, monkeypatch):
    from checkpoints_convert import keep

    monkeypatch.setattr(keep, "SMALL", 0)
    monkeypatch.setattr(keep, "BLOCK", 100)
    tied = dataclasses.replace(config("internvl"), lm=dataclasses.replace(config("internvl").lm, tie=True))
    weights = published.tensors("internvl", tied)
    embedding = weights["language_model.model.embed_tokens.weight"]
    weights["language_model.lm_head.weight"] = embedding.copy()
    source = published.write(tmp_path / "source", "internvl", tied, weights)
    # Given as ours, the configuration says that the head is tied; the stored one is then a copy.
    convert_to_checkpoint(source, tmp_path / "ours", config=tied)
    notes = json.loads((tmp_path / "ours" / "source.json").read_text())["ignored"]
    assert notes["language_model.lm_head.weight"]["same as"] == "language_model.model.embed_tokens.weight"
    assert not (tmp_path / "ours" / "published" / "ignored.safetensors").exists()
    export_checkpoint(tmp_path / "ours", tmp_path / "back", "internvl")
    same(source, tmp_path / "back")


@pytest.mark.parametrize("kind", ["internvl", "earthmind", "sam2"])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_a_model_that_never_was_published(tmp_path, kind, dtype):
    ours = config("internvl" if kind == "internvl" else "earthmind")
    drawn = {path: array.astype(dtype) for path, array in params(ours).items()}
    checkpoint.save(tmp_path / "ours", ours, drawn, tokenizer(), {"made": "for tests"})
    export_checkpoint(tmp_path / "ours", tmp_path / "out", kind)
    assert (tmp_path / "out" / "tokenizer.json").is_file() == (kind != "sam2")
    again, back = convert(
        tmp_path / "out",
        config=ours.grounding if kind == "sam2" else None,
        **({"grounding": ours.grounding} if kind == "earthmind" else {}),
    )
    if kind != "sam2":
        assert published_config(again, kind) == published_config(ours, kind)
    prefixes = {"internvl": ("vision/", "projector/", "lm/"), "sam2": ("grounding/",), "earthmind": ("",)}[kind]
    assert set(back) == {path for path in drawn if path.startswith(prefixes)}
    for path, array in back.items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, drawn[path])


def test_sam2_files_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    ours = config("earthmind")
    checkpoint.save(tmp_path / "ours", ours, params(ours), None, {})
    export_checkpoint(tmp_path / "ours", tmp_path / "out", "sam2")
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)["model"]
    plain = load_file(tmp_path / "out" / "model.safetensors")
    assert set(state) == set(plain)
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor.numpy(), plain[name])
    _, back = convert(tmp_path / "out" / "model.pt", config=ours.grounding)
    for path, array in back.items():
        np.testing.assert_array_equal(array, params(ours)[path])


def test_sam2_out_of_a_whole_model_keeps_what_was_set_aside(tmp_path):
    weights = published.tensors("earthmind", config("earthmind")) | published.ignored("earthmind")
    source = published.write(tmp_path / "source", "earthmind", config("earthmind"), weights)
    imported(source, tmp_path / "ours", "earthmind")
    export_checkpoint(tmp_path / "ours", tmp_path / "out", "sam2")
    found = open_source(tmp_path / "out" / "model.safetensors")
    for name in [name for name in weights if name.startswith(published.SAM2)]:
        np.testing.assert_array_equal(found.read(name.removeprefix(published.SAM2)), weights[name])


def test_adapters(tmp_path):
    base = model(grounding=None)
    lora = LoraConfig(rank=3, alpha=6.0, targets=".*")
    ours = dataclasses.replace(base, lm=dataclasses.replace(base.lm, lora=lora))
    drawn = params(ours)
    checkpoint.save(tmp_path / "ours", ours, drawn, tokenizer(), {})
    export_checkpoint(tmp_path / "ours", tmp_path / "out", "peft")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (3, 6.0)
    assert {"q_proj", "down_proj", "lm_head"} <= set(settings["target_modules"])
    source, layout = open_source(tmp_path / "out"), peft_export.adapters(ours, drawn, "").layout
    adapters = {path: x for path, x in drawn.items() if path.startswith("lora/")}
    plan = build_plan({path: (x.shape, None) for path, x in adapters.items()}, layout.rules, source.tree())
    for path, array in apply_plan(plan, source).items():
        np.testing.assert_array_equal(array, adapters[path])
    # The product of PyTorch's factors is the change of PyTorch's weight.
    for layer, kernel in (("attn/o", "self_attn.o_proj"), ("attn/k", "self_attn.k_proj"), ("mlp/up", "mlp.up_proj")):
        a, b = adapters[f"lora/lm/blocks/{layer}/a"][1], adapters[f"lora/lm/blocks/{layer}/b"][1]
        ours_change = a.reshape(-1, 3) @ b.reshape(3, -1)
        name = f"base_model.model.model.layers.1.{kernel}"
        theirs = source.read(f"{name}.lora_B.weight") @ source.read(f"{name}.lora_A.weight")
        np.testing.assert_allclose(ours_change, theirs.T, atol=1e-5)


@pytest.mark.parametrize("family", ["phi3", "internlm2"])
@pytest.mark.parametrize(("targets", "common"), [(".*", False), ("(attn|mlp)/", True), ("attn/(q|v)$", False)])
def test_adapters_of_joined_layers(tmp_path, family, targets, common):
    """PEFT has one pair for a fused matrix: our A where it is one, all of them beside their shares of B where not."""
    base = model(grounding=None)
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    ours = dataclasses.replace(base, lm=dataclasses.replace(FAMILIES[family].tiny, lora=lora, vocab=base.lm.vocab))
    drawn = dict(params(ours))
    if common:
        for layer, others in (("attn/q", ("attn/k", "attn/v")), ("mlp/gate", ("mlp/up",))):
            if layer.startswith("mlp") and family == "internlm2":
                continue  # its gate and up are two matrices
            for other in others:
                drawn[f"lora/lm/blocks/{other}/a"] = drawn[f"lora/lm/blocks/{layer}/a"]
    checkpoint.save(tmp_path / "ours", ours, drawn, tokenizer(), {})
    export_checkpoint(tmp_path / "ours", tmp_path / "adapters", "peft")
    plain = dataclasses.replace(ours, lm=dataclasses.replace(ours.lm, lora=None))
    kernels = {path: x for path, x in drawn.items() if not path.startswith("lora/")}
    checkpoint.save(tmp_path / "plain", plain, kernels, tokenizer(), {})
    export_checkpoint(tmp_path / "plain", tmp_path / "base", "internvl")
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert bool(settings["rank_pattern"]) == (not common)
    _, merged = convert(tmp_path / "base", adapters=tmp_path / "adapters", merge=True, config=plain)
    for path, array in merge_lora(drawn, lora).items():
        if path.startswith("lm/"):
            np.testing.assert_allclose(merged[path], array, atol=1e-5, err_msg=path)
    if common:  # nothing has changed on the way out and in
        read, back = convert(tmp_path / "base", adapters=tmp_path / "adapters", config=plain)
        assert (read.lm.lora.rank, read.lm.lora.alpha) == (3, 6.0)
        for path in (path for path in drawn if path.startswith("lora/")):
            np.testing.assert_array_equal(back[path], drawn[path], err_msg=path)


@pytest.mark.parametrize("targets", [".*", "(attn/q|mlp/down)"])
def test_adapters_are_folded_into_a_whole_model(tmp_path, targets):
    base = config("earthmind")
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    ours = dataclasses.replace(base, lm=dataclasses.replace(base.lm, lora=lora))
    drawn = params(ours)
    checkpoint.save(tmp_path / "ours", ours, drawn, tokenizer(), {})
    export_checkpoint(tmp_path / "ours", tmp_path / "out", "earthmind")
    _, back = convert(tmp_path / "out", config=base)
    merged = merge_lora(drawn, ours.lm.lora)
    assert set(back) == set(merged) - set(absent(base, back))
    for path, array in back.items():
        np.testing.assert_allclose(array, merged[path], atol=1e-5, err_msg=path)


def test_wrong_requests_leave_nothing(tmp_path):
    ours = config("internvl")
    checkpoint.save(tmp_path / "ours", ours, params(ours), None, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for layout, out, says in (
        ("internvl", "full", "exists already"),
        ("inernvl", "out", "Did you mean 'internvl'"),
        ("sam2", "out", "no mask decoder"),
        ("peft", "out", "no adapters"),
    ):
        with pytest.raises(UserError, match=says):
            export_checkpoint(tmp_path / "ours", tmp_path / out, layout)
    with pytest.raises(UserError, match="does not exist"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "out", "internvl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full", "ours"]
    assert jax.tree.all(jax.tree.map(np.array_equal, checkpoint.load(tmp_path / "ours")[1], params(ours)))
