"""Published files, whole and broken."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert.reader import open_source
from earthmind_jax.errors import UserError


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.standard_normal((4, 3)).astype(np.float32),
        "b.weight": rng.standard_normal((5, 2)).astype(ml_dtypes.bfloat16),
        "c.count": np.asarray(7, np.int64),
        "d.half": rng.standard_normal(6).astype(np.float16),
    }


def check(source, expected):
    assert set(source.index) == set(expected)
    for name, array in expected.items():
        assert (source.index[name].shape, source.index[name].dtype) == (array.shape, array.dtype)
        read = source.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_one_file(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    check(source, tensors())
    np.testing.assert_array_equal(source.read("b.weight", np.s_[1:3]), tensors()["b.weight"][1:3])
    assert source.tree()["a.weight"] == ((4, 3), np.float32)


def shards(path):
    path.mkdir()
    everything = tensors()
    parts = {"model-1.safetensors": ("a.weight", "c.count"), "model-2.safetensors": ("b.weight", "d.half")}
    for file, names in parts.items():
        save_file({name: everything[name] for name in names}, path / file)
    return {name: file for file, names in parts.items() for name in names}


def test_a_directory_of_shards_with_and_without_an_index(tmp_path):
    mapping = shards(tmp_path / "with")
    (tmp_path / "with" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    save_file({"unrelated": np.zeros(1)}, tmp_path / "with" / "optimizer.safetensors")  # not in the index
    shards(tmp_path / "without")
    check(open_source(tmp_path / "with"), tensors())
    check(open_source(tmp_path / "without"), tensors())


def test_views_of_a_source(tmp_path):
    save_file(tensors(), tmp_path / "one.safetensors")
    save_file({"b.weight": np.ones(2), "e": np.zeros(3)}, tmp_path / "two.safetensors")
    one, two = open_source(tmp_path / "one.safetensors"), open_source(tmp_path / "two.safetensors")
    below = one.below("a.").renamed({"weight": "kernel"})
    check(below, {"kernel": tensors()["a.weight"]})
    merged = one.merged(two)
    assert set(merged.index) == {*tensors(), "e"}
    np.testing.assert_array_equal(merged.read("b.weight"), np.ones(2))
    with pytest.raises(UserError, match=r"no tensors under 'z\.'"):
        one.below("z.")
    with pytest.raises(UserError, match=r"no tensor 'a\.wieght'.*Did you mean 'a\.weight'"):
        one.read("a.wieght")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files(tmp_path, wrapper, zipped):
    torch = pytest.importorskip("torch")
    expected = tensors()
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in expected.items() if "b." not in name}
    state["b.weight"] = torch.from_numpy(expected["b.weight"].astype(np.float32)).to(torch.bfloat16)
    state["c.count"] = torch.tensor(7)
    state["d.half"] = torch.nn.Parameter(state["d.half"].half())
    content = state if wrapper is None else {wrapper: state, "meta": {"epoch": 1}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    source = open_source(tmp_path / "x.pth")
    check(source, expected)
    np.testing.assert_array_equal(source.read("b.weight", np.s_[1:3]), expected["b.weight"][1:3])


def test_a_pytorch_file_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    class Trap:
        def __reduce__(self):
            return (print, ("never printed",))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="not a PyTorch file of plain tensors"):
        open_source(tmp_path / "trap.pth")


def test_broken_files(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        open_source(tmp_path / "absent.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file(tensors(), whole)
    for name, content in (
        ("cut.safetensors", whole.read_bytes()[:-3]),
        ("head.safetensors", whole.read_bytes()[:20]),
        ("text.safetensors", b"not found"),
        ("empty.safetensors", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}' is not a complete safetensors file"):
            open_source(tmp_path / name)
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(UserError, match=r"neither a \.safetensors file nor a PyTorch file"):
        open_source(tmp_path / "weights.txt")


def test_broken_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"a": torch.zeros(1000)}}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for name, data in (("cut.pt", content[: len(content) // 2]), ("text.pt", b"not found"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}' is not a PyTorch file"):
            open_source(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        open_source(tmp_path / "none.pt")


def test_broken_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.safetensors"):
        open_source(tmp_path / "empty")
    mapping = shards(tmp_path / "shards")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**mapping, "e": "model-3.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks model-3\.safetensors"):
        open_source(tmp_path / "shards")
    index.write_text(json.dumps({"weight_map": {**mapping, "e": "model-2.safetensors"}}))
    with pytest.raises(UserError, match="lacks 1 tensors that its index names, the first 'e'"):
        open_source(tmp_path / "shards")
    index.write_text("{")
    with pytest.raises(UserError, match="not a readable index"):
        open_source(tmp_path / "shards")
    index.unlink()
    save_file({"a.weight": np.zeros(1)}, tmp_path / "shards" / "more.safetensors")
    with pytest.raises(UserError, match=r"holds 'a\.weight' twice"):
        open_source(tmp_path / "shards")
