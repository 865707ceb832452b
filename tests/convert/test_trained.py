"""Training checkpoints: adapters folded in and kept apart, what was trained alone, and what does not fit."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from convert.test_layouts import TINY
from safetensors.numpy import save_file
from trained import LANGUAGE, RANK, SCALE, check_merged

from checkpoints_convert.adapters import Factors, kept, merged
from checkpoints_convert.assemble import assemble
from checkpoints_convert.convert import conversion_plan, convert
from checkpoints_convert.inspection import inspect_source
from checkpoints_convert.layouts import detect, unknown
from checkpoints_convert.layouts.lora import A, B, lora_rules
from checkpoints_convert.plan import apply_plan, build_plan, export
from checkpoints_convert.reader import open_source
from checkpoints_convert.rules import Layout, Rule, under
from earthmind_jax.config import LoraConfig
from earthmind_jax.errors import UserError
from earthmind_jax.models import earthmind, functional


def test_adapters_merged_and_apart_are_one_model(parts, files):
    base = [files / "internvl.safetensors", files / "sam2.pt"]
    _, whole = convert(files / "iter_3.pth", base=base, merge=True, config=TINY)
    check_merged(parts, whole)
    config, apart = convert(files / "iter_3.pth", base=base, config=TINY)
    assert config.lm.lora == LoraConfig(rank=RANK, alpha=SCALE * RANK, targets=config.lm.lora.targets)
    assert set(apart) == set(earthmind.shapes(config))
    again = functional.merge_lora(apart, config.lm.lora)
    assert set(again) == set(whole)
    for path, value in whole.items():
        np.testing.assert_allclose(again[path], value, atol=1e-5, err_msg=path)


def test_what_was_trained_alone(parts, files):
    """Without its bases a training checkpoint gives what it holds, adapters apart; merging needs the weights."""
    config, params = convert(files / "iter_3.pth", config=TINY)
    missing = set(earthmind.shapes(config)) - set(params)
    assert missing
    assert all(path.startswith(("vision/", "lm/blocks/", "lm/norm/", "grounding/")) for path in missing)
    assert "grounding/decoder/iou_token" in params
    with pytest.raises(
        UserError, match=r"has no .*q_proj\.weight.*give the checkpoint that the adapters were trained on"
    ):
        convert(files / "iter_3.pth", merge=True, config=TINY)


def test_inspection_knows_training_checkpoints(parts, files):
    facts = inspect_source(files / "iter_3.pth")
    assert facts["layout"].startswith("Training checkpoint of EarthMind")
    assert "needs its config.json" in facts["problem"]
    assert facts["extra"] == {}
    assert facts["tensors"] == len(parts[2])


FUSED = Layout(
    name="fused",
    rules=under(
        "layers.{i}.",
        (
            Rule(
                "wqkv.weight",
                ("lm/blocks/attn/q/kernel", "lm/blocks/attn/k/kernel", "lm/blocks/attn/v/kernel"),
                "(K {g|1|1} h) D -> D (K g) h | D K h | D K h",
            ),
            Rule("wo.weight", "lm/blocks/attn/o/kernel", "D (N h) -> N h D"),
        ),
    ),
    has=(),
    covers=(),
)


def test_factors_of_a_fused_matrix(tmp_path):
    """A is shared by queries, keys and values, B is split like the matrix: merging before or after is the same."""
    heads, groups, size, width, rank = 4, 2, 6, 16, 3
    shapes = {"wqkv": ((heads + 2 * groups) * size, width), "wo": (width, heads * size)}
    rng, tensors = np.random.default_rng(0), {}
    for layer in range(2):
        for name, (out, inputs) in shapes.items():
            stem = f"layers.{layer}.{name}"
            for suffix, shape in ((".weight", (out, inputs)), (A, (rank, inputs)), (B, (out, rank))):
                tensors[stem + suffix] = rng.standard_normal(shape).astype(np.float32)
    save_file(tensors, tmp_path / "x.safetensors")
    source = open_source(tmp_path / "x.safetensors")
    base = source.kept(name for name in tensors if ".lora_" not in name)
    factors = {name[: -len(".weight")]: Factors(source, name[: -len(".weight")], 0.5) for name in base.index}
    targets = {
        "lm/blocks/attn/q/kernel": ((2, width, heads, size), np.float32),
        "lm/blocks/attn/k/kernel": ((2, width, groups, size), np.float32),
        "lm/blocks/attn/v/kernel": ((2, width, groups, size), np.float32),
        "lm/blocks/attn/o/kernel": ((2, heads, size, width), np.float32),
    }
    together = merged(base, factors)
    whole = apply_plan(build_plan(targets, FUSED.rules, together.tree()), together)
    apart, lora = kept(base, factors, FUSED.rules)
    assert (lora.rank, lora.alpha, lora.targets) == (
        3,
        1.5,
        "^(blocks/attn/k|blocks/attn/o|blocks/attn/q|blocks/attn/v)$",
    )
    both = dict(targets)
    for path, (shape, dtype) in targets.items():
        split = 3 if path.endswith("o/kernel") else 2  # first output axis, behind the layers
        stem = "lora/" + path.removesuffix("kernel")
        both[stem + "a"] = (*shape[:split], rank), dtype
        both[stem + "b"] = (2, rank, *shape[split:]), dtype
    plan = build_plan(both, (*FUSED.rules, *lora_rules(FUSED.rules)), apart.tree())
    params = apply_plan(plan, apart)
    for path, value in functional.merge_lora(params, lora).items():
        np.testing.assert_allclose(value, whole[path], atol=1e-5)
    for name, value in export(plan, params):
        np.testing.assert_array_equal(value, tensors[name])
    params["lora/lm/blocks/attn/k/a"] = params["lora/lm/blocks/attn/k/a"] + 1
    with pytest.raises(UserError, match=r"3 parameters share one tensor.*merge them"):
        dict(export(plan, params))


def test_layers_without_factors_stay_without(parts, files):
    """A layer that was not adapted gets zeros for both factors, whose gradients are zero too."""
    some = {name: x for name, x in parts[2].items() if "layers.2." not in name}
    save_file(some, files / "some.safetensors")
    config, params = convert(
        files / "some.safetensors", base=[files / "internvl.safetensors", files / "sam2.pt"], config=TINY
    )
    a, b = (params[f"lora/lm/blocks/mlp/up/{x}"] for x in "ab")
    assert not a[2].any()
    assert not b[2].any()
    assert a[[0, 1, 3]].all()

    def loss(a, b):
        return (jax.numpy.einsum("di,ir,ro->do", jax.numpy.ones((2, a.shape[0])), a, b) ** 2).sum()

    for gradient in jax.grad(loss, (0, 1))(a[2], b[2]):
        assert not np.asarray(gradient).any()
    assert config.lm.lora.rank == RANK


def test_requests_that_do_not_fit(parts, files):
    trained = parts[2]
    base = [files / "internvl.safetensors", files / "sam2.pt"]

    def fails(message, source=files / "iter_3.pth", **options):
        with pytest.raises(UserError, match=message):
            convert(source, **{"base": base, "config": TINY, **options})

    fails(r"both hold '\S+': give each base once", base=[base[0], base[0]])
    save_file({"x.weight": np.zeros(2, np.float32)}, files / "x.safetensors")
    fails("cannot be the base of a training checkpoint", base=[files / "x.safetensors"])
    half = {name: x for name, x in trained.items() if "layers.0.mlp.up_proj.lora_B" not in name}
    save_file(half, files / "half.safetensors")
    fails(r"only one of the two LoRA factors of '.*layers\.0\.mlp\.up_proj'", files / "half.safetensors")
    name = next(name for name in trained if name.endswith("mlp.up_proj.lora_A.default.weight"))
    save_file({**trained, name: trained[name][:, :-1].copy()}, files / "narrow.safetensors")
    fails("they are of another model", files / "narrow.safetensors", merge=True)
    save_file({**trained, name: trained[name][:-1].copy()}, files / "low.safetensors")
    fails("do not fit together", files / "low.safetensors")
    two = {**trained, name.replace("default", "other"): trained[name]}
    save_file(two, files / "two.safetensors")
    fails("keep one adapter", files / "two.safetensors")
    stem = "mllm.model.vision_model.base_model.model.encoder.layers.0.mlp.fc1.lora_"
    seen = {
        stem + "A.default.weight": np.zeros((2, 12), np.float32),
        stem + "B.default.weight": np.zeros((20, 2), np.float32),
    }
    save_file({**trained, **seen}, files / "seen.safetensors")
    fails("only linear layers of the language model keep theirs apart here: merge", files / "seen.safetensors")
    wide = {**trained, "text_hidden_fcs.0.weight": np.zeros((3, 3), np.float32)}
    save_file(wide, files / "wide.safetensors")
    fails(r"'text_hidden_fcs\.0\.weight' has the shape \(3, 3\)", files / "wide.safetensors")


def test_an_unknown_layout_is_told_from_the_nearest(parts):
    broken = {name.replace("mlp1.", "projector."): x for name, x in parts[0].items()}
    assert detect(broken) is None
    message = unknown("x", broken)
    assert "nearest is 'InternVL (Qwen2)'" in message
    assert "lacks 'mlp1.1.weight'" in message
    assert "also has 'projector." in message
    message = unknown("x", {"weight": 0})
    assert "tensors (weight, ...) of no known layout" in message


def test_adapter_directories_that_cannot_be_read(files):
    path = files / "adapter"
    path.mkdir()
    stem = f"base_model.model.{LANGUAGE}model.layers.0.mlp.up_proj.lora_"
    factors = {stem + "A.weight": np.ones((2, 16), np.float32), stem + "B.weight": np.ones((10, 2), np.float32)}
    save_file(factors, path / "adapter_model.safetensors")
    good = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}

    def fails(message, config=None, source=files / "internvl.safetensors", **options):
        if config is not None:
            (path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        with pytest.raises(UserError, match=message):
            convert(source, config=TINY, **{"adapters": path, **options})

    fails(r"'.*adapter' lacks adapter_config\.json")
    fails("not valid JSON", "{")
    fails("does not say lora_alpha", {"peft_type": "LORA", "r": 2})
    fails("use_dora = True, which is more than plain LoRA", {**good, "use_dora": True})
    fails("init_lora_weights = 'pissa'", {**good, "init_lora_weights": "pissa"})
    fails("factors of rank 2 for .* says 8", {**good, "r": 8})
    fails("holds adapters alone", good, source=path, adapters=None)
    fails("of which the base has no weight", good, source=files / "sam2.pt")
    save_file({**factors, stem + "magnitude_vector": np.ones(2, np.float32)}, path / "adapter_model.safetensors")
    fails("more than plain LoRA", good)
    (path / "adapter_model.safetensors").unlink()
    fails("but no adapter_model", good)


def test_an_adapter_of_the_language_model_alone_fits_the_whole_model(parts, files):
    """PEFT on the bare language model names modules without the prefix that InternVL gives them."""
    path, rng = files / "adapter", np.random.default_rng(0)
    path.mkdir()
    a, b = rng.standard_normal((2, 16)).astype(np.float32), rng.standard_normal((10, 2)).astype(np.float32)
    stem = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    head = rng.standard_normal((23, 16)).astype(np.float32)
    tensors = {stem + "A.weight": a, stem + "B.weight": b, "base_model.model.lm_head.weight": head}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3}))
    assembled = assemble(files / "internvl.safetensors", adapters=path, merge=True)
    name = f"{LANGUAGE}model.layers.1.mlp.up_proj.weight"
    np.testing.assert_allclose(assembled.source.read(name), parts[0][name] + 1.5 * b @ a, atol=1e-5)
    np.testing.assert_array_equal(assembled.source.read(f"{LANGUAGE}lm_head.weight"), head)
    assert assembled.vocabulary == 23
    plan = conversion_plan(assembled.source, detect(assembled.source.index), TINY)
    assert not plan.ignored
