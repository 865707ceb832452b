"""A simulated scene as files (GeoTIFFs as products come) and as a sample of arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthmind_jax.config import one_of
from earthmind_jax.data.masks import encode_rle
from earthmind_jax.data.records import Record, RecordTurn, Sample, Turn, record_values
from earthmind_jax.data.simulate.materials import BANDS, CLASS_NAMES, POLARISATIONS
from earthmind_jax.data.simulate.optical import SCALE, to_digital_numbers
from earthmind_jax.data.simulate.questions import QA
from earthmind_jax.data.simulate.radar import MIN_POWER, speckle, to_db
from earthmind_jax.data.simulate.scene import Scene
from earthmind_jax.errors import UserError

SAR_SCALES = ("linear", "dB")
SAR_NODATA = {"linear": 0.0, "dB": -9999.0}


def to_sample(scene: Scene, questions: Sequence[QA], name: str) -> Sample:
    """The scene and its questions as the data pipeline's arrays; invalid pixels are 0."""
    return Sample(
        id=name,
        turns=tuple(Turn(qa.prompt, qa.answer, qa.mask, qa.region) for qa in questions),
        optical=dict(zip(BANDS, np.nan_to_num(scene.optical), strict=True)),
        sar=dict(zip(POLARISATIONS, np.nan_to_num(scene.sar_db), strict=True)),
        optical_valid=scene.optical_valid,
        sar_valid=scene.sar_valid,
    )


def write_scene(
    scene: Scene,
    directory: str | Path,
    name: str,
    *,
    questions: Sequence[QA] = (),
    offset: int = 1000,
    sar_scale: str = "linear",
    sar_crs: str = "EPSG:4326",
    sar_pixel: float = 1.3,
    records: str = "records.jsonl",
) -> dict[str, Any]:
    """Write ``{name}_s2.tif``, ``{name}_s1.tif`` and ``{name}_label.tif``, and append a line to the record file.

    The optical image is uint16 digital numbers in a UTM zone that follows from the name, nodata 0, with band names and
    the product's tags. The SAR image lies on a grid of its own, which covers the scene and a little more; its
    backscatter is resampled there as power, then gets its own speckle, as a sensor's does. Labels are uint8 ``Cover``.

    Args:
      questions: for the record line; none makes no line.
      offset: 1000 as since processing baseline 04.00, or 0 as before.
      sar_scale: ``linear`` (nodata 0) or ``dB`` (nodata -9999).
      sar_crs: any coordinate system of rasterio; ``same`` for that of the optical image.
      sar_pixel: pixel size relative to the optical one.
      records: file name of the record file in ``directory``.

    Returns:
      The values of the record line.

    Raises:
      UserError: for an unknown scale, or a directory that does not exist.
    """
    from rasterio.transform import from_origin

    from earthmind_jax.geo.write import write_geotiff

    one_of("SAR scale", sar_scale, SAR_SCALES)
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"The directory '{directory}' does not exist; create it first.")
    rng = np.random.default_rng(list(name.encode()))
    zone, north = int(rng.integers(1, 61)), bool(rng.random() < 0.6)
    crs = f"EPSG:{(32600 if north else 32700) + zone}"
    northing = float(rng.uniform(5e5, 6.5e6)) if north else float(rng.uniform(4e6, 9.5e6))
    transform = from_origin(round(float(rng.uniform(3e5, 7e5)), -1), round(northing, -1), scene.gsd, scene.gsd)
    baseline = "05.11" if offset else "02.14"
    numbers = to_digital_numbers(np.nan_to_num(scene.optical), scene.optical_valid, offset=offset)
    tags = {
        "PRODUCT_TYPE": "S2MSI2A", "PROCESSING_BASELINE": baseline, "QUANTIFICATION_VALUE": SCALE,
        "BOA_ADD_OFFSET": -offset, "SIMULATED": "true", "CLOUD_COVER": round(100 * float(scene.cloud.mean()), 1),
    }  # fmt: skip
    write_geotiff(directory / f"{name}_s2.tif", numbers, transform, crs, BANDS, tags, nodata=0)
    write_geotiff(
        directory / f"{name}_label.tif", scene.class_map, transform, crs, ("class",),
        {f"CLASS_{value}": text for value, text in enumerate(CLASS_NAMES)}, nodata=0,
    )  # fmt: skip
    power, sar_transform, sar_crs = _radar_grid(scene, transform, crs, crs if sar_crs == "same" else sar_crs, sar_pixel)
    seen = power[0] > 0
    power = np.maximum(power * speckle(rng, seen.shape, looks=scene.looks), 2 * MIN_POWER)
    values = np.where(seen, power if sar_scale == "linear" else to_db(power), np.float32(SAR_NODATA[sar_scale]))
    tags = {"PRODUCT_TYPE": "GRD", "SCALE": sar_scale, "CALIBRATION": "gamma0", "SIMULATED": "true"}
    write_geotiff(
        directory / f"{name}_s1.tif", values.astype(np.float32), sar_transform, sar_crs, POLARISATIONS, tags,
        nodata=SAR_NODATA[sar_scale],
    )  # fmt: skip
    turns = tuple(
        RecordTurn(
            qa.prompt,
            qa.answer,
            () if qa.mask is None else (encode_rle(qa.mask),),
            None if qa.region is None else encode_rle(qa.region),
        )
        for qa in questions
    )
    line = record_values(Record(name, turns, f"{name}_s2.tif", f"{name}_s1.tif"))
    if turns:
        with (directory / records).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return line


def _radar_grid(scene: Scene, transform: Any, crs: str, sar_crs: str, pixel: float) -> tuple[np.ndarray, Any, str]:
    """Speckle-free power float32 [2 h w] on a grid of ``sar_crs`` around the scene (0 outside), and its transform."""
    from rasterio.transform import Affine, array_bounds
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    height, width = scene.shape
    bounds = array_bounds(height, width, transform)
    target, columns, rows = calculate_default_transform(crs, sar_crs, width, height, *bounds)
    # a grid that is off the optical one by a fraction of a pixel, with a margin, and its own pixel size
    margin = 2.37
    target = Affine(
        target.a * pixel, 0.0, target.c - margin * target.a, 0.0, target.e * pixel, target.f - margin * target.e
    )
    shape = (int(np.ceil((rows + 2 * margin) / pixel)), int(np.ceil((columns + 2 * margin) / pixel)))
    power = np.where(scene.sar_valid, scene.sar_mean, np.float32(0))
    out = np.zeros((2, *shape), np.float32)
    reproject(
        power, out, src_transform=transform, src_crs=crs, src_nodata=0.0, dst_transform=target, dst_crs=sar_crs,
        dst_nodata=0.0, resampling=Resampling.average if pixel > 1.5 else Resampling.bilinear,
    )  # fmt: skip
    return out, target, sar_crs
