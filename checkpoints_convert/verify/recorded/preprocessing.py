"""``f_`` dynamic tiling and pixel values."""

from __future__ import annotations

import re

import numpy as np

from checkpoints_convert.verify.recorded.case import Case, Report, channels_second
from earthmind_jax.data import tiles


def preprocessing(case: Case, report: Report) -> None:
    """Chosen grids, tiles and thumbnails byte for byte, and normalised values."""
    tolerance = case.tolerance(1e-5, "floats {}")
    for name in case.outputs:
        if found := re.fullmatch(r"min(\d+)_max(\d+)_size(\d+)\.(\w+)", name):
            *limits, what = found.groups()
            report.exact(name, _grids(case.inputs["wh"], *map(int, limits), what))
    for name, image in case.inputs.items():
        if name.startswith("image."):
            _picture(case, report, f"pixels.{name.removeprefix('image.')}", image, tolerance)


def _grids(wh: np.ndarray, least: int, most: int, size: int, what: str) -> np.ndarray:
    if what == "target_ratio_order":
        return np.array(tiles.candidate_grids(least, most))
    grids = [tiles.closest_grid((int(w), int(h)), least, most, size) for w, h in wh]
    return {
        "grid_cols_rows": np.array(grids),
        "n_tiles": np.array([tiles.tile_count(grid, False) for grid in grids]),
        "n_tiles_thumbnail": np.array([tiles.tile_count(grid, True) for grid in grids]),
    }[what]


def _picture(case: Case, report: Report, prefix: str, image: np.ndarray, tolerance: float) -> None:
    options = case.config["pixels"]
    ours = tiles.dynamic_tiles(
        image, options["image_size"], options["min_num"], options["max_num"], options["use_thumbnail"]
    )
    report.exact(f"{prefix}.tiles_uint8", ours)
    values = tiles.normalise(ours)
    recorded = len(case.outputs[f"{prefix}.pixel_values"])
    # All tiles, or the first and the last.
    values = values if recorded == len(values) else values[[0, -1]]
    report.close(f"{prefix}.pixel_values", channels_second(values), tolerance)
    side = case.config["direct_resize"]
    for name in case.outputs:
        what = name.removeprefix(f"{prefix}.")
        if what == f"direct_resize_{side}_uint8":
            report.exact(name, tiles.direct_resize(image, side))
        elif what in ("sam_preprocess_image", "sam_preprocess_image_training"):
            mirror = what == "sam_preprocess_image"
            ground = tiles.sam_preprocess_image(tiles.direct_resize(image, side), mirror_bf16=mirror)
            report.close(name, np.moveaxis(ground, -1, 0), tolerance)
