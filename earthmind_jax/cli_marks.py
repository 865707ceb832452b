"""The options of ``ask`` and ``segment`` that point at places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from earthmind_jax.errors import UserError


@dataclass(frozen=True)
class Places:
    """Places in the image, in pixels (column,row; the image's outer corner is 0,0) unless --prompt-crs says otherwise.
    They are region1, region2, ... in the order of these options. Write --point=-70.1,-33.4 where it is negative."""

    point: tuple[str, ...] = ()
    """x,y or x,y,label with label 1 (object, the default) or 0 (background, of the object before it); several clicks on
    one object as x,y;x,y. A point stands for the visual token that it lies in."""
    box: tuple[str, ...] = ()
    """x0,y0,x1,y1"""
    line: tuple[str, ...] = ()
    """A scribble x,y;x,y;... It stands for the visual tokens that it touches."""
    mask: tuple[Path, ...] = ()
    """Picture, .npy or GeoTIFF on the image's own pixels; nonzero is the object."""
    prompts: Path | None = None
    """GeoJSON (longitude, latitude, or its own "crs"), GeoPackage, FlatGeobuf or Shapefile. Properties: name (parts of
    one name are one object; {name} in the question), label (1 or 0), box (true: the polygon's bounds)."""
    prompt_crs: str | None = None
    """What points, boxes, lines and the file are in, e.g. EPSG:4326 (longitude,latitude) or EPSG:32633; "pixels" for a
    file in pixels."""
    crop: str | None = None
    """row,column,height,width in pixels: the part of the scene to look at."""
    area: str | None = None
    """The same as x0,y0,x1,y1 in --prompt-crs (longitude,latitude if that is not given; or pixels)."""

    def options(self) -> dict[str, Any]:
        """``marks`` and ``window`` of :meth:`earthmind_jax.infer.predictor.EarthMind.ask`, where they are given."""
        from earthmind_jax.geo.marks_file import PIXELS, read_prompts
        from earthmind_jax.geo.prompts import Prompt

        crs = None if self.prompt_crs in (None, PIXELS) else self.prompt_crs
        marks: list[Any] = []
        for text in self.point:
            groups = [_numbers(part, "--point", "x,y or x,y,label", (2, 3)) for part in text.split(";")]
            name = f"point {text}" if len(groups) > 1 else ""
            for x, y, *label in groups:
                if label and label[0] not in (0, 1):
                    raise UserError(f"--point {text}: the label is 1 (object) or 0 (background), not {label[0]:g}.")
                kind = int(label[0]) if label else 1
                marks.append(Prompt.point(x, y, kind, name=name, crs=crs, where=f"--point {text}"))
        for text in self.box:
            corners = _numbers(text, "--box", "x0,y0,x1,y1", (4,))
            marks.append(Prompt.from_box(*corners, crs=crs, where=f"--box {text}"))
        for text in self.line:
            positions = [_numbers(part, "--line", "x,y;x,y;...", (2,)) for part in text.split(";")]
            marks.append(Prompt.line(positions, crs=crs, where=f"--line {text}"))
        marks += self.mask
        if self.prompts is not None:
            marks += read_prompts(self.prompts, self.prompt_crs)
        given: dict[str, Any] = {"marks": marks} if marks else {}
        if self.crop is not None and self.area is not None:
            raise UserError("--crop and --area both say which part to look at; leave one of them out.")
        if self.crop is not None:
            given["window"] = tuple(_whole(v, self.crop) for v in _numbers(self.crop, "--crop", CROP, (4,)))
        if self.area is not None:
            corners = _numbers(self.area, "--area", "x0,y0,x1,y1", (4,))
            where = f"--area {self.area}"
            own = None if self.prompt_crs == PIXELS else crs or "OGC:CRS84"
            given["window"] = Prompt.from_box(*corners, crs=own, where=where)
        return given


CROP = "row,column,height,width"
NOWHERE = Places()
Pointing = Annotated[Places, tyro.conf.arg(name="")]


def _numbers(text: str, option: str, form: str, counts: Sequence[int]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise UserError(f"{option} is {form} in numbers, not '{text}'.")
    return values


def _whole(value: float, text: str) -> int:
    if value != value or value != int(value):
        raise UserError(f"--crop is {CROP} in whole pixels, not '{text}'.")
    return int(value)
