"""Tensors by name from a published file or directory, read one at a time.

``open_source`` accepts a ``.safetensors`` file, a directory of them (with or without ``model.safetensors.index.json``),
``.pt`` / ``.pth`` / ``.bin`` files of PyTorch, and DeepSpeed directories; no code from a file is run. Only headers are
read until a tensor is asked for; dtypes stay as they are (bfloat16 through ``ml_dtypes``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from checkpoints_convert.buffers import read_file
from checkpoints_convert.torch_load import load_torch
from earthmind_jax.config import nearest
from earthmind_jax.errors import UserError

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
TORCH_WRAPPERS = ("model", "state_dict", "module")  # top-level keys under which training code saves its state dict

SAFETENSORS_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class File(Protocol):
    """One open file."""

    path: Path
    index: Mapping[str, TensorInfo]

    def read(self, name: str, region: Any = ...) -> np.ndarray: ...


class SafetensorsFile:
    """A ``.safetensors`` file; tensors and slices are read when asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except FileNotFoundError as error:
            raise UserError(f"There is no file '{path}'.") from error
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"'{path}' is not a complete safetensors file ({error}): it is corrupt or its download was cut short, "
                "fetch it again."
            ) from error
        names, self.index = self._file.keys(), {}
        for name in names:
            entry = self._file.get_slice(name)
            if entry.get_dtype() not in SAFETENSORS_DTYPES:
                raise UserError(f"'{path}' stores '{name}' as {entry.get_dtype()}, a dtype that cannot be converted.")
            self.index[name] = TensorInfo(tuple(entry.get_shape()), np.dtype(SAFETENSORS_DTYPES[entry.get_dtype()]))
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        self._starts = {name: 8 + length + header[name]["data_offsets"][0] for name in names}

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        """Not through the library's memory map, whose pages would stay and count as memory of this process."""
        shape, dtype = self.index[name].shape, self.index[name].dtype
        if region is ... or not shape or 0 in shape:
            count = math.prod(shape) * dtype.itemsize
            data = read_file(self.path, self._starts[name], count)
            if len(data) < count:
                raise UserError(f"'{self.path}' ends within '{name}': it was cut short, fetch it again.")
            array = data.view(dtype).reshape(shape)[region]
            return array if array.flags.aligned else array.copy()
        return np.array(np.memmap(self.path, dtype, "r", self._starts[name], shape)[region])

    def start(self, name: str) -> int:
        """Where in the file the numbers of ``name`` begin."""
        return self._starts[name]


class TorchFile:
    """A ``.pt`` / ``.pth`` file: a state dict, or one below a top-level key such as ``model`` or ``state_dict``."""

    def __init__(self, path: Path) -> None:
        self.path, state = path, load_torch(path)
        import torch

        for key in TORCH_WRAPPERS:
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        tensors = {} if not isinstance(state, dict) else {k: v.detach() for k, v in state.items() if torch.is_tensor(v)}
        if not tensors:
            raise UserError(f"'{path}' holds no state dict: expected tensors by name, or a dict of them under 'model'.")
        self._tensors = tensors
        self.index = {name: TensorInfo(tuple(t.shape), torch_dtype(t.dtype)) for name, t in tensors.items()}

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        return torch_array(self._tensors[name])[region]


