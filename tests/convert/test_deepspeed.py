"""Directories of DeepSpeed, and objects beside the tensors of a training checkpoint."""

from __future__ import annotations

import argparse
import enum
import sys
import types

import numpy as np
import pytest
from convert.test_layouts import TINY
from trained import check_merged, torch

from checkpoints_convert.convert import convert
from checkpoints_convert.reader import open_source
from earthmind_jax.errors import UserError


def partitioned(directory, tensors, ranks, *, groups=2, whole=(), stage=None, extra=None):
    """A ZeRO-2 directory as DeepSpeed writes it: each group flattened, padded to 2 x ranks, one part a rank."""
    directory.mkdir(parents=True)
    names = [name for name in tensors if name not in whole]
    shapes, flats = [], []
    for group in range(groups):
        own = names[group::groups]
        shapes.append({name: torch.Size(tensors[name].shape) for name in own})
        flat = np.concatenate([tensors[name].ravel() for name in own])
        flats.append(np.pad(flat, (0, -len(flat) % (2 * ranks))))
    module = {name: torch.from_numpy(x).bfloat16() for name, x in tensors.items() if name not in whole}
    module |= {name: torch.from_numpy(tensors[name]) for name in whole}
    torch.save({"module": module, "param_shapes": shapes, **(extra or {})}, directory / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        share = [torch.from_numpy(np.split(flat, ranks)[rank].copy()) for flat in flats]
        state = {"single_partition_of_fp32_groups": share, "partition_count": [ranks] * groups}
        state |= {} if stage is None else {"zero_stage": stage}
        file = directory / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, file)
    return directory


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_deepspeed_tensors_are_those_that_were_partitioned(tmp_path, ranks):
    rng = np.random.default_rng(1)
    shapes = [(7, 5), (3,), (2, 3, 4), (1,), (11,), ()]
    tensors = {f"t{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    partitioned(tmp_path / "run" / "step10", tensors, ranks, whole=("t1",))
    (tmp_path / "run" / "latest").write_text("step10\n")
    for path in (tmp_path / "run", tmp_path / "run" / "step10"):
        source = open_source(path)
        assert source.tree() == {name: (x.shape, x.dtype) for name, x in tensors.items()}
        for name, value in tensors.items():
            np.testing.assert_array_equal(source.read(name), value)
        np.testing.assert_array_equal(source.read("t0", np.s_[2:4]), tensors["t0"][2:4])


def test_deepspeed_directory_as_a_training_checkpoint(parts, files, monkeypatch):
    """With the objects that DeepSpeed and argparse leave beside the tensors, whose classes are not installed."""
    fake = types.ModuleType("deepspeed.runtime")

    class Stage(enum.IntEnum):
        gradients = 2

    class LossScaler:
        def __init__(self):
            self.scale = 1.0

    for made in (Stage, LossScaler):
        made.__module__, made.__qualname__ = fake.__name__, made.__name__
        setattr(fake, made.__name__, made)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
        patch.setitem(sys.modules, fake.__name__, fake)
        extra = {"args": argparse.Namespace(lr=1e-4), "loss_scaler": LossScaler()}
        path = partitioned(files / "iter_3.dir", parts[2], 2, stage=Stage.gradients, extra=extra)
    _, whole = convert(path, base=[files / "internvl.safetensors", files / "sam2.pt"], merge=True, config=TINY)
    check_merged(parts, whole)


def test_deepspeed_directories_that_cannot_be_read(tmp_path):
    tensors = {"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.float32)}

    def fails(path, message):
        with pytest.raises(UserError, match=message):
            open_source(path)

    path = partitioned(tmp_path / "missing", tensors, 3)
    rank1 = path / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = rank1.read_bytes()
    rank1.unlink()
    fails(path, r"missing' lacks the optim_states of rank 1 of 3")
    rank1.write_bytes(whole[: len(whole) // 2])
    fails(path, r"rank_1.*cut short")
    for file in path.glob("*optim_states.pt"):
        file.unlink()
    fails(path, r"holds no \*_optim_states\.pt")
    fails(partitioned(tmp_path / "three", tensors, 2, stage=3), "ZeRO stage 3.*zero_to_fp32")
    scattered = partitioned(tmp_path / "scattered", tensors, 2)
    (scattered / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"")
    fails(scattered, "is a ZeRO stage 3 checkpoint")
    other = partitioned(tmp_path / "other", tensors, 2)
    torch.save(
        {"module": {}, "param_shapes": [{"a": torch.Size((30, 2))}, {"b": torch.Size((5,))}]},
        other / "mp_rank_00_model_states.pt",
    )
    fails(other, "hold 8 numbers of group 0, but its tensors need 60")
    (tmp_path / "latest").write_text("../three")
    fails(tmp_path, r"names the step '\.\./three'")


def test_objects_that_might_run_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"state_dict": {"a": torch.zeros(1)}, "trap": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth.* would run '.*open' when loaded, which is refused; save"):
        open_source(tmp_path / "trap.pth")
    assert not (tmp_path / "written").exists()
