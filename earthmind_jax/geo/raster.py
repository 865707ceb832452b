"""One raster in: named bands, validity, georeference and every guess that was made on the way.

Nothing here changes a value: ``radiometry`` turns a raw raster into reflectance or decibels, ``align`` brings it onto a
grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from earthmind_jax.errors import UserError
from earthmind_jax.geo.bands import select
from earthmind_jax.geo.bands_on_grid import FILL, Raster
from earthmind_jax.geo.contents import Contents, Wanted, contents, data_bands
from earthmind_jax.geo.counterparts import choose
from earthmind_jax.geo.grid import require_map
from earthmind_jax.geo.opening import file_stamp, open_raster, read_masks, read_values, require_room
from earthmind_jax.geo.products import product_in
from earthmind_jax.geo.quality import quality_note, quality_valid
from earthmind_jax.geo.radiometry import unknown
from earthmind_jax.geo.reflectance import DOUBTFUL
from earthmind_jax.geo.sample import file_sample

__all__ = [
    "FILL",
    "Raster",
    "is_finished_picture",
    "open_raster",
    "peek_bands",
    "peek_sensor",
    "read_raster",
    "require_georeference",
]


def read_raster(
    path: str | os.PathLike[str],
    bands: Sequence[str] | Wanted | None = None,
    window: Window | None = None,
    *,
    sensor: str | None = None,
    native: bool = False,
    labels: bool = False,
) -> Raster:
    """Reads a raster, or a window of it (pixels beyond the edge are invalid), with named bands.

    A band that tells quality (SCL, QA_PIXEL) is no data: it takes cloud, shadow and fill out of ``valid``.

    Args:
      bands: names to read, in this order, or what a model wants of any sensor; all where None.
      sensor: what the caller knows about the file (an entry of ``radiometry.SENSORS``); guessed where None.
      native: keep the file's dtype instead of float32.
      labels: class values: native dtype, and a colour table is no error.

    Raises:
      UserError: a missing, damaged or unsuitable file, a band that is not there, no valid pixel in the whole image.
    """
    with open_raster(path, labels) as dataset:
        wanted = bands if isinstance(bands, Wanted) else Wanted(bands=None if bands is None else tuple(bands))
        scene = contents(dataset, sensor, wanted.names, wanted.kind)
        stored, called, notes = _chosen(scene, wanted, dataset)
        place = dict(zip((*scene.bands, *scene.others), (*scene.indexes, *scene.other_indexes), strict=True))
        indexes = [place[name] for name in stored]
        full = Window(0, 0, dataset.width, dataset.height)
        data, valid = _read(dataset, indexes, window or full, None if native or labels else "float32", scene.indexes)
        if scene.quality is not None and not labels and not set(stored) & set(scene.others):
            codes, _ = _read(dataset, [scene.quality[0]], window or full, "float32")
            clear = quality_valid(scene.quality[1], codes[0], dataset.name)
            notes.append(quality_note(scene.quality[1], clear))
            valid &= clear
        transform = dataset.transform
        if window is not None:
            transform = window_transform(window, transform)
        product = product_in(dataset)
        if product is not None:
            notes += product.files_note((*stored, scene.quality[1]) if scene.quality else stored)
        gcps = bool(dataset.gcps[0])
        if gcps and dataset.crs is None:
            notes.append("only ground control points tell where it lies: terrain-correct it before making maps")
        raster = Raster(
            data=data,
            valid=valid,
            transform=transform,
            crs=dataset.crs,
            bands=tuple(called),
            dtype=dataset.dtypes[indexes[0] - 1],
            tags=dict(dataset.tags()),
            nodata=dataset.nodatavals[indexes[0] - 1],
            notes=notes,
            sensor=scene.sensor,
            path=dataset.name,
            descriptions=tuple(dataset.descriptions[i - 1] or "" for i in indexes),
            units=tuple(dataset.units[i - 1] or "" for i in indexes),
            scales=tuple(dataset.scales[i - 1] for i in indexes),
            offsets=tuple(dataset.offsets[i - 1] for i in indexes),
            window=window,
            scene_shape=(dataset.height, dataset.width),
            scene_bands=scene.bands,
            scene_indexes=() if labels else scene.indexes,
            quality=scene.quality,
            stored=tuple(stored),
            gcps=gcps,
            product=product,
        )
    if window is None and not labels and not raster.valid.any():
        raise nothing_valid(raster)
    return raster


def peek_sensor(
    path: str | os.PathLike[str],
    sensor: str | None = None,
    names: Sequence[str] | None = None,
    kind: str | None = None,
) -> tuple[str | None, str]:
    """(sensor guess, dtype) of a file, or of its bands of a ``kind``, from its header alone."""
    with open_raster(path) as dataset:
        scene = contents(dataset, sensor, names, kind)
        return scene.sensor, dataset.dtypes[scene.indexes[0] - 1]


def is_finished_picture(path: str | os.PathLike[str]) -> tuple[bool, bool]:
    """(whether a file is one or three bands of 8 bits, a picture as it is; whether it has a place on the map)."""
    with open_raster(path) as dataset:
        keep = data_bands(dataset)
        placed = dataset.crs is not None and not dataset.transform.almost_equals(Affine.identity())
        return len(keep) in (1, 3) and all(dataset.dtypes[i - 1] == "uint8" for i in keep), placed


def peek_bands(path: str | os.PathLike[str], bands: Sequence[str], sensor: str | None = None, kind: str = "") -> None:
    """UserError unless a file's header names all ``bands`` (``sensor``: as what it is read), or counterparts of them
    where ``kind`` ("optical" or "sar") is given."""
    with open_raster(path) as dataset:
        names = contents(dataset, sensor, kind=kind or None).bands
        if kind:
            choose(bands, names, dataset.name, kind)
        else:
            select(bands, names, dataset.name)


def empty_bands(scene: Contents, dataset: rasterio.DatasetReader) -> tuple[str, ...]:
    """Measured bands that hold nothing but zeros and nodata while others hold something: a container that was not
    filled, and no measurement. A picture of 8 bits may well be without a colour."""
    if len(scene.bands) == 1 or dataset.dtypes[scene.indexes[0] - 1] == "uint8":
        return ()
    stamp = file_stamp(dataset.name)
    return file_sample(dataset.name, scene.indexes, scene.bands, scene.quality, stamp).empty


def empty_note(empty: Sequence[str]) -> str:
    """What is said of :func:`empty_bands`."""
    return f"left out, since nothing but zeros and nodata is in them: {' '.join(empty)}"


def _chosen(scene: Contents, wanted: Wanted, dataset: rasterio.DatasetReader) -> tuple[list[str], list[str], list[str]]:
    """(names in the file, names that the caller knows them by, notes) of the bands to read."""
    path, notes = dataset.name, list(scene.notes)
    empty = empty_bands(scene, dataset) if wanted.kind is not None else ()
    there = [name for name in scene.bands if name not in empty]
    if empty:
        notes.append(empty_note(empty))
    if wanted.bands is None:
        return there, there, notes
    if wanted.kind is None:
        every = [*scene.bands, *scene.others]
        stored = [every[i] for i in select(wanted.bands, every, path)]
        return stored, stored, notes
    try:
        positions, called, more = choose(wanted.bands, there, path, wanted.kind)
    except UserError as error:
        if any(DOUBTFUL in note for note in notes):  # what they are comes before which are there
            raise UserError(f"{path} is {unknown(scene.bands, notes)}") from error
        if empty:
            raise UserError(f"{error} Nothing but zeros and nodata is in {' '.join(empty)}.") from error
        raise
    return [there[i] for i in positions], called, notes + more


def nothing_valid(raster: Raster) -> UserError:
    """The sentence for an image without a single measurement."""
    nodata = "never written" if raster.nodata is None else f"nodata ({raster.nodata})"
    return UserError(f"{raster.path} has no valid pixel: all are {nodata}, masked or not a number.")


def require_georeference(raster: Raster, purpose: str = "a map") -> CRS:
    """The raster's CRS; UserError where it has no place on Earth."""
    name = raster.path or raster.name
    if raster.gcps and not raster.georeferenced:
        raise UserError(f"{name} has ground control points but no map grid; terrain-correct it (RTC) for {purpose}.")
    return require_map(raster.transform, raster.crs, name, purpose)


