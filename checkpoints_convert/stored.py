"""The arrays of a checkpoint directory, read slice by slice."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from checkpoints_convert.buffers import empty, read_file
from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import api
from earthmind_jax.models.functional import LORA
from earthmind_jax.nn.linear import merge_factors

BLOCK = 64 * 2**20  # bytes read at a time


class StoredArray:
    """One array on disk: ``shape``, ``dtype``, and ``array[index]`` reads no more than that entry.

    ``directory``: where its chunks are plain files (as :mod:`checkpoints_convert.store` writes them), if they are.
    """

    def __init__(self, store: ts.TensorStore, directory: Path | None = None) -> None:
        self._store, self._directory = store, directory
        self.shape, self.dtype = tuple(store.shape), store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        if (plain := self._plain(index)) is not None:
            return plain
        view = self._store[index]
        size = math.prod(view.shape) * self.dtype.itemsize
        if size <= BLOCK:
            return view.read().result()
        # Whole, TensorStore would hold the chunks beside the result.
        whole, rows = np.empty(view.shape, self.dtype), max(1, BLOCK * view.shape[0] // size)
        for start in range(0, len(whole), rows):
            stop = min(start + rows, len(whole))
            whole[start:stop] = view[start:stop].read().result()
        return whole

    def _plain(self, index: Any) -> np.ndarray | None:
        """The entry ``index`` from its files, without the copies of TensorStore; None where they are no plain ones."""
        if self._directory is None or not isinstance(index, tuple) or not all(isinstance(i, int) for i in index):
            return None
        shape, chunk = self.shape[len(index) :], self._store.chunk_layout.read_chunk.shape
        if not shape or chunk[: len(index)] != (1,) * len(index) or chunk[len(index) + 1 :] != shape[1:]:
            return None
        rows, row = chunk[len(index)], math.prod(shape[1:]) * self.dtype.itemsize
        whole = empty(shape[0] * row) if rows < shape[0] else None
        for number, start in enumerate(range(0, shape[0], rows)):
            name = ".".join(map(str, (*index, number, *(0,) * (len(shape) - 1))))
            try:
                data = read_file(self._directory / name, 0, rows * row)
            except FileNotFoundError:
                return None
            if len(data) < rows * row:
                return None
            if whole is None:
                whole = data[: shape[0] * row]
            else:
                part = whole[start * row :][: rows * row]
                part[:] = data[: len(part)]
        return None if whole is None else whole.view(self.dtype).reshape(shape)


class AdaptedArray:
    """A kernel with its LoRA factors folded in, slice by slice: shape, dtype and indexing of :class:`StoredArray`."""

    def __init__(self, kernel: Any, a: Any, b: Any, scale: float) -> None:
        self._kernel, self._a, self._b, self._scale = kernel, a, b, scale
        self.shape, self.dtype = tuple(kernel.shape), np.dtype(kernel.dtype)
        self._stacked = len(a.shape) + len(b.shape) - 2 > len(kernel.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        layer = index[: int(self._stacked)]
        # Inputs come first in a kernel as in ``a``: what is cut of its rows is cut of those of ``a``.
        parts = (self._kernel[index], self._a[index], self._b[layer])
        return np.asarray(merge_factors(*map(jnp.asarray, parts), self._scale))


def without_adapters(config: EarthMindConfig, params: Mapping[str, Any]) -> tuple[EarthMindConfig, Mapping[str, Any]]:
    """The model with its adapters folded into its weights, as they are read."""
    lora = config.lm.lora
    if lora is None:
        return config, params
    plain = {path: array for path, array in params.items() if not path.startswith(LORA)}
    for path in params:
        if path.startswith(LORA) and path.endswith("/a"):
            layer = path.removeprefix(LORA).removesuffix("/a")
            b, kernel = params[f"{LORA}{layer}/b"], plain[f"{layer}/kernel"]
            plain[f"{layer}/kernel"] = AdaptedArray(kernel, params[path], b, lora.alpha / lora.rank)
    return dataclasses.replace(config, lm=dataclasses.replace(config.lm, lora=None)), plain


def stored_params(directory: str | Path) -> tuple[EarthMindConfig, Mapping[str, Any]]:
    """Configuration and arrays of a checkpoint; those of a training run are read into memory.

    Raises:
      UserError: not a checkpoint, or the weights do not fit the configuration.
    """
    directory = Path(directory).absolute()
    config = checkpoint.read_config(directory)
    weights = directory / checkpoint.WEIGHTS
    if not weights.is_dir():
        return checkpoint.load(directory)
    with checkpoint.damaged(directory):
        metadata = json.loads((weights / "_METADATA").read_text())
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        names = [value["key_metadata"][0]["key"] for value in metadata["tree_metadata"].values()]
        opening = {name: ts.open({"driver": driver, "kvstore": _place(weights, name)}) for name in names}
        params = {name: StoredArray(future.result(), _plain_files(weights / name)) for name, future in opening.items()}
    return config, checkpoint.checked(params, api.shapes(config), directory)


def _plain_files(directory: Path) -> Path | None:
    """``directory``, if the chunks in it are files of nothing but numbers of this machine's byte order."""
    file = directory / ".zarray"
    if not file.is_file():
        return None
    described = json.loads(file.read_text())
    told = (described["compressor"], described.get("filters"), described["order"])
    separator, kind = described.get("dimension_separator", "."), described["dtype"]
    return directory if told == (None, None, "C") and separator == "." and not kind.startswith(">") else None


def _place(weights: Path, name: str) -> dict[str, Any]:
    if (weights / "manifest.ocdbt").is_file():  # what Orbax writes by default; a conversion has plain files
        return {"driver": "ocdbt", "base": f"file://{weights}/", "path": f"{name}/"}
    return {"driver": "file", "path": f"{weights / name}/"}
