"""The arrays of a checkpoint directory, read slice by slice."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from earthmind_jax import checkpoint
from earthmind_jax.config import EarthMindConfig
from earthmind_jax.models import api

BLOCK = 64 * 2**20  # bytes read at a time


class StoredArray:
    """One array on disk: ``shape``, ``dtype``, and ``array[index]`` reads no more than that entry."""

    def __init__(self, store: ts.TensorStore) -> None:
        self._store = store
        self.shape, self.dtype = tuple(store.shape), store.dtype.numpy_dtype

    def __getitem__(self, index: Any) -> np.ndarray:
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
        params = {name: StoredArray(future.result()) for name, future in opening.items()}
    return config, checkpoint.checked(params, api.shapes(config), directory)


def _place(weights: Path, name: str) -> dict[str, Any]:
    if (weights / "manifest.ocdbt").is_file():  # what Orbax writes by default; a conversion has plain files
        return {"driver": "ocdbt", "base": f"file://{weights}/", "path": f"{name}/"}
    return {"driver": "file", "path": f"{weights / name}/"}
