"""Where the images of an answer show cloud, as far as their own files tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.data.read import Images, is_raster
from earthmind_jax.data.tiles import nearest_resize
from earthmind_jax.geo.quality import cloudy, quality_of
from earthmind_jax.geo.told import NOTHING, Told
from earthmind_jax.infer.marks import grid_of

CLOUD_NOTE = "cloud, its shadow and cirrus as {} says"
UNKNOWN_CLOUD = "clouds are not detected: the optical file has no scene classification band (SCL, QA_PIXEL)"


def clouds(optical: Any, images: Images | None, told: Told = NOTHING) -> tuple[np.ndarray | None, str]:
    """Where the optical file's own classification, or the one that is told, says cloud or shadow, on the pixels of
    ``images``; with what to say about it.

    Of images without a place on the map these are all of the file's.
    """
    source = optical[0] if isinstance(optical, list | tuple) else optical
    if images is None or "optical" not in images.pictures:
        return None, "clouds are not asked for: there is no optical image"
    if not isinstance(source, str | Path) or not is_raster(source):
        return None, UNKNOWN_CLOUD
    from earthmind_jax.geo.contents import Wanted, contents
    from earthmind_jax.geo.onto import align
    from earthmind_jax.geo.raster import open_raster, read_raster

    with open_raster(source) as dataset:
        found = contents(dataset, told.sensor, told.bands or None)
    if told.scl is not None and images.crs is not None:
        name = quality_of(found.sensor)
        classes = align(told.scl, grid_of(images), "label", min_overlap=0).raster
        return cloudy(name, classes.data[0]) & classes.valid, CLOUD_NOTE.format(f"{told.scl} ({name})")
    if found.quality is None:
        return None, UNKNOWN_CLOUD
    name = found.quality[1]
    band = Wanted(bands=(name,), names=told.bands or None)
    if images.crs is not None:
        classes = align(source, grid_of(images), "label", bands=band, min_overlap=0, **told.ground()).raster.data[0]
    else:
        classes = read_raster(source, band, labels=True, native=True).data[0]
        if classes.shape != images.shape:
            classes = nearest_resize(classes, images.shape)
    return cloudy(name, classes), CLOUD_NOTE.format(f"the file's classification band ({name})")
