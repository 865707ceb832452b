"""A simulated scene: one piece of ground, seen by both sensors, with the truth about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, UInt8

from earthmind_jax.data.simulate.landcover import make_layout
from earthmind_jax.data.simulate.layout import Instance, Layout
from earthmind_jax.data.simulate.noise import fractal_noise
from earthmind_jax.data.simulate.optical import CLOUD_KINDS, Sky, make_sky, observe, surface
from earthmind_jax.data.simulate.radar import LOOKS, mean_power, speckle, to_db
from earthmind_jax.errors import UserError


@dataclass(frozen=True)
class Scene:
    """One scene on one grid.

    Attributes:
      layout: the truth: class map, regions, objects, metres per pixel.
      sky: clouds and shadows (as the optical sensor sees them).
      cloud_kind: ``clear``, ``partly`` or ``cloudy``.
      optical: float32 [12 H W], reflectance in the order of ``materials.BANDS``; NaN where invalid.
      sar_db: float32 [2 H W], gamma0 VV, VH with speckle, in dB; NaN where invalid.
      sar_mean: float32 [2 H W], the same without speckle, linear power, valid everywhere.
      optical_valid, sar_valid: bool [H W]; every pixel is valid in one of them at least.
      looks: equivalent looks of the speckle.
      seed: what the scene was made from, or -1 when it came from a running generator.
    """

    layout: Layout
    sky: Sky
    cloud_kind: str
    optical: Float[np.ndarray, "12 H W"]
    sar_db: Float[np.ndarray, "2 H W"]
    sar_mean: Float[np.ndarray, "2 H W"]
    optical_valid: Bool[np.ndarray, "H W"]
    sar_valid: Bool[np.ndarray, "H W"]
    looks: float
    seed: int

    @property
    def class_map(self) -> UInt8[np.ndarray, "H W"]:
        return self.layout.class_map

    @property
    def gsd(self) -> float:
        return self.layout.gsd

    @property
    def instances(self) -> tuple[Instance, ...]:
        return self.layout.instances

    @property
    def cloud(self) -> Bool[np.ndarray, "H W"]:
        """Where clouds hide the ground."""
        return self.sky.cloud

    @property
    def shadow(self) -> Bool[np.ndarray, "H W"]:
        """Where the ground is visible, but in the shadow of a cloud."""
        return self.sky.in_shadow

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.class_map.shape

    @cached_property
    def fractions(self) -> np.ndarray:
        """Share of the image of each ``Cover`` value, float [11]."""
        return np.bincount(self.class_map.ravel(), minlength=11) / self.class_map.size

    @cached_property
    def sensors(self) -> dict[int, tuple[str, ...]]:
        """Which sensors could find a class, as far as it was asked for (see ``qa.sensors_for``)."""
        return {}

    def mask(self, cover: int) -> Bool[np.ndarray, "H W"]:
        """Where the ground is of one class."""
        return self.class_map == cover


def _wedge(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Valid pixels of an image whose swath ends inside the scene: a corner or an edge is missing (2 - 20 %)."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[: shape[0], : shape[1]]
    along = np.cos(angle) * x + np.sin(angle) * y
    return along >= np.quantile(along, rng.uniform(0.02, 0.20))


def make_scene(
    seed: int | np.random.Generator,
    *,
    size: int | tuple[int, int] = 64,
    whole: int | None = None,
    cloud: str | None = None,
    theme: str | None = None,
    gsd: float | None = None,
    looks: float = LOOKS,
    nodata: float = 0.1,
) -> Scene:
    """Make one scene; the same seed (or generator state) and options give the same scene.

    Args:
      seed: an integer, or a generator to draw from.
      size: pixels of a side, or (rows, columns).
      whole: pixels of a side of a larger scene of which this is a part, as a window of a large image is: there may be
        nothing but water in it. None: a scene of its own, with a few things in it.
      cloud: ``clear``, ``partly``, ``cloudy``, or None to draw one (0.4, 0.15, 0.45).
      theme: one of ``landcover.THEMES``, or None to draw one.
      gsd: metres per pixel, or None to draw one from 5 - 30, mostly near 12.
      looks: equivalent number of looks of the SAR image.
      nodata: chance that one of the two images lacks a wedge.

    Raises:
      UserError: for a size below 16 or above ``whole``, or an unknown cloud or theme.
    """
    # a stream of its own, so that default_rng(seed) is free for the questions
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng((int(seed), 5))
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if min(shape) < 16:
        raise UserError(f"A simulated scene needs at least 16 x 16 pixels, not {shape[0]} x {shape[1]}.")
    gsd = float(np.exp(rng.triangular(*np.log((5.0, 12.0, 30.0))))) if gsd is None else float(gsd)
    if cloud is None:
        cloud = CLOUD_KINDS[int(np.searchsorted((0.4, 0.55), rng.random()))]
    layout = make_layout(rng, shape, gsd=gsd, theme=theme, whole=None if whole is None else (whole, whole))
    sky = make_sky(rng, shape, cloud, gsd)

    height = fractal_noise(rng, shape, 0.3 * min(shape), 4) * np.float32(1.5 * rng.random() ** 2)
    slope_y, slope_x = np.gradient(height)
    azimuth = rng.uniform(0, 2 * np.pi)
    sunny = np.clip(np.sin(azimuth) * slope_y + np.cos(azimuth) * slope_x, -0.35, 0.35)
    look = 1 if rng.random() < 0.5 else -1
    optical = observe(rng, surface(rng, layout, sunny), sky)
    mean = mean_power(rng, layout, np.clip(look * slope_x, -0.35, 0.35), look)
    sar_db = to_db(mean * speckle(rng, shape, looks=looks))

    optical_valid, sar_valid = np.ones(shape, bool), np.ones(shape, bool)
    if rng.random() < nodata:
        if rng.random() < 0.5:
            optical_valid = _wedge(rng, shape)
            optical[:, ~optical_valid] = np.nan
        else:
            sar_valid = _wedge(rng, shape)
            sar_db[:, ~sar_valid] = np.nan
    return Scene(
        layout=layout, sky=sky, cloud_kind=cloud, optical=optical.astype(np.float32), sar_db=sar_db.astype(np.float32),
        sar_mean=mean, optical_valid=optical_valid, sar_valid=sar_valid, looks=float(looks),
        seed=-1 if isinstance(seed, np.random.Generator) else int(seed),
    )  # fmt: skip
