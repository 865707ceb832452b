"""A DeepSpeed ZeRO-2 (or ZeRO-1) checkpoint directory: trained tensors, reassembled from the ranks' partitions.

``mp_rank_00_model_states.pt`` says which tensors there are: ``param_shapes`` lists, group by group, those that the
optimiser trains. Each ``*_optim_states.pt`` holds one rank's share of their float32 masters: every group flattened,
laid end to end and cut into equal parts (``single_partition_of_fp32_groups``). A tensor is put together from the ranks'
parts when it is read, so that no more than one is in memory.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.reader import TensorInfo, torch_array, torch_dtype
from checkpoints_convert.torch_load import Inert, load_torch
from earthmind_jax.errors import UserError

MODEL_STATES = "mp_rank_00_model_states.pt"
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_STAGE3 = "zero_pp_rank_*_model_states.pt"


def zero_directory(path: Path) -> Path | None:
    """The directory with the files of one DeepSpeed step: ``path`` itself, or the one that its ``latest`` names.

    Raises:
      UserError: if ``latest`` names a directory that is not there, the model is cut into several tensor-parallel parts,
        or the directory is of ZeRO stage 3.
    """
    latest = path / "latest"
    if latest.is_file():
        try:
            tag = latest.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"'{latest}' cannot be read ({error}); give the directory of the step itself.") from error
        # A tag is one name below ``path``: never a way out of it.
        if not tag or Path(tag).name != tag or not (path / tag).is_dir():
            raise UserError(f"'{latest}' names the step '{tag}', which is no directory beside it; copy it there.")
        path = path / tag
    if any(path.glob(_STAGE3)):
        raise UserError(
            f"'{path}' is a ZeRO stage 3 checkpoint, whose parameters are scattered over the ranks, which is not "
            "supported; consolidate it with the zero_to_fp32.py that DeepSpeed wrote beside it and give the result."
        )
    if not (path / MODEL_STATES).is_file():
        return None
    parts = sorted(file.name for file in path.glob("mp_rank_*_model_states.pt"))
    if len(parts) > 1:
        raise UserError(f"'{path}' is cut into {len(parts)} tensor-parallel parts; merge it to one (mp_rank_00) first.")
    return path


class ZeroFile:
    """The trained tensors (float32), the frozen ones and the buffers of a DeepSpeed directory, as one file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / MODEL_STATES
        model = load_torch(self.path)
        if not isinstance(model, dict) or not isinstance(model.get("param_shapes"), list | dict):
            raise UserError(f"'{self.path}' does not list its tensors (param_shapes): it is not of a ZeRO optimiser.")
        groups = model["param_shapes"] if isinstance(model["param_shapes"], list) else [model["param_shapes"]]
        self._ranks = _partitions(directory, len(groups))
        self._places: dict[str, tuple[int, int]] = {}  # trained tensor -> (group, first element)
        self._whole: dict[str, Any] = _whole_tensors(model)
        self.index = {name: TensorInfo(tuple(t.shape), torch_dtype(t.dtype)) for name, t in self._whole.items()}
        for number, group in enumerate(groups):
            self._list_group(directory, number, group)
        for alias, name in dict(model.get("shared_params") or {}).items():
            if name in self._places:
                self._places[alias], self.index[alias] = self._places[name], self.index[name]

    def _list_group(self, directory: Path, number: int, group: dict[str, Any]) -> None:
        start = 0
        for name, shape in group.items():
            self._whole.pop(name, None)  # the float32 master counts, not the rounded copy
            self._places[name] = number, start
            # All masters of a group lie in one tensor, so its dtype is that of each.
            self.index[name] = TensorInfo(tuple(shape), torch_dtype(self._ranks[0][number].dtype))
            start += math.prod(shape)
        held = sum(rank[number].numel() for rank in self._ranks)
        # DeepSpeed pads each group so that every rank's part starts at an even address.
        if not start <= held <= start + 4 * len(self._ranks):
            raise UserError(
                f"The ranks' files in '{directory}' hold {held} numbers of group {number}, but its tensors need "
                f"{start}: a file is of another run or cut short."
            )

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        """The tensor ``name``, or the slice ``region`` of it."""
        if name not in self._places:
            return torch_array(self._whole[name])[region]
        group, start = self._places[name]
        shape = self.index[name].shape
        flat = np.empty(math.prod(shape), self.index[name].dtype)
        first = 0  # of this rank's part, in the group
        for rank in self._ranks:
            part = rank[group]
            low, high = max(start, first), min(start + flat.size, first + part.numel())
            if low < high:
                flat[low - start : high - start] = torch_array(part[low - first : high - first])
            first += part.numel()
        return flat.reshape(shape)[region]


def _whole_tensors(model: dict[str, Any]) -> dict[str, Any]:
    """Tensors that are not partitioned: the state dict as saved (buffers, rounded copies) and frozen parameters."""
    import torch

    whole = {**(model.get("module") or {}), **(model.get("frozen_param_fragments") or {})}
    return {name: tensor.detach() for name, tensor in whole.items() if torch.is_tensor(tensor)}


def _partitions(directory: Path, groups: int) -> list[list[Any]]:
    """For each rank, its part of every group, flat."""
    files = {int(found.group(1)): file for file in directory.iterdir() if (found := _RANK.fullmatch(file.name))}
    if not files:
        raise UserError(
            f"'{directory}' holds no *_optim_states.pt, where the trained weights are; copy those files too, or give "
            f"'{directory / MODEL_STATES}' alone for the rounded copies in it."
        )
    parts, count = {}, None
    for rank, file in sorted(files.items()):
        state = load_torch(file)
        state = state.get("optimizer_state_dict") if isinstance(state, dict) else None
        if not isinstance(state, dict):
            raise UserError(f"'{file}' holds no optimizer_state_dict: it is not of a ZeRO optimiser.")
        stage = state.get("zero_stage", 2)
        stage = stage.arguments[0] if isinstance(stage, Inert) and stage.arguments else stage
        if stage == 3 or "fp32_flat_groups" in state:
            raise UserError(
                f"'{file}' is of ZeRO stage 3, which is not supported; consolidate the checkpoint with the "
                "zero_to_fp32.py that DeepSpeed wrote beside it and give the result."
            )
        parts[rank] = state.get("single_partition_of_fp32_groups")
        if not isinstance(parts[rank], list) or len(parts[rank]) != groups:
            raise UserError(f"'{file}' does not hold a part of each of the {groups} parameter groups.")
        count = state.get("partition_count", len(files))
        count = max(count) if isinstance(count, list | tuple) else count
    missing = sorted(set(range(count)) - set(parts))
    if missing:
        raise UserError(
            f"'{directory}' lacks the optim_states of rank {', '.join(map(str, missing))} of {count}: copy them there."
        )
    return [parts[rank] for rank in range(count)]
