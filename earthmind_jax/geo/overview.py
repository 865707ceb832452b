"""A whole scene in small: enough to say what a file is, whatever its size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from affine import Affine

from earthmind_jax.geo.contents import contents
from earthmind_jax.geo.opening import file_stamp, open_raster
from earthmind_jax.geo.products import product_in
from earthmind_jax.geo.raster import Raster, empty_bands, empty_note, nothing_valid
from earthmind_jax.geo.sample import file_sample


def read_overview(
    path: str | os.PathLike[str],
    *,
    sensor: str | None = None,
    names: Sequence[str] | None = None,
    labels: bool = False,
    kind: str | None = None,
) -> Raster:
    """The whole scene with all of its measured bands (``kind``: "optical" or "sar" ones), decimated to at most
    ``SAMPLE_SIDE`` rows and columns."""
    with open_raster(path, labels) as dataset:
        scene = contents(dataset, sensor, names, kind)
        size = dataset.height, dataset.width
        product = product_in(dataset)
        facts: dict[str, Any] = {
            "crs": dataset.crs,
            "dtype": dataset.dtypes[scene.indexes[0] - 1],
            "tags": dict(dataset.tags()),
            "nodata": dataset.nodatavals[scene.indexes[0] - 1],
            "gcps": bool(dataset.gcps[0]),
            "path": dataset.name,
            "product": product,
        }
        empty = empty_bands(scene, dataset)
        kept = [i for i, band in enumerate(scene.bands) if band not in empty]
        for field_name in ("descriptions", "units"):
            facts[field_name] = tuple(getattr(dataset, field_name)[scene.indexes[i] - 1] or "" for i in kept)
        for field_name in ("scales", "offsets"):
            facts[field_name] = tuple(getattr(dataset, field_name)[scene.indexes[i] - 1] for i in kept)
        transform = dataset.transform
        sample = file_sample(dataset.name, scene.indexes, scene.bands, scene.quality, file_stamp(dataset.name))
        notes = list(scene.notes)
        if product is not None:
            notes += product.files_note([band.name for band in product.bands if band.name])
        if empty:
            notes.append(empty_note(empty))
    bands = tuple(scene.bands[i] for i in kept)
    height, width = sample.valid.shape
    raster = Raster(
        data=sample.values[kept] if empty else sample.values,
        valid=sample.valid,
        transform=transform @ Affine.scale(size[1] / width, size[0] / height),
        bands=bands,
        stored=bands,
        scene_bands=scene.bands,
        scene_indexes=scene.indexes,
        scene_shape=size,
        quality=scene.quality,
        sensor=scene.sensor,
        notes=notes,
        **facts,
    )
    if not raster.valid.any():
        raise nothing_valid(raster)
    return raster
