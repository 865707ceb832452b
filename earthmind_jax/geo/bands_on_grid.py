"""A raster in memory: named bands on one grid, their validity, and every guess that was made on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from earthmind_jax.errors import UserError
from earthmind_jax.geo.bands import select
from earthmind_jax.geo.grid import Grid
from earthmind_jax.geo.opening import file_stamp
from earthmind_jax.geo.products import Product
from earthmind_jax.geo.sample import SAMPLE_SIDE, SceneSample, file_sample, sample_of

FILL = {"reflectance": 0.0, "dB": -50.0, "display": 0.0}  # finite stand-in at invalid pixels of calibrated rasters


@dataclass(frozen=True, eq=False)
class Raster:
    """Bands on one grid.

    Attributes:
      data: [C H W], float32 unless read as ``native`` or ``labels``; where invalid, calibrated ones hold a finite fill.
      valid: bool [H W], true where every band holds a measurement.
      transform, crs: pixel corner -> map; ``crs`` is None for a plain picture.
      bands: C names; ``stored`` are those of the file, where a band stands for another sensor's.
      dtype, tags, nodata: as stored in the file.
      notes: what was guessed or decided, and why.
      unit: "raw", "reflectance", "dB" or "display" (8-bit rendering, 0..255).
      sensor: an entry of ``radiometry.SENSORS``, or None.
      decided: what calibration found out, by name ("offset", "scale", "unit").
      window, scene_shape, scene_bands: the part read, and the size and bands of the whole file.
      product: what the file is part of or made of, where it came as a product.
      scene_indexes, quality: where these bands, and one that tells validity (position, name), stand in the file.
    """

    data: np.ndarray
    valid: np.ndarray
    transform: Affine
    crs: CRS | None
    bands: tuple[str, ...]
    dtype: str = "float32"
    tags: dict[str, str] = field(default_factory=dict)
    nodata: float | None = None
    notes: list[str] = field(default_factory=list)
    unit: str = "raw"
    sensor: str | None = None
    path: str = ""
    descriptions: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    window: Window | None = None
    scene_shape: tuple[int, int] | None = None
    scene_bands: tuple[str, ...] = ()
    scene_indexes: tuple[int, ...] = ()
    quality: tuple[int, str] | None = None
    stored: tuple[str, ...] = ()
    decided: dict[str, Any] = field(default_factory=dict)
    gcps: bool = False
    product: Product | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[-2], self.data.shape[-1]

    @property
    def name(self) -> str:
        return os.path.basename(self.path) or "the image"

    @property
    def nameless(self) -> bool:
        """Whether the file names no bands, so that their count alone says what they are."""
        return any("names no bands" in note for note in self.notes)

    @property
    def georeferenced(self) -> bool:
        return self.crs is not None and not self.transform.almost_equals(Affine.identity())

    @property
    def gsd(self) -> float | None:
        """Ground sample distance in metres at the image centre, whatever the CRS; None without a georeference."""
        return self.grid.gsd if self.georeferenced else None

    @property
    def grid(self) -> Grid:
        return Grid(self.transform, self.crs, *self.shape, name=self.path or self.name)

    def band(self, name: str) -> np.ndarray:
        """One band [H W] by name."""
        return self.data[select([name], self.bands, self.name)[0]]

    def scene_sample(self) -> SceneSample:
        """The whole scene, decimated: what scene-level decisions rest on, the same for every window of a file and for
        every choice of bands."""
        stamp = file_stamp(self.path) if self.unit == "raw" and self.scene_indexes else None
        if stamp is not None:
            return file_sample(self.path, self.scene_indexes, self.scene_bands, self.quality, stamp)
        step_y, step_x = (max(1, side // SAMPLE_SIDE) for side in self.shape)
        data, valid = self.data[:, ::step_y, ::step_x], self.valid[::step_y, ::step_x]
        return sample_of(np.asarray(data, np.float32), np.broadcast_to(valid, data.shape), self.stored or self.bands)

    def scene_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the centres of this raster's rows and columns lie in the scene, in its pixels from its outer corner."""
        scene = self.scene_shape or self.shape
        window = self.window or Window(0, 0, scene[1], scene[0])
        rows = window.row_off + (np.arange(self.shape[0]) + 0.5) * window.height / self.shape[0]
        columns = window.col_off + (np.arange(self.shape[1]) + 0.5) * window.width / self.shape[1]
        return rows, columns

    def scene_positions(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For each row and each column of this raster the nearest one in a sample of ``shape`` of the whole scene."""
        whole = self.scene_shape or self.shape
        found = zip(self.scene_centres(), shape, whole, strict=True)
        rows, columns = (np.clip((c * size / side).astype(int), 0, size - 1) for c, size, side in found)
        return rows, columns

    def calibrated(
        self,
        data: np.ndarray,
        valid: np.ndarray,
        unit: str,
        notes: Sequence[str],
        decided: Mapping[str, Any] | None = None,
    ) -> Raster:
        """This raster with its values in a physical unit; UserError where no valid pixel of the scene is left."""
        if self.window is None and not valid.any():
            raise UserError(f"{self.path or self.name} has no valid pixel left ({'; '.join(notes)}).")
        data = np.where(valid, data, np.float32(FILL[unit])).astype(np.float32, copy=False)
        decided = {**self.decided, **(decided or {})}
        return replace(self, data=data, valid=valid, unit=unit, notes=[*self.notes, *notes], decided=decided)