def _read(
    dataset: rasterio.DatasetReader,
    indexes: list[int],
    window: Window,
    dtype: str | None,
    measured: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    full = Window(0, 0, dataset.width, dataset.height)
    if window.width <= 0 or window.height <= 0:
        raise UserError(f"{dataset.name}: the window {window} is empty.")
    top, left = max(0, int(window.row_off)), max(0, int(window.col_off))
    bottom = min(full.height, int(window.row_off + window.height))
    right = min(full.width, int(window.col_off + window.width))
    if top >= bottom or left >= right:
        size = f"{dataset.height} x {dataset.width}"
        raise UserError(f"{dataset.name} has {size} pixels; the window {window} lies wholly outside of it.")
    inside = Window(left, top, right - left, bottom - top)
    require_room(dataset, len(indexes), inside)
    part = read_values(dataset, indexes, dtype, window=inside)
    mask = read_masks(dataset, indexes, measured, window=inside).all(0)
    if np.issubdtype(part.dtype, np.floating):
        mask &= np.isfinite(part).all(0)
    shape = int(window.height), int(window.width)
    if shape == mask.shape:
        return part, mask
    rows = slice(top - int(window.row_off), bottom - int(window.row_off))
    columns = slice(left - int(window.col_off), right - int(window.col_off))
    data, valid = np.zeros((len(indexes), *shape), part.dtype), np.zeros(shape, bool)
    data[:, rows, columns], valid[rows, columns] = part, mask
    return data, valid