def torch_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a PyTorch dtype."""
    import torch

    return np.dtype(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype


def torch_array(tensor: Any) -> np.ndarray:
    """A PyTorch tensor as an array over the same memory."""
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy knows it only through ml_dtypes: pass the bits
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class Source:
    """The tensors of a checkpoint, whatever files they lie in. ``index`` maps names to :class:`TensorInfo`."""

    def __init__(self, where: str, tensors: Mapping[str, tuple[File, str]]) -> None:
        self.where = where
        self._tensors = dict(tensors)
        self.index = {name: file.index[original] for name, (file, original) in self._tensors.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the tensors lie in."""
        return tuple(sorted({file.path for file, _ in self._tensors.values()}))

    def tree(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name to (shape, dtype), as :func:`checkpoints_convert.plan.build_plan` takes it."""
        return {name: (info.shape, info.dtype) for name, info in self.index.items()}

    def read(self, name: str, region: Any = ...) -> np.ndarray:
        """The tensor ``name``, or the slice ``region`` of it."""
        if name not in self._tensors:
            raise UserError(f"'{self.where}' has no tensor '{name}'.{nearest(name, self._tensors)}")
        file, original = self._tensors[name]
        return file.read(original, region)

    def place(self, name: str) -> tuple[Path, int] | None:
        """The file that holds the bytes of ``name`` as they are, and where they begin; None where none does."""
        file, original = self._tensors[name]
        return (file.path, file.start(original)) if isinstance(file, SafetensorsFile) else None

    def below(self, prefix: str) -> Source:
        """The tensors whose names start with ``prefix``, named without it."""
        kept = {name[len(prefix) :]: entry for name, entry in self._tensors.items() if name.startswith(prefix)}
        if not kept:
            raise UserError(f"'{self.where}' has no tensors under '{prefix}'.")
        return Source(f"{self.where} ({prefix}*)", kept)

    def starting(self, *prefixes: str) -> Source:
        """The tensors whose names start with one of ``prefixes``, under their own names."""
        return Source(self.where, {name: entry for name, entry in self._tensors.items() if name.startswith(prefixes)})

    def renamed(self, names: Mapping[str, str]) -> Source:
        """The same tensors, those in ``names`` under their new names."""
        return Source(self.where, {names.get(name, name): entry for name, entry in self._tensors.items()})

    def kept(self, names: Iterable[str]) -> Source:
        """The tensors called ``names``."""
        return Source(self.where, {name: self._tensors[name] for name in names})

    def replaced(self, tensors: Mapping[str, tuple[File, str]]) -> Source:
        """These tensors and ``tensors``, a name in both from there."""
        return Source(self.where, {**self._tensors, **tensors})

    def file_of(self, name: str) -> File:
        """The file that ``name`` is read from."""
        return self._tensors[name][0]

    def merged(self, other: Source) -> Source:
        """The tensors of both; where both have a name, the other's."""
        return Source(f"{self.where} + {other.where}", {**self._tensors, **other._tensors})


def open_source(path: str | Path) -> Source:
    """Open a checkpoint file or directory.

    Raises:
      UserError: when it is missing, empty, corrupt or truncated, or an index names a shard that is not there.
    """
    # That file reads with the functions above.
    from checkpoints_convert.deepspeed import ZeroFile, zero_directory

    path = Path(path)
    if path.is_dir() and (step := zero_directory(path)) is not None:
        file = ZeroFile(step)
        return Source(str(path), {name: (file, name) for name in file.index})
    if path.is_dir():
        files = _shards(path)
    elif path.exists():
        files = [path]
    else:
        raise UserError(f"There is no checkpoint '{path}'.")
    tensors: dict[str, tuple[File, str]] = {}
    for file_path in files:
        file = _open(file_path)
        for name in file.index:
            if name in tensors:
                raise UserError(f"'{path}' holds '{name}' twice, the second time in '{file_path.name}'.")
            tensors[name] = (file, name)
    source = Source(str(path), tensors)
    _check_index(path, source)
    return source


def _open(path: Path) -> File:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in TORCH_SUFFIXES:
        return TorchFile(path)
    raise UserError(f"'{path}' is neither a .safetensors file nor a PyTorch file ({', '.join(TORCH_SUFFIXES)}).")


def _weight_map(directory: Path) -> dict[str, str] | None:
    """Tensor to shard, from the index file of ``directory``; None without one."""
    for name in INDEX_NAMES:
        file = directory / name
        if file.is_file():
            try:
                return dict(json.loads(file.read_text())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"'{file}' is not a readable index of shards.") from error
    return None


def _shards(directory: Path) -> list[Path]:
    mapping = _weight_map(directory)
    if mapping is not None:
        files = [directory / name for name in sorted(set(mapping.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f"'{directory}' lacks {', '.join(missing)}, named by its index: fetch the missing shards.")
        return files
    files = sorted(directory.glob("*.safetensors"))
    files = files or sorted(file for suffix in TORCH_SUFFIXES for file in directory.glob(f"*{suffix}"))
    if not files:
        raise UserError(f"'{directory}' holds no .safetensors, .pt, .pth or .bin file.")
    return files


def _check_index(path: Path, source: Source) -> None:
    mapping = _weight_map(path) if path.is_dir() else None
    missing = sorted(set(mapping or {}) - set(source.index))
    if missing:
        raise UserError(f"'{path}' lacks {len(missing)} tensors that its index names, the first '{missing[0]}'.")
