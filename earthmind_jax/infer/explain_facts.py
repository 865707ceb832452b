"""How an explained answer was made: from which checkpoint and files, where on Earth, with which versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from earthmind_jax.data.read import Images
from earthmind_jax.infer.overview import sentence

if TYPE_CHECKING:
    from earthmind_jax.infer.predictor import EarthMind


def facts_of(model: EarthMind, images: Images | None, command: str, optical: Any, sar: Any) -> dict[str, str]:
    """Checkpoint, fusion, files, place on Earth and versions, by name."""

    def files(given: Any) -> str:
        several = given if isinstance(given, list | tuple) else [given]
        return ", ".join(str(g) if isinstance(g, str | Path) else f"an array {np.shape(g)}" for g in several)

    facts = {"checkpoint": model.path or model.name}
    facts |= {f"checkpoint {name}": str(value) for name, value in model.source.items()}
    fusion = model.config.fusion
    facts["fusion"] = f"{fusion.mode}, masks from {fusion.grounding}"
    facts |= {name: files(given) for name, given in (("optical", optical), ("sar", sar)) if given is not None}
    if images is not None:
        height, width = (round(n * scale) for n, scale in zip(images.shape, images.scale, strict=True))
        facts["size"] = f"{width} x {height} pixels"
        facts |= {"seen": sentence(images)} if images.reduced else {}
        facts |= _place(images)
    if command:
        facts["command"] = command
    names = ("earthmind-jax", "jax", "numpy", "rasterio")
    facts["versions"] = ", ".join([*(f"{name} {_version(name)}" for name in names), f"GDAL {_gdal()}"])
    facts["device"] = jax.devices()[0].device_kind
    return facts


def _place(images: Images) -> dict[str, str]:
    if images.crs is None or images.transform is None:
        return {"CRS": "none: the image has no georeference"}
    from earthmind_jax.geo.grid import Grid

    grid = Grid(images.transform, images.crs, *images.shape)
    x, y = grid.outline()
    return {
        "CRS": images.crs.to_string(),
        "position": f"x {x.min():.10g} to {x.max():.10g}, y {y.min():.10g} to {y.max():.10g}",
        "on Earth": grid.extent(),
        "pixel": f"{grid.gsd:.2f} m",
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that is not installed
        from earthmind_jax import __version__

        return __version__


def _gdal() -> str:
    import rasterio

    return rasterio.__gdal_version__
