"""Every layout covers what it says, both ways: published names in, our parameters out, and back bit for bit."""

from __future__ import annotations

import functools
import gzip
import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert.convert import conversion_plan, whole, with_lora
from checkpoints_convert.layouts import LAYOUTS, detect
from checkpoints_convert.layouts.training import published_names
from checkpoints_convert.plan import apply_plan, build_plan, export, source_tree
from checkpoints_convert.rules import match
from checkpoints_convert.source_config import config_from_source
from earthmind_jax.config import (
    EarthMindConfig,
    FusionConfig,
    GroundingConfig,
    LmConfig,
    LoraConfig,
    RopeConfig,
    VisionConfig,
)
from earthmind_jax.models import earthmind
from earthmind_jax.models.sam2_presets import sam2_preset

TINY = EarthMindConfig(
    vision=VisionConfig(image_size=28, patch_size=7, width=12, depth=3, heads=3, mlp=20, qk_norm=True),
    lm=LmConfig(vocab=23, width=16, depth=4, heads=4, kv_heads=2, head_dim=6, mlp=10, rope=RopeConfig(), remat="none"),
    grounding=GroundingConfig(
        image_size=64, embed_dim=4, heads=1, stages=(1, 2, 1, 1), global_blocks=(3,), windows=(4, 2, 2, 1),
        pos_grid=(3, 2), width=32, decoder_mlp=24, iou_hidden=10, memory_dim=8, memory_mlp=12, memory_layers=2,
    ),
    fusion=FusionConfig(mode="release_2025_06", grounding="sar"),
)  # fmt: skip

MANIFESTS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "manifests"


class Memory(dict):
    """Tensors by name, read from memory."""

    where = "memory"

    def read(self, name):
        return self[name]

    def tree(self):
        return {name: (array.shape, array.dtype) for name, array in self.items()}


@functools.cache
def tiny(family="", memory=False, version="2.1"):
    """The toy model, with the biases that the language models of ``family`` have."""
    grounding = replace(TINY.grounding, memory=memory, version=version if memory else TINY.grounding.version)
    return replace(TINY, lm=replace(TINY.lm, qkv_bias=family in ("", "qwen2")), grounding=grounding)


