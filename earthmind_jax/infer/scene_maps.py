"""The finished rows of a large scene as maps: probability, mask, polygons, and the account of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from affine import Affine

from earthmind_jax import __version__
from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.geo.geopackage import geopackage_writer
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.stac import stac_item, write_stac_item
from earthmind_jax.geo.stream import trace_file
from earthmind_jax.geo.vector import geojson_writer
from earthmind_jax.geo.write import BLOCK, cog_writer, remove_unfinished
from earthmind_jax.infer.result import ANSWER, Answer, Mask, mask_name
from earthmind_jax.infer.scene_read import SceneReader
from earthmind_jax.infer.scene_store import Canvas, Store
from earthmind_jax.infer.windows import Lattice

NODATA = 255
HALF = 50  # percent; a mask is what lies above


@dataclass(frozen=True, eq=False)
class SceneResult:
    """What a run over a scene has written.

    Attributes:
      out: the directory.
      answer: the contents of ``answer.json``: of every target, and of several dates on each, its pixels, share of the
        pixels with data, area and score (mean probability inside the mask), the mean weights of the sensors, what was
        assumed about the files, and the files written.
      seconds: what the parts of this start took; empty where everything was finished before.
    """

    out: Path
    answer: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        return [self.out / name for name in self.answer["files"]]

    @property
    def masks(self) -> list[Path]:
        """The mask of every target on every date, as ``answer`` lists them."""
        numbers = {target: number for number, target in enumerate(self.answer["targets"], 1)}
        names = [mask_name(numbers[mask["target"]], mask.get("date", "")) for mask in self.answer["masks"]]
        return [self.out / f"{name}.tif" for name in names]

    @property
    def first(self) -> dict[str, Any]:
        """What the answer says of the first target's mask, of several dates for each."""
        masks = [mask for mask in self.answer["masks"] if mask["target"] == self.answer["targets"][0]]
        return {mask["date"]: mask for mask in masks} if len(masks) > 1 else masks[0]


@dataclass(frozen=True)
class Drawn:
    """The rasters of one target on one date, and what to say about them."""

    mask: Path
    probability: Path
    target: str
    date: str
    question: str
    model: str

    @property
    def about(self) -> dict[str, str]:
        return {"target": self.target} | ({"date": self.date} if self.date else {})


def write_maps(
    out: Path,
    work: dict[str, Any],
    store: Store,
    reader: SceneReader,
    lattice: Lattice,
    model: str,
    names: Sequence[str],
    questions: Sequence[str],
    seconds: dict[str, float],
    weights: bool,
) -> SceneResult:
    """Everything that is drawn, from the rows on disk; ``answer.json`` comes last and says that the run is finished."""
    started, grid, done = perf_counter(), reader.grid, store.done
    masks: list[dict[str, Any]] = []
    drawn: list[Drawn] = []
    wanted = zip(names, questions, done.weights, done.tokens, strict=True)
    for number, (name, question, weight, tokens) in enumerate(wanted, 1):
        about = {"prompt": question, "model": model}
        for date, valid in zip(reader.names, done.valid, strict=True):
            canvas = store.percent[len(drawn)]
            pixels, total = _counted(canvas)
            score = total / pixels / 100 if pixels else 0.0
            tags = about | {"score": round(score, 4)}
            stem = mask_name(number, date)
            made = Drawn(out / f"{stem}.tif", out / f"{stem}_probability.tif", name, date, question, model)
            drawn.append(made)
            _write(made.probability, canvas, grid.transform, grid, tags, "probability")
            _write(made.mask, canvas, grid.transform, grid, tags, "mask", cut=HALF)
            counted = {"pixels": pixels, "share": pixels / max(1, valid), "score": score}
            masks.append(made.about | counted | {"fusion": _shares(weight, tokens)})
        if weights:
            cells = grid.transform @ Affine.scale(*lattice.cell[::-1])
            _write(out / f"mask_{number}_sar_weight.tif", store.weight[number - 1], cells, grid, about, "weight of SAR")
    files = [path.name for made in drawn for path in (made.mask, made.probability)]
    files += [f"mask_{number}_sar_weight.tif" for number in range(1, len(names) + 1) if weights]
    files += [path.name for path in write_vectors(out, drawn, grid)]
    files.append(_write_panel(out, store, names, masks).name)
    size = grid.height * grid.width
    dates = {date: valid / size for date, valid in zip(reader.names, done.valid, strict=True) if date}
    answer = {
        "targets": list(names),
        "masks": masks,
        "scene": {
            "pixels": list(grid.shape),
            "crs": grid.crs.to_string() if grid.crs else None,
            "valid": done.seen[2] / size,
            **({"dates": dates} if dates else {}),
            "overlap": done.seen[1] / max(1, done.seen[0]) if len(reader.sources) == 2 else None,
            "windows": done.windows,
            "empty windows": done.empty,
        },
        "notes": list(done.notes),
        "model": model,
        "files": [*files, ANSWER],
        "run": json.loads(json.dumps(work)),
    }
    answer["files"].insert(-1, write_item(out, reader, files, answer, questions).name)
    with writing(out):
        for name in answer["files"]:
            remove_unfinished(out / name)
        write_text(out / ANSWER, json.dumps(answer, indent=2, ensure_ascii=False))
    return SceneResult(out, answer, seconds | {"maps": perf_counter() - started})


