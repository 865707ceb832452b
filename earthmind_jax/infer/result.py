"""What comes back: words, masks on the image's own grid, and where optical counted and where SAR."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from earthmind_jax.checkpoint import write_text, writing
from earthmind_jax.errors import UserError
from earthmind_jax.geo.grid import require_map
from earthmind_jax.geo.marks import Mark
from earthmind_jax.geo.outline import Polygon, box_of, moved, polygons_of

ANSWER = "answer.json"
OURS = re.compile(r"masks\.gpkg|item\.json|panel\.png|mask_[\w-]+\.(tif|geojson|png)")  # what an answer is made of


@dataclass(frozen=True, eq=False)
class Mask:
    """One mask on the reference image's grid.

    Attributes:
      probability: float32 [H W].
      valid: bool [H W], false where neither sensor has data.
      transform, crs: of the reference image; ``crs`` is None for a plain picture.
      date: of several dates the one it is drawn on; else empty.
      score: mean probability inside the mask (0 where it is empty).
      name: what was pointed at or asked for, where an answer has several masks.
      offset: (row, column) of its first pixel in the scene, where a window of it was asked about.
      scale: pixels of the scene in one of its own, down and across, where the scene was seen reduced.
    """

    probability: np.ndarray
    valid: np.ndarray
    transform: Any
    crs: Any
    date: str = ""
    name: str = ""
    offset: tuple[int, int] = (0, 0)
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def array(self) -> np.ndarray:
        """bool [H W], probability above one half."""
        return (self.probability > 0.5) & self.valid

    @property
    def score(self) -> float:
        inside = self.array
        return float(self.probability[inside].mean()) if inside.any() else 0.0

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """x0, y0, x1, y1 (columns and rows, outer edges) in pixels of the scene; None where the mask is empty."""
        found = box_of(self.array)
        if found is None:
            return None
        (x0, y0), (x1, y1) = (self._in_scene @ corner for corner in (found[:2], found[2:]))
        return x0, y0, x1, y1

    @property
    def polygons(self) -> list[Polygon]:
        """The outlines of its largest parts (100 at most) along pixel edges, (column, row) in pixels of the scene."""
        return moved(polygons_of(self.array), self._in_scene)

    @property
    def _in_scene(self) -> Affine:
        (row, column), (down, across) = self.offset, self.scale
        return Affine.translation(column, row) @ Affine.scale(across, down)

    def to_dict(self) -> dict[str, Any]:
        """Area, score and outline as plain JSON values; of a georeferenced image in its own CRS, too (``map``)."""
        inside = self.array
        values: dict[str, Any] = {key: text for key in ("name", "date") if (text := getattr(self, key))}
        values |= {"pixels": int(inside.sum()), "share": float(inside.mean()), "score": self.score}
        values |= {"box": self.box, "polygons": self.polygons}
        values |= {"scale": list(self.scale)} if self.scale != (1.0, 1.0) else {}
        if self.crs is not None and self.transform is not None:
            outline = moved(polygons_of(inside), self.transform)
            corners = np.array([position for rings in outline for ring in rings for position in ring]).reshape(-1, 2)
            box = [*corners.min(0).tolist(), *corners.max(0).tolist()] if len(corners) else None
            values["map"] = {"crs": CRS.from_user_input(self.crs).to_string(), "box": box, "polygons": outline}
        return values


@dataclass(frozen=True, eq=False)
class Answer:
    """Text, masks and the reason.

    Attributes:
      text: the model's words, ``[SEG]`` tokens included.
      masks: one for each ``[SEG]``; of several dates one for each date, ``[SEG]`` after ``[SEG]``.
      fusion: weights (optical, SAR), float32 [h w 2] on a grid laid over the image; None with text alone.
      pictures: what the model saw of each sensor, uint8 [H W 3], for display; of several dates under ``optical`` the
        first, and each under ``optical`` and its date.
      notes: what was assumed about the files.
      sources: the file of each sensor, where it was one.
      marks: what was pointed at, on the pixels of the masks.
      offset: (row, column) of the first of these pixels in the scene.
    """

    question: str
    text: str
    masks: tuple[Mask, ...] = ()
    fusion: np.ndarray | None = None
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    offset: tuple[int, int] = (0, 0)

    @property
    def sensor_shares(self) -> dict[str, float]:
        """Mean weight of each sensor over the places that have data."""
        if self.fusion is None:
            return {}
        used = self.fusion[self.fusion.sum(-1) > 0]
        shares = used.mean(0) if len(used) else np.zeros(2)
        return {"optical": float(shares[0]), "sar": float(shares[1])}

    @property
    def names(self) -> tuple[str, ...]:
        """What the files of each mask are called: ``mask_1``, of several dates ``mask_1_2024-05-01``."""
        seen: dict[str, int] = {}
        for mask in self.masks:
            seen[mask.date] = 0
        made = []
        for mask in self.masks:
            seen[mask.date] += 1
            made.append(mask_name(seen[mask.date], mask.date))
        return tuple(made)

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain JSON values (masks as area, score, box and polygons)."""
        return {
            "question": self.question,
            "answer": self.text,
            "masks": [mask.to_dict() for mask in self.masks],
            "fusion": self.sensor_shares,
            "notes": list(self.notes),
            "model": self.model,
        }

    def save(self, directory: str | Path, *, maps: bool = True) -> list[Path]:
        """Write ``answer.json``, ``panel.png`` and the maps, all of them or none. Of an answer that was saved here
        before nothing is left: masks that this one lacks are removed.

        Of each mask ``mask_1.tif`` and ``mask_1_probability.tif`` (Cloud-Optimized GeoTIFF) and ``mask_1.geojson``
        (WGS84); of all together ``masks.gpkg`` (polygons in the image's CRS) and ``item.json`` (a STAC Item).

        Args:
          maps: write georeferenced masks; with False, plain PNG masks.

        Raises:
          UserError: maps are asked for and the image has no georeference.
          WorkError: the files could not be written.
        """
        from earthmind_jax.geo.write import written_together

        directory = Path(directory)
        files = " and ".join(self.sources.values()) or "The image"
        if maps and any(m.crs is None for m in self.masks):
            raise UserError(
                f"{files}: there is no georeference, so a mask of it cannot become a map; ask for a plain picture "
                "instead (--picture, save(maps=False)), or give a GeoTIFF that has one."
            )
        for mask in self.masks if maps else ():
            require_map(mask.transform, mask.crs, files, "a map")
        with writing(directory), written_together(directory) as place:
            written = []
            if maps and self.masks:
                from earthmind_jax.infer.maps import write_maps

                written += write_maps(self, place, directory)
            elif self.masks:
                written += [
                    _write_png(place / f"{n}.png", m.array) for n, m in zip(self.names, self.masks, strict=True)
                ]
            if self.pictures:
                from earthmind_jax.infer.panel import write_panel

                written.append(write_panel(self, place / "panel.png"))
            names = [*(path.name for path in written), ANSWER]
            former = _files_of(directory / ANSWER)
            write_text(place / ANSWER, json.dumps(self.to_dict() | {"files": names}, indent=2, ensure_ascii=False))
        with writing(directory):
            for name in former - set(names):
                (directory / name).unlink(missing_ok=True)
        return [directory / name for name in names]


def _files_of(answer: Path) -> set[str]:
    """What an answer in this folder wrote beside itself, by its own account; of that only what answers write."""
    try:
        told = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    files = told.get("files", []) if isinstance(told, dict) else []
    return {name for name in files if isinstance(name, str) and OURS.fullmatch(name)}


def mask_name(number: int, date: str = "") -> str:
    """What the files of the ``number``-th mask (of a date) are called."""
    return f"mask_{number}_{date}" if date else f"mask_{number}"


def _write_png(path: Path, mask: np.ndarray) -> Path:
    from PIL import Image

    from earthmind_jax.geo.write import written_beside

    with written_beside(path) as beside:
        Image.fromarray(mask.astype(np.uint8) * 255).save(beside, format="PNG")
    return path
