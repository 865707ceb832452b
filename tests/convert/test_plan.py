"""The plan is total: every tensor and every parameter has its place, or the error names all that have not."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert.plan import apply_plan, build_plan, export
from checkpoints_convert.rules import Ignored, Layout, Rule, match, under
from earthmind_jax.errors import UserError

RULES = (
    Rule("embed.weight", "embed/embedding"),
    Rule(
        "layers.{i}.qkv.weight",
        ("blocks/q/kernel", "blocks/k/kernel", "blocks/v/kernel"),
        "{N h|N h|N h} D -> D N h",
    ),
    Rule("layers.{i}.norm.weight", "blocks/norm/scale"),
    Rule("convs.{i}.weight", "conv_{i}/kernel", "O I 1 1 -> I O"),
    Rule("points.{i}.weight", "points", "1 D -> D"),
    Rule("grid.{i}.{j}", "grid"),
    Rule("head.weight", "head/kernel", "V D -> D V"),
    Rule("query", "fusion/query"),
)
IGNORED = (
    Ignored("*.position_ids", "a constant"),
    Ignored("query", "this fusion mode has no query"),
    Ignored("head.weight", "the head is tied to the embedding"),
)


class Memory(dict):
    """A reader over arrays that counts what it is asked for."""

    def read(self, name):
        self.asked = [*getattr(self, "asked", []), name]
        return self[name]

    def tree(self):
        return {name: (array.shape, array.dtype) for name, array in self.items()}


def checkpoint(rng, *, depth, width, heads, head, vocab, dtype=np.float32):
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    source = Memory({"embed.weight": draw(vocab, width), "head.weight": draw(vocab, width), "a.position_ids": draw(3)})
    for i in range(depth):
        source[f"layers.{i}.qkv.weight"] = draw(3 * heads * head, width)
        source[f"layers.{i}.norm.weight"] = draw(width)
    source |= {f"convs.{i}.weight": draw(4 + i, 2 + i, 1, 1) for i in range(3)}
    source |= {f"points.{i}.weight": draw(1, width) for i in range(4)}
    source |= {f"grid.{i}.{j}": draw(5) for i in range(2) for j in range(3)}
    kernel = ((depth, width, heads, head), dtype)
    targets = {
        "embed/embedding": ((vocab, width), dtype),
        "blocks/q/kernel": kernel,
        "blocks/k/kernel": kernel,
        "blocks/v/kernel": kernel,
        "blocks/norm/scale": ((depth, width), dtype),
        **{f"conv_{i}/kernel": ((2 + i, 4 + i), dtype) for i in range(3)},
        "points": ((4, width), dtype),
        "grid": ((2, 3, 5), dtype),
        "head/kernel": ((width, vocab), dtype),
    }
    return source, targets


SIZES = {"depth": 3, "width": 6, "heads": 2, "head": 4, "vocab": 7}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_export_undoes_import_bit_for_bit(seed, dtype):
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(1, 12)) for name in SIZES}
    source, targets = checkpoint(rng, **sizes, dtype=dtype)
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED)
    params = apply_plan(plan, source)
    assert {path: (array.shape, array.dtype) for path, array in params.items()} == {
        path: (shape, np.dtype(dtype)) for path, (shape, dtype) in targets.items()
    }
    exported = dict(export(plan, params))
    assert set(exported) == set(source) - set(plan.ignored)
    for name, array in exported.items():
        assert array.dtype == source[name].dtype
        np.testing.assert_array_equal(array, source[name])
    for path, array in apply_plan(plan, Memory(exported)).items():
        np.testing.assert_array_equal(array, params[path])


def test_layers_are_stacked_in_the_order_of_their_numbers():
    source, targets = checkpoint(np.random.default_rng(0), **{**SIZES, "depth": 12})
    params = apply_plan(build_plan(targets, RULES, source.tree(), ignored=IGNORED), source)
    for i in range(12):
        np.testing.assert_array_equal(params["blocks/norm/scale"][i], source[f"layers.{i}.norm.weight"])
    np.testing.assert_array_equal(params["grid"][1, 2], source["grid.1.2"])
    np.testing.assert_array_equal(params["points"], np.concatenate([source[f"points.{i}.weight"] for i in range(4)]))


def test_each_tensor_is_read_once_and_each_parameter_placed_once():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES)
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED)
    placed = []
    params = apply_plan(plan, source, lambda path, array: placed.append((path, array.sum())) or path)
    assert sorted(source.asked) == sorted(set(source) - {"a.position_ids"})
    assert sorted(path for path, _ in placed) == sorted(targets)
    assert all(value == path for path, value in params.items())
    assert all(np.isfinite(total) for _, total in placed)  # whole when placed


def test_a_rule_without_a_parameter_leaves_its_tensor_to_the_ignored():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES)
    source["query"] = np.ones((2, 6), np.float32)
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED)
    assert plan.ignored == {"a.position_ids": "a constant", "query": "this fusion mode has no query"}
    with_query = {**targets, "fusion/query": ((2, 6), np.float32)}
    plan = build_plan(with_query, RULES, source.tree(), ignored=IGNORED)
    assert "query" not in plan.ignored
    np.testing.assert_array_equal(apply_plan(plan, source)["fusion/query"], source["query"])
    without_head = {path: value for path, value in targets.items() if path != "head/kernel"}
    assert "tied" in build_plan(without_head, RULES, source.tree(), ignored=IGNORED).ignored["head.weight"]


def test_fresh_parameters_are_listed_and_not_filled():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES)
    targets["fusion/rho"] = ((), np.float32)
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED, fresh=(Ignored("fusion/*", "learned later"),))
    assert plan.fresh == {"fusion/rho": "learned later"}
    assert "fusion/rho" not in apply_plan(plan, source)


def test_dtypes_of_the_source_are_kept_where_none_is_asked_for():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES, dtype=ml_dtypes.bfloat16)
    source["layers.1.norm.weight"] = source["layers.1.norm.weight"].astype(np.float32)
    targets = {path: (shape, None) for path, (shape, _) in targets.items()}
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED)
    params = apply_plan(plan, source)
    assert params["embed/embedding"].dtype == ml_dtypes.bfloat16
    assert params["blocks/norm/scale"].dtype == np.float32  # layers of mixed dtypes: the wider one
    for name, array in export(plan, params):
        assert array.dtype == source[name].dtype
        np.testing.assert_array_equal(array, source[name])


def test_all_problems_are_reported_together_with_the_nearest_names():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES)
    source["embed.wieght"] = source.pop("embed.weight")  # misspelt: unknown, and missing
    source["layers.3.norm.weight"] = source["layers.0.norm.weight"]  # a layer too many
    del source["layers.1.qkv.weight"], source["layers.2.qkv.weight"]  # layers missing
    source["head.weight"] = source["head.weight"][:, 1:]  # wrong shape
    source["query"] = np.ones(3)
    source["points.0.weight"] = np.ones((1, 9), np.float32)
    targets["norm/scale"] = ((4,), np.float32)  # no rule
    with pytest.raises(UserError) as caught:
        build_plan(targets, RULES, source.tree(), what="'tiny.safetensors'")
    message = str(caught.value)
    assert message.startswith("'tiny.safetensors' does not fit the model, ")
    for part in (
        "'embed.wieght' is unknown to this layout (nearest: 'embed.weight')",
        "'embed/embedding' has no source: 'embed.weight' is not in the checkpoint (nearest: 'embed.wieght')",
        "'layers.3.norm.weight' is one layer too many: 'blocks/norm/scale' has the shape (3, 6)",
        "'blocks/q/kernel' lacks 'layers.1.qkv.weight'",
        "(and 1 more like it)",
        "'head.weight' has the shape (7, 5), but 'head/kernel' needs (7, 6)",
        "'query' has no place: the model has no parameter 'fusion/query'",
        "'a.position_ids' is unknown",
        "'points.0.weight' has the shape (1, 9), but 'points' needs (1, 6)",
        "'norm/scale' has no source: no rule of this layout makes it",
    ):
        assert part in message, part


def test_a_parameter_is_never_filled_twice():
    rules = (Rule("a", "x"), Rule("b", "x"))
    tree = dict.fromkeys("ab", ((2,), np.float32))
    with pytest.raises(UserError, match="'x' is filled twice, by 'a' and 'b'"):
        build_plan({"x": ((2,), np.float32)}, rules, tree)
    rules = (Rule("a", "x"), Rule("{i}", "y"), Rule("a", "y"))
    with pytest.raises(UserError, match="'a' fits 2 rules: x, y"):
        build_plan(dict.fromkeys("xy", ((2,), np.float32)), rules, {"a": ((2,), np.float32)})


def test_a_split_needs_all_of_its_parameters():
    rules = (Rule("ab", ("a", "b"), "{n|n} -> n"),)
    with pytest.raises(UserError, match="the model has no 'b'"):
        build_plan({"a": ((2,), np.float32)}, rules, {"ab": ((4,), np.float32)})


def test_export_needs_every_parameter():
    source, targets = checkpoint(np.random.default_rng(0), **SIZES)
    plan = build_plan(targets, RULES, source.tree(), ignored=IGNORED)
    params = apply_plan(plan, source)
    del params["points"]
    with pytest.raises(UserError, match="lack points"):
        dict(export(plan, params))


def test_names_and_prefixes():
    assert match("layers.{i}.weight", "layers.10.weight") == {"i": 10}
    assert match("layers.{i}.weight", "layers.01.weight") is None  # would be exported under another name
    assert match("layers.{i}.weight", "layers.x.weight") is None
    assert match("layersX{i}.weight", "layers.1.weight") is None
    (rule,) = under("model.", (Rule("norm.weight", "norm/scale"),), "lm/")
    assert (rule.source, rule.targets) == ("model.norm.weight", ("lm/norm/scale",))
    layout = Layout("x", (rule,), has=("model.norm.weight", "model.layers.{i}.w"), covers=("lm/*",))
    assert layout.fits(["model.norm.weight", "model.layers.4.w", "other"])
    assert not layout.fits(["model.norm.weight"])