def write_vectors(out: Path, drawn: Sequence[Drawn], grid: Grid) -> list[Path]:
    """The polygons of the finished masks: GeoJSON for each (WGS84), and one GeoPackage in the scene's CRS."""
    written = []
    assert grid.crs is not None
    with geopackage_writer(out / "masks.gpkg", grid.crs) as add_feature:
        for number, one in enumerate(drawn, 1):
            path = one.mask.with_suffix(".geojson")
            about = {"mask": number} | one.about
            traced = trace_file(
                one.mask, probability=one.probability, prompt=one.question, model=one.model, properties=about
            )
            with geojson_writer(path) as add:
                for part in traced:
                    add(part.geojson()["features"])
                    add_feature(part.features())
            written.append(path)
    return [*written, out / "masks.gpkg"]


def write_item(
    out: Path, reader: SceneReader, files: Sequence[str], answer: dict[str, Any], questions: Sequence[str]
) -> Path:
    """The STAC Item of the results, with what their files were made of."""
    rasters = {Path(name).stem: out / name for name in files if not name.endswith((".png", ".json", ".geojson"))}
    polygons = {f"{Path(name).stem}_polygons": out / name for name in files if name.endswith(".geojson")}
    item = stac_item(
        out.resolve().name or "scene",
        reader.grid,
        rasters | polygons,
        out,
        software={"earthmind_jax": __version__},
        inputs=reader.inputs,
        notes=answer["notes"],
        properties={
            "earthmind:questions": list(questions),
            "earthmind:targets": answer["targets"],
            "earthmind:model": answer["model"],
        },
    )
    write_stac_item(out / "item.json", item)
    return out / "item.json"


def _bands(canvas: Canvas) -> Iterator[slice]:
    for top in range(0, canvas.shape[0], BLOCK):
        yield slice(top, min(top + BLOCK, canvas.shape[0]))


def _counted(canvas: Canvas) -> tuple[int, int]:
    """Pixels of the mask, and the sum of their percents."""
    pixels = total = 0
    for rows in _bands(canvas):
        values = canvas.read(rows)
        inside = values[(values > HALF) & (values != NODATA)]
        pixels, total = pixels + inside.size, total + int(inside.sum(dtype=np.int64))
    return pixels, total


def _write(
    path: Path, canvas: Canvas, transform: Affine, grid: Grid, tags: dict[str, Any], band: str, cut: int | None = None
) -> None:
    """A canvas as a Cloud-Optimized GeoTIFF; with ``cut``, as the mask of the values above it."""
    # A share is stored in hundredths, and overviews of it are averages.
    share = {"scale": 0.01, "average": True} if cut is None else {}
    with cog_writer(
        path, canvas.shape, transform, grid.crs, dtype="uint8", nodata=NODATA, tags=tags, band_name=band, **share
    ) as write:
        for rows in _bands(canvas):
            values = canvas.read(rows)
            if cut is not None:
                values = np.where(values == NODATA, NODATA, values > cut).astype(np.uint8)
            write(values, rows.start, 0)


def _write_panel(out: Path, store: Store, names: Sequence[str], masks: Sequence[dict[str, Any]]) -> Path:
    """One picture of the scene, each mask over it, and the mean weight of SAR, decimated."""
    from earthmind_jax.infer.panel import write_panel

    step, drawn = store.step, []
    for canvas, mask in zip(store.percent, masks, strict=True):
        kept = [canvas.read(rows)[-rows.start % step :: step, ::step] for rows in _bands(canvas)]
        percent = np.concatenate(kept)
        drawn.append(Mask(percent / np.float32(100), percent != NODATA, None, None, mask.get("date", "")))
    weights = np.stack([canvas.read() for canvas in store.weight])
    sar = weights.mean(0, dtype=np.float32) / 100
    fusion = np.stack([1 - sar, sar], -1) * (weights[0] != NODATA)[..., None]
    pictures = {name: canvas.read().reshape(canvas.shape[0], -1, 3) for name, canvas in store.picture.items()}
    said = ", ".join(f"{mask['share']:.1%}" for mask in masks)
    return write_panel(Answer(", ".join(names), said, tuple(drawn), fusion, pictures), out / "panel.png")


def _shares(weight: float, tokens: int) -> dict[str, float]:
    """Mean weight of each sensor over the tokens that have data."""
    if not tokens:
        return {}
    sar = weight / tokens
    return {"optical": 1 - sar, "sar": sar}
