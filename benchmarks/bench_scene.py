"""A simulated scene of any size through ``earthmind segment``: speed, memory, and what is seen of the windows.

    python benchmarks/bench_scene.py demo/checkpoint [--side 10980] [--targets water] [--window 64] [--overlap 0.5]
        [--dates 1] [--check 1024] [--seed 0] [--folder DIR]

Writes a Sentinel-2 scene (12 bands, uint16) and its SAR image, in another coordinate system and with larger pixels, as
a mosaic of simulated tiles; segments it, and prints one JSON line: square kilometres and windows a second, seconds of
each part, peak memory, and how the probability jumps where windows begin and end and elsewhere. ``--check`` segments a
part of that side again with windows that overlap more, and with twice the window, and tells on how many pixels away
from edges the masks agree, for several distances from them. ``--dates`` makes such a pair for each of so many dates.
With ``--folder`` the files are kept there, and a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from earthmind_jax.data.simulate import make_scene
from earthmind_jax.data.simulate.materials import BANDS, POLARISATIONS
from earthmind_jax.data.simulate.optical import to_digital_numbers
from earthmind_jax.data.simulate.radar import speckle
from earthmind_jax.geo.grid import project, to_map, to_pixel

TILE, GSD, SAR_PIXEL, NODES = 512, 10.0, 1.3, 9
CRS, SAR_CRS = "EPSG:32632", "EPSG:4326"
EDGES = (4, 8, 16)  # pixels; what lies nearer to the edge of a mask may differ


class Mosaic:
    """Simulated tiles, laid out at random, mirrored and turned."""

    def __init__(self, side: int, count: int, seed: int) -> None:
        self.rng, self.side = np.random.default_rng(seed), side
        across = -(-side // TILE)
        self.which = self.rng.integers(count, size=(across, across))
        self.turn = self.rng.integers(8, size=(across, across))
        scenes = [make_scene(seed * 1000 + i, size=TILE, gsd=GSD, nodata=0.0) for i in range(count)]
        self.optical = [to_digital_numbers(s.optical, offset=1000) for s in scenes]
        self.power = [s.sar_mean for s in scenes]

    def tile(self, tiles: list[np.ndarray], row: int, column: int) -> np.ndarray:
        """[C T T] of the tile in this place."""
        turn, made = int(self.turn[row, column]), tiles[self.which[row, column]]
        made = made[:, ::-1] if turn & 1 else made
        made = made[:, :, ::-1] if turn & 2 else made
        return made.transpose(0, 2, 1) if turn & 4 else made


def _profile(height: int, width: int, count: int, dtype: str, crs: str, transform: Any, nodata: float) -> dict:
    return {
        "driver": "GTiff", "height": height, "width": width, "count": count, "dtype": dtype, "crs": crs,
        "transform": transform, "nodata": nodata, "tiled": True, "blockxsize": TILE, "blockysize": TILE,
        "interleave": "band", "compress": "DEFLATE", "predictor": 2 if dtype == "uint16" else 3, "zlevel": 1,
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip


def make_pair(folder: Path, side: int, *, tiles: int = 24, seed: int = 0, date: int = 1) -> None:
    """The files of a date in ``folder``; the optical swath ends in the scene, and so does the SAR image."""
    mosaic = Mosaic(side, tiles, seed)
    transform = from_origin(399960.0, 5300040.0, GSD, GSD)
    optical, sar = (folder / f"{name}_{date}.tif" for name in ("s2", "s1"))
    with rasterio.open(optical, "w", **_profile(side, side, 12, "uint16", CRS, transform, 0)) as file:
        file.descriptions = BANDS
        file.update_tags(PROCESSING_BASELINE="05.11", BOA_ADD_OFFSET=-1000, QUANTIFICATION_VALUE=10000)
        for row in range(0, side, TILE):
            for column in range(0, side, TILE):
                height, width = min(TILE, side - row), min(TILE, side - column)
                block = mosaic.tile(mosaic.optical, row // TILE, column // TILE)[:, :height, :width]
                y, x = np.mgrid[row : row + height, column : column + width]
                block = np.where(x + 0.2 * y < 0.15 * side, np.uint16(0), block)
                file.write(block, window=Window(column, row, width, height))
    _make_sar(sar, mosaic, side, transform)


def _make_sar(path: Path, mosaic: Mosaic, side: int, transform: Any) -> None:
    west, south, east, north = transform_bounds(
        CRS, SAR_CRS, transform.c, transform.f - side * GSD, transform.c + side * GSD, transform.f
    )
    pixel = SAR_PIXEL * (north - south) / side
    height, width = int((north - south) / pixel), int(0.95 * (east - west) / pixel)
    place = from_origin(west, north, pixel, pixel)
    noise = speckle(mosaic.rng, (2 * TILE, 2 * TILE))
    with rasterio.open(path, "w", **_profile(height, width, 2, "float32", SAR_CRS, place, 0)) as file:
        file.descriptions = POLARISATIONS
        file.update_tags(SCALE="linear")
        for row in range(0, height, TILE):
            for column in range(0, width, TILE):
                block = Window(column, row, min(TILE, width - column), min(TILE, height - row))
                down, right = mosaic.rng.integers(TILE, size=2)
                power = _power(mosaic, block, place, transform)
                file.write(power * noise[:, down : down + block.height, right : right + block.width], window=block)


def _power(mosaic: Mosaic, block: Window, place: Any, transform: Any) -> np.ndarray:
    """Speckle-free power [2 h w] on a block of the SAR grid: the nearest pixel of the mosaic, 0 outside of it."""
    rows, columns = (np.linspace(0, size, NODES) for size in (block.height, block.width))
    nodes = np.meshgrid(columns + block.col_off, rows + block.row_off)
    x, y = project(rasterio.CRS.from_string(SAR_CRS), rasterio.CRS.from_string(CRS),
                   *(v.ravel() for v in to_map(place, *nodes)))  # fmt: skip
    there = []
    for values in to_pixel(transform, x, y):
        values = values.reshape(NODES, NODES)
        along = np.stack([np.interp(np.arange(block.width) + 0.5, columns, line) for line in values])
        fine = [np.interp(np.arange(block.height) + 0.5, rows, line) for line in along.T]
        there.append(np.floor(np.stack(fine, 1)).astype(int))
    column, row = there
    out = np.zeros((2, block.height, block.width), np.float32)
    inside = (column >= 0) & (row >= 0) & (column < mosaic.side) & (row < mosaic.side)
    for i in np.unique(row[inside] // TILE):
        for j in np.unique(column[inside] // TILE):
            here = inside & (row // TILE == i) & (column // TILE == j)
            out[:, here] = mosaic.tile(mosaic.power, i, j)[:, row[here] % TILE, column[here] % TILE]
    return out


def seams(path: Path, tops: tuple[int, ...], lefts: tuple[int, ...], side: int) -> dict[str, float]:
    """Mean step of the probability (0..1) from a pixel to the next, across the borders of windows and elsewhere."""
    total, count = np.zeros(2), np.zeros(2)
    with rasterio.open(path) as dataset:
        borders = [np.zeros(n, bool) for n in dataset.shape]
        for edge, firsts in zip(borders, (tops, lefts), strict=True):
            places = {p for first in firsts for p in (first, first + side)}
            edge[[p for p in places if 0 < p < len(edge)]] = True
        for top in range(0, dataset.height, TILE):
            above = min(top, 1)
            rows = Window(0, top - above, dataset.width, min(TILE, dataset.height - top) + above)
            values = dataset.read(1, window=rows).astype(np.int16)
            known = values != 255
            for axis, edge in ((0, borders[0][top - above + 1 : top - above + len(values)]), (1, borders[1][1:])):
                step = np.abs(np.diff(values, axis=axis)) / 100
                both = known[1:] & known[:-1] if axis == 0 else known[:, 1:] & known[:, :-1]
                for kind in (0, 1):
                    chosen = (edge == kind)[:, None] if axis == 0 else (edge == kind)[None]
                    total[kind] += step[both & chosen].sum()
                    count[kind] += (both & chosen).sum()
    inner, border = total / np.maximum(count, 1)
    return {"inside windows": round(float(inner), 5), "across borders": round(float(border), 5)}


def agreement(first: Path, second: Path, edge: int) -> float:
    """Share of the pixels on which two masks agree, of those with data and not within ``edge`` of the edge of one."""
    masks = []
    for path in (first, second):
        with rasterio.open(path) as dataset:
            masks.append(dataset.read(1))
    away = masks[0] != 255
    for mask in masks:
        away &= ~_near_edge(mask, edge)
    return float((masks[0] == masks[1])[away].mean()) if away.any() else float("nan")


def _near_edge(mask: np.ndarray, edge: int) -> np.ndarray:
    near = np.zeros(mask.shape, bool)
    near[1:] |= mask[1:] != mask[:-1]
    near[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    for axis in (0, 1):
        wide = near.copy()
        for shift in range(-edge, edge + 1):
            wide |= np.roll(near, shift, axis)
        near = wide
    return near


def check(model: Any, folder: Path, side: int, options: argparse.Namespace) -> dict[str, float]:
    """Agreement of masks of the same ground, drawn with other windows."""
    from earthmind_jax.infer.scene import segment_scene, window_side

    own = window_side(model, options.window)
    part = folder / "part"
    part.mkdir(exist_ok=True)
    if not (part / "s1_1.tif").exists():
        make_pair(part, side, tiles=4, seed=options.seed + 1)
    more = (1 + options.overlap) / 2
    ways = {"as told": {}, f"overlap {more:g}": {"overlap": more}, "twice the window": {"window": 2 * own}}
    for name, way in ways.items():
        told = {"window": own, "overlap": options.overlap} | way
        segment_scene(
            model, options.targets, optical=part / "s2_1.tif", sar=part / "s1_1.tif",
            out=part / name.replace(" ", "_"), **told,
        )  # fmt: skip
    found = {}
    for i, target in enumerate(options.targets, 1):
        masks = [part / name.replace(" ", "_") / f"mask_{i}.tif" for name in ways]
        for name, mask in zip(list(ways)[1:], masks[1:], strict=True):
            for edge in EDGES:
                found[f"{target}, {name}, {edge} px from edges"] = round(agreement(masks[0], mask, edge), 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--side", type=int, default=10980)
    parser.add_argument("--targets", nargs="+", default=["water"])
    parser.add_argument("--window", type=int)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--dates", type=int, default=1)
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the simulated scenes")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--make", action="store_true", help="write the files alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.make:
            for date in range(options.dates):
                make_pair(folder, options.side, seed=options.seed + date, date=date + 1)
            (folder / "made").touch()
            return
        if not (folder / "made").exists():  # in a process of its own, so that its memory does not count
            told = {"--folder": folder, "--side": options.side, "--seed": options.seed, "--dates": options.dates}
            words = [str(word) for option in told.items() for word in option]
            subprocess.run([sys.executable, __file__, str(options.checkpoint), "--make", *words], check=True)
        print(json.dumps(measure(folder, options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    from earthmind_jax.cli_scene import progress
    from earthmind_jax.infer.predictor import EarthMind
    from earthmind_jax.infer.scene import segment_scene, window_side
    from earthmind_jax.infer.windows import Lattice

    model = EarthMind.load(options.checkpoint)
    # Of the system, the libraries and the model, before any scene.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    dated = {n: [folder / f"{n}_{i + 1}.tif" for i in range(options.dates)] for n in ("s2", "s1")}
    result = segment_scene(
        model, options.targets, optical=dated["s2"], sar=dated["s1"], out=folder / "out",
        window=options.window, overlap=options.overlap, report=progress(),
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    scene, seconds = result.answer["scene"], result.seconds
    area = scene["pixels"][0] * scene["pixels"][1] * GSD**2 / 1e6
    lattice = Lattice.of(tuple(scene["pixels"]), window_side(model, options.window), options.overlap, 1)
    rows = seconds.get("rows", 0.0)
    return {
        "side": scene["pixels"],
        "targets": options.targets,
        "dates": options.dates,
        "cores": len(os.sched_getaffinity(0)),
        "windows": scene["windows"],
        "empty windows": scene["empty windows"],
        "km2/s": round(area / rows, 3) if rows else None,
        "windows/s": round(scene["windows"] / rows, 2) if rows else None,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "GiB before": round(before, 2),
        "GiB at most": round(peak, 2),
        "steps of the probability": {
            path.stem: seams(path.with_stem(f"{path.stem}_probability"), lattice.rows, lattice.columns, lattice.side)
            for path in result.masks
        },
        "agreement": check(model, folder, options.check, options) if options.check else {},
    }


if __name__ == "__main__":
    main()
