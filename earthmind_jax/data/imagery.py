"""Described images (:mod:`earthmind_jax.data.images`) to calibrated rasters on one grid.

What a plain path is taken for is decided in :mod:`earthmind_jax.data.read`; here the record tells more. A finished
picture (unit "display") stays as it is, bands become reflectance or decibels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags

from earthmind_jax.config import SensorConfig
from earthmind_jax.data import arrays
from earthmind_jax.data.band_files import file_header, finest, stacked
from earthmind_jax.data.images import Image
from earthmind_jax.data.model_bands import model_bands
from earthmind_jax.errors import UserError
from earthmind_jax.geo.align import align, check_header
from earthmind_jax.geo.band_names import canonical
from earthmind_jax.geo.bands import name_bands
from earthmind_jax.geo.counterparts import choose
from earthmind_jax.geo.products import product_in
from earthmind_jax.geo.radiometry import SENSORS, calibrate, to_display
from earthmind_jax.geo.raster import Raster, open_raster, peek_bands, peek_sensor, read_raster

COLOURS = ("R", "G", "B")


@dataclass(frozen=True)
class Header:
    """What is known of an image without its pixels: (rows, columns), whether it is a finished picture, and whether a
    partner is brought onto its grid (it is placed on a map, or calibrated)."""

    shape: tuple[int, int]
    finished: bool
    placed: bool


def wanted_bands(kind: str, sensors: SensorConfig) -> tuple[str, ...]:
    """The bands that a model asks for of an ``optical`` or ``sar`` image, each once."""
    return tuple(dict.fromkeys(sensors.optical_bands if kind == "optical" else sensors.sar_bands))


def header(image: Image, kind: str, sensors: SensorConfig) -> Header:
    """Of a described ``optical`` or ``sar`` image as a model reads it; UserError where its files do not open."""
    if image.array is not None:
        finished = image.unit == "display" or image.stretch is not None
        return Header(arrays.shape(image), finished, not finished)
    chosen = _chosen(image, kind, wanted_bands(kind, sensors)) if image.files else {"": image.paths[0]}
    parts = [file_header(path, single=bool(image.files)) for path in chosen.values()]
    grid, finished = finest(grid for grid, _ in parts), _finished(image, parts[0][1])
    placed = grid.crs is not None and not grid.transform.almost_equals(Affine.identity())
    return Header(grid.shape, finished, placed or not finished)


def check(image: Image, kind: str, sensors: SensorConfig) -> None:
    """What :func:`load` would refuse by the headers of its files: UserError."""
    wanted = wanted_bands(kind, sensors)
    made = header(image, kind, sensors)
    told = [name for name, _ in image.files] or [band for band in image.bands or () if band is not None]
    if image.file is not None:
        with open_raster(image.file) as dataset:
            _count(image, dataset.count)
            channels = sum(colour != ColorInterp.alpha for colour in dataset.colorinterp)
    if made.finished:
        _shown(image, told or [""] * channels)
    elif told:
        choose(wanted, _names(told, image.sensor), image.name, kind)
    elif image.sensor is not None:
        peek_bands(image.paths[0], wanted, image.sensor, kind)
    else:
        check_header(image.paths[0], kind, wanted)


def load(images: Mapping[str, Image], sensors: SensorConfig) -> dict[str, Raster]:
    """Reads and calibrates ``optical`` and/or ``sar``; a SAR image goes onto the grid of the optical one where both are
    placed. Two without georeference need one size, but for finished pictures, which are over the same ground anyway.

    Raises:
      UserError: naming the file, row or band that is missing or unsuitable, or both images where they do not overlap.
    """
    made = {kind: _read(image, kind, wanted_bands(kind, sensors)) for kind, image in images.items()}
    if len(made) < 2:
        return made
    optical, sar = made["optical"], made["sar"]
    if optical.georeferenced and sar.georeferenced:
        aligned = align(sar, optical, "sar_linear").raster
        return {"optical": optical, "sar": aligned}
    placed = all(r.georeferenced or r.unit != "display" or images[kind].plain for kind, r in made.items())
    if placed and optical.shape != sar.shape:
        sizes = [f"{image.name} ({' x '.join(map(str, made[kind].shape))})" for kind, image in images.items()]
        raise UserError(f"{' and '.join(sizes)} cannot be brought together without a georeference; give both one size.")
    return made


def as_picture(raster: Raster, image: Image, kind: str, sensors: SensorConfig) -> np.ndarray | dict[str, np.ndarray]:
    """A raster of :func:`load` in the form of a sample: bands by the names that the model knows, or an 8-bit picture
    [H W 3] (one channel is repeated, two are padded with zeros)."""
    if not _is_picture(raster, image):
        return model_bands(raster, kind, sensors)
    picture = np.clip(np.rint(raster.data), 0, 255).astype(np.uint8)
    if len(picture) == 1:
        picture = np.repeat(picture, 3, 0)
    elif len(picture) == 2:
        picture = np.concatenate([picture, np.zeros_like(picture[:1])])
    return np.moveaxis(picture, 0, -1)


def _read(image: Image, kind: str, wanted: tuple[str, ...]) -> Raster:
    if image.array is not None:
        raster = arrays.read(image)
    elif image.files:
        raster = _read_bands(image, kind, wanted)
    else:
        raster = _calibrated(_read_file(image), image, kind)
    if _is_picture(raster, image):
        shown = _shown(image, raster.bands)
        return replace(raster, data=raster.data[shown], bands=tuple(raster.bands[i] for i in shown))
    chosen, known, notes = choose(wanted, raster.bands, image.name, kind)
    return replace(raster, data=raster.data[chosen], bands=tuple(known), notes=[*raster.notes, *notes])


def _read_file(image: Image) -> Raster:
    """A raster with the names that are told, or its own."""
    if image.bands is None:
        return _without(read_raster(image.file, sensor=image.sensor), image)
    used = [i for i, band in enumerate(image.bands, 1) if band is not None]
    with open_raster(image.file) as dataset:
        _count(image, dataset.count)
        data = dataset.read(used, out_dtype="float32")
        flags = dataset.mask_flag_enums
        # A channel that is told to be a band is no mask of the others, whatever the file calls it.
        alpha = MaskFlags.alpha in flags[used[0] - 1] and image.bands[-1] is not None
        valid = np.isfinite(data).all(0)
        if not alpha:
            valid &= dataset.read_masks(used).all(0)
        names = _names([band for band in image.bands if band is not None], image.sensor)
        dtype = dataset.dtypes[used[0] - 1]
        called, sensor, _ = name_bands(names, dtype, dataset.name, dataset.tags(), image.sensor, told=names)
        if all(map(canonical, names)):  # a number that means another band in a product whose name tells it
            names = called
        raster = Raster(
            data=data,
            valid=valid,
            transform=dataset.transform,
            crs=dataset.crs,
            bands=names,
            dtype=dataset.dtypes[used[0] - 1],
            tags=dict(dataset.tags()),
            nodata=dataset.nodatavals[used[0] - 1],
            notes=["bands as told"],
            sensor=sensor,
            path=dataset.name,
            scales=tuple(dataset.scales[i - 1] for i in used),
            offsets=tuple(dataset.offsets[i - 1] for i in used),
            scene_shape=(dataset.height, dataset.width),
            scene_bands=names,
            gcps=bool(dataset.gcps[0]),
            product=product_in(dataset),
        )
    return _without(raster, image)


def _read_bands(image: Image, kind: str, wanted: tuple[str, ...]) -> Raster:
    """The files of the bands that are used, on the finest of their grids.

    Reflectance is resampled as it is stored and calibrated afterwards, since whether an offset is to be applied is
    seen in all bands together; backscatter is calibrated first, and resampled as power.
    """
    parts = []
    for band, path in _chosen(image, kind, wanted).items():
        file_header(path, single=True)
        part = _without(read_raster(path), image)
        # One scene of several files: what is judged by the whole of it is judged by all that is read.
        part = replace(part, bands=(band,), stored=(band,), scene_bands=(band,), scene_indexes=(), sensor=None)
        if kind == "sar":
            part = _calibrated(part, image, kind)
        elif part.dtype != "uint8" and not part.dtype.startswith("float"):
            part = replace(part, valid=part.valid & (part.data[0] != 0))  # a fill value must not bleed into others
        parts.append(part)
    stack = stacked(parts, kind, image.name)
    return stack if kind == "sar" else _calibrated(stack, image, kind)


def _calibrated(raster: Raster, image: Image, kind: str) -> Raster:
    if image.stretch is not None:
        low, high = image.stretch
        values = np.clip((raster.data - low) / (high - low), 0, 1) * 255
        return raster.calibrated(values, raster.valid, "display", [f"stretched from {low:g} to {high:g}, as told"])
    if _finished(image, raster.dtype):
        return to_display(raster)
    guess = raster.sensor if raster.sensor in SENSORS and SENSORS[raster.sensor].kind == kind else None
    sensor = image.sensor or guess or ("s1" if kind == "sar" else None)
    if sensor is None:
        raise UserError(
            f"{image.name}: what made it is not known; tell its 'sensor' ({', '.join(SENSORS)}) or a 'stretch'."
        )
    return calibrate(raster, sensor, **dict(image.told))


def _is_picture(raster: Raster, image: Image) -> bool:
    """Whether a raster is shown as it is. The brightness of a sensor that has no physical unit is not: a model gets it
    in the range of its own bands."""
    return raster.unit == "display" and (image.array is not None or _finished(image, raster.dtype))


def _finished(image: Image, dtype: str) -> bool:
    return image.stretch is not None or (dtype == "uint8" and not _measured(image))


def _measured(image: Image) -> bool:
    """Whether the record tells that the numbers are a measurement, though they may be 8-bit: of SAR that takes the
    scale, since 8-bit SAR of any sensor is a rendering else."""
    entry = SENSORS.get(image.sensor or "")
    return bool(image.told) or (entry is not None and entry.kind == "optical" and not entry.is_8bit)


def _without(raster: Raster, image: Image) -> Raster:
    """The raster less the pixels that hold the number told to be no data."""
    if image.nodata is None:
        return raster
    valid = raster.valid & (raster.data != np.float32(image.nodata)).all(0)
    if not valid.any():
        raise UserError(f"{image.name} has no valid pixel: all are nodata ({image.nodata:g}, as told).")
    return replace(raster, valid=valid, nodata=image.nodata)


def _chosen(image: Image, kind: str, wanted: tuple[str, ...]) -> dict[str, Path]:
    """Files of the bands that are used: those wanted, or all three of a picture."""
    names = _names([name for name, _ in image.files], image.sensor)
    files = dict(zip(names, (path for _, path in image.files), strict=True))
    if image.stretch is not None or not set(names) & set(wanted):
        first = peek_sensor(image.files[0][1])[1]
        if _finished(image, first):
            return {names[i]: files[names[i]] for i in _shown(image, names)}
    return {names[i]: files[names[i]] for i in choose(wanted, names, image.name, kind)[0]}


def _names(told: Sequence[str], sensor: str | None) -> tuple[str, ...]:
    """Band names as told in the field's own spelling ("B4" and Sentinel-2's "red" are B04)."""
    aliases = SENSORS[sensor].aliases if sensor else {}
    return tuple(aliases.get(name.lower()) or canonical(name) or name for name in told)


def _shown(image: Image, names: Sequence[str]) -> list[int]:
    """Indices of the channels that a picture shows: all of up to three, or the colours among more."""
    if 1 <= len(names) <= 3:
        return list(range(len(names)))
    if {*COLOURS} <= {*names}:
        return [list(names).index(name) for name in COLOURS]
    raise UserError(
        f"{image.name}: a picture shows one to three channels, not {len(names)}; name those in 'bands' (R, G and B are "
        "shown of more)."
    )


def _count(image: Image, count: int) -> None:
    if image.bands is not None and len(image.bands) != count:
        raise UserError(f"{image.name} has {count} channels but 'bands' names {len(image.bands)}; null skips one.")