@functools.cache
def weights(config):
    rng = np.random.default_rng(0)
    shapes = earthmind.shapes(config)
    return {path: rng.standard_normal(shape.shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture
def params():
    return weights(tiny())


def covered(layout, params):
    return {path: x for path, x in params.items() if any(fnmatchcase(path, pattern) for pattern in layout.covers)}


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_export_and_import_are_exact_inverses(layout, memory):
    config = tiny(layout.family, memory)
    ours = covered(layout, weights(config))
    assert ours
    tree = {path: (x.shape, x.dtype) for path, x in ours.items()}
    sources = source_tree(tree, layout.rules)
    assert detect(sources) is layout
    plan = build_plan(tree, layout.rules, sources, ignored=layout.ignored)
    assert not plan.ignored
    published = Memory(export(plan, ours))
    assert published.tree() == {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in sources.items()}
    again = apply_plan(conversion_plan(published, layout, config), published)
    assert set(again) == set(ours)
    for path, value in ours.items():
        np.testing.assert_array_equal(again[path], value)


def test_layouts_make_every_parameter_of_a_released_model(params):
    made = set().union(*(covered(layout, params) for layout in LAYOUTS))
    assert made == set(params)


def test_a_query_is_taken_or_left_by_the_fusion_mode(params):
    layout = next(layout for layout in LAYOUTS if layout.name.startswith("EarthMind / Sa2VA"))
    tree = {path: (x.shape, x.dtype) for path, x in params.items()}
    published = Memory(export(build_plan(tree, layout.rules, source_tree(tree, layout.rules)), params))
    published["hca_queries"] = np.zeros((4, 16), np.float32)
    plan = conversion_plan(published, layout, TINY)
    assert "fusion/local_query" in plan.targets
    assert sorted(plan.ignored) == ["hca_queries"]
    plan = conversion_plan(published, layout, replace(TINY, fusion=FusionConfig(mode="concat")))
    assert "June 2025" in plan.ignored["local_query"]


@pytest.mark.parametrize("version", ["2.0", "2.1"])
@pytest.mark.parametrize("name", ["SAM2", "EarthMind / Sa2VA (Qwen2)"])
def test_the_memory_is_taken_or_left_by_the_configuration(name, version):
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    config = tiny(layout.family, memory=True, version=version)
    ours = covered(layout, weights(config))
    tree = {path: (x.shape, x.dtype) for path, x in ours.items()}
    published = Memory(export(build_plan(tree, layout.rules, source_tree(tree, layout.rules)), ours))
    scale = "gamma" if name == "SAM2" else "g_weight"
    assert any(tensor.endswith(f"memory_encoder.fuser.layers.1.{scale}") for tensor in published)
    assert any(tensor.endswith("no_obj_embed_spatial") for tensor in published) == (version == "2.1")
    plan = conversion_plan(published, layout, config)
    assert not plan.ignored
    plan = conversion_plan(published, layout, replace(config, grounding=replace(config.grounding, memory=False)))
    assert not any("grounding/memory" in path for path in plan.targets)
    assert all("memory" in reason for reason in plan.ignored.values())
    left = {path for path in ours if path.startswith("grounding/memory/")}
    assert len(plan.ignored) == len(left)  # no memory tensor is split or joined


@pytest.mark.parametrize("name", ["Qwen2", "InternLM2", "Phi3"])
def test_a_tied_head_is_left_behind(name):
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    config = tiny(layout.family)
    ours = covered(layout, weights(config))
    tree = {path: (x.shape, x.dtype) for path, x in ours.items()}
    published = Memory(export(build_plan(tree, layout.rules, source_tree(tree, layout.rules)), ours))
    plan = conversion_plan(published, layout, replace(config, lm=replace(config.lm, tie=True)))
    assert [(head in published, "tied" in reason) for head, reason in plan.ignored.items()] == [(True, True)]


def test_no_two_rules_of_a_layout_take_one_name():
    for layout in LAYOUTS:
        names = [rule.source.replace("{i}", "7") for rule in layout.rules]
        for name in names:
            assert sum(match(rule.source, name) is not None for rule in layout.rules) == 1, name


def manifests():
    paths = sorted(MANIFESTS.glob("*.json.gz")) if MANIFESTS.is_dir() else []
    names = [path.name.removesuffix(".json.gz") for path in paths]
    return [name for name in names if "xtuner" not in name]


@pytest.mark.parametrize("memory", [False, True], ids=["plain", "memory"])
@pytest.mark.parametrize("name", manifests())
def test_published_models_fit_without_a_gap(name, memory):
    """Names and shapes of the published classes at full size; every tensor has a place or a reason."""
    names = json.loads(gzip.decompress((MANIFESTS / f"{name}.json.gz").read_bytes()))
    sources = {tensor: (tuple(shape), np.dtype(np.float32)) for tensor, shape in names.items()}
    layout = detect(sources)
    published = None if name.startswith("sam2") else _hf_config(name)
    config = config_from_source(layout, sources, published, memory=memory)
    if published is not None:
        assert config.lm.family == layout.family
    if name.startswith("sam2"):
        assert config == replace(sam2_preset(name), memory=memory)
    source = Memory()
    source.tree = lambda: sources
    plan = conversion_plan(source, layout, config)
    assert len(plan.steps) + len(plan.ignored) == len(sources)
    assert set(plan.targets) == set(covered(layout, earthmind.shapes(whole(config))))
    reasons = {reason for tensor, reason in plan.ignored.items() if tensor != "local_query"}
    assert len(reasons) == (not memory and any("memory_attention" in tensor for tensor in sources))
    count = sum(int(np.prod(shape)) for shape, _ in plan.targets.values())
    left = sum(int(np.prod(sources[tensor][0])) for tensor in plan.ignored)
    # Each part of a fused matrix has the whole of its A.
    count -= sum((len(step.places) - 1) * int(np.prod(sources[step.source][0])) for step in plan.steps if _shares(step))
    assert count + left == sum(int(np.prod(shape)) for shape, _ in sources.values())


def _hf_config(name):
    return json.loads((MANIFESTS / f"{name}.config.json").read_text())


def _shares(step):
    return step.source.endswith(".lora_A.weight")


@pytest.mark.parametrize(
    "name", ["EarthMind-4B_xtuner_pth", "EarthMind-4B_xtuner_all_state_dict", "Sa2VA-8B_xtuner_pth"]
)
def test_training_checkpoints_fit_without_a_gap(name):
    """Every tensor that training saves has a place, adapters among them; what it does not save is frozen."""
    path = MANIFESTS / f"{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    names = json.loads(gzip.decompress(path.read_bytes()))
    renamed = published_names(names)
    sources = {renamed[tensor]: (tuple(shape), np.dtype(np.float32)) for tensor, shape in names.items()}
    layout = detect(sources)
    lora = _hf_config(name)["lora"]
    config = config_from_source(layout, sources, _hf_config(name))
    head = any(".output.lora_" in tensor or "lm_head.lora_" in tensor for tensor in sources)
    targets = ".*" if head else LoraConfig().targets
    config = with_lora(config, LoraConfig(rank=lora["r"], alpha=lora["lora_alpha"], targets=targets))
    source = Memory()
    source.tree = lambda: sources
    plan = conversion_plan(source, layout, config)
    assert len(plan.steps) + len(plan.ignored) == len(sources)
    assert {path for path in earthmind.shapes(config) if path.startswith("lora/")} <= set(plan.targets)
    everything = covered(layout, earthmind.shapes(config))
    assert set(plan.targets) | set(plan.fresh) >= set(everything)
    whole_model = "all_state_dict" in name
    assert (layout in LAYOUTS) is whole_model
    assert bool(plan.fresh) is not whole_model
    count = sum(int(np.prod(shape)) for shape, _ in plan.targets.values())
    left = sum(int(np.prod(sources[tensor][0])) for tensor in plan.ignored)
    # Each part of a fused matrix has the whole of its A.
    count -= sum((len(step.places) - 1) * int(np.prod(sources[step.source][0])) for step in plan.steps if _shares(step))
    assert count + left == sum(int(np.prod(shape)) for shape, _ in sources.values())
