"""Images that records describe: rasters of a few pixels, and rows of arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import rasterio
import support
from affine import Affine

from earthmind_jax.data.records import parse_record

CFG = dataclasses.replace(support.model(), sensors=dataclasses.replace(support.model().sensors, max_tiles=4))
SIDE = 24
UTM = "EPSG:32633"
ORIGIN = (300000.0, 5400000.0)
ROW = {"array": "t.h5", "dataset": "sen2", "row": 3, "bands": ["B02", "B03", "B04", None], "unit": "reflectance"}
SAR_ROW = {"array": "t.h5", "dataset": "sen1", "row": 3, "bands": ["VH", "VV", None], "unit": "linear"}


def raster(path: Path, data: np.ndarray, pixel: float | None = 10.0, **options) -> str:
    """A GeoTIFF [C H W] whose top left corner is ORIGIN; without a georeference where ``pixel`` is None."""
    profile = {"driver": "GTiff", "count": data.shape[0], "height": data.shape[1], "width": data.shape[2]}
    place = {} if pixel is None else {"crs": UTM, "transform": Affine(pixel, 0, ORIGIN[0], 0, -pixel, ORIGIN[1])}
    descriptions, tags = options.pop("descriptions", ()), options.pop("tags", {})
    with rasterio.open(path, "w", **profile, dtype=data.dtype, **place, **options) as file:
        file.write(data)
        for i, text in enumerate(descriptions, 1):
            file.set_band_description(i, text)
        file.update_tags(**tags)
    return path.name


def record(folder: Path, **images):
    return parse_record({"id": "x", "turns": [{"question": "What is it?", "answer": "A lake"}], **images}, "r", folder)


def reflectance_counts() -> np.ndarray:
    """Four bands of reflectance counts, no offset in them: something is nearly black."""
    values = np.random.default_rng(0).integers(200, 3000, (4, SIDE, SIDE)).astype(np.uint16)
    values[:, 0, :3] = 0
    return values


def write_rows(folder):
    """Pairs in arrays of an HDF5 file."""
    rng = np.random.default_rng(2)
    values = {"sen2": rng.uniform(0, 0.3, (5, 8, 8, 4)), "sen1": rng.uniform(0.01, 0.2, (5, 8, 8, 3))}
    with h5py.File(folder / "t.h5", "w") as file:
        for name, data in values.items():
            file[name] = data
        file["chw"] = values["sen2"].transpose(0, 3, 1, 2)
        file["label"] = np.eye(5)
    return values
