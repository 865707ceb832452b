"""Sentinel-2 L2A-like reflectance of a layout: spectra, texture, relief, blur, haze, clouds and their shadows.

Class spectra are those of ``materials`` (from real chips and from the literature, marked there). What is added here
and where it comes from: bands are blurred to their native 10, 20 and 60 m (product specification); glint adds a flat
0 - 0.08 to water (literature; the chip's open water reaches 0.11 in B8A at the 95 % quantile); clouds are 0.4 - 0.95 in
the visible and darker in the short-wave infrared (literature); residual haze is bluish and weak, as after correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt16

from earthmind_jax.config import one_of
from earthmind_jax.data.simulate.layout import Layout
from earthmind_jax.data.simulate.materials import BANDS, COVER, INDEX, REFLECTANCE, SPREAD, TEXTURE, WAVELENGTHS, Cover
from earthmind_jax.data.simulate.noise import blur_matrix, fractal_noise, product, smooth_noise

SCALE = 10000  # digital numbers per unit of reflectance
NATIVE = np.array([60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20])  # native pixel of each band, metres
CLOUD_KINDS = ("clear", "partly", "cloudy")

CLOUD = np.array([0.92, 0.92, 0.90, 0.92, 0.93, 0.94, 0.95, 0.95, 0.95, 0.80, 0.62, 0.48], np.float32)
SHADE = np.array([0.62, 0.58, 0.52, 0.46, 0.44, 0.42, 0.40, 0.38, 0.37, 0.36, 0.30, 0.28], np.float32)  # diffuse part
HAZE = (0.443 / WAVELENGTHS) ** 1.3
_TILT = np.log(WAVELENGTHS / 0.8)


@dataclass(frozen=True)
class Sky:
    """Clouds over a scene: ``alpha`` [H W] their opacity (1 hides the ground), ``shadow`` [H W] how deep the shade."""

    alpha: Float[np.ndarray, "H W"]
    shadow: Float[np.ndarray, "H W"]

    @property
    def cloud(self) -> Bool[np.ndarray, "H W"]:
        """Where clouds hide the ground (more than half opaque)."""
        return self.alpha > 0.5

    @property
    def in_shadow(self) -> Bool[np.ndarray, "H W"]:
        """Where the ground is visible but in the shadow of a cloud."""
        return (self.shadow > 0.5) & ~self.cloud


def make_sky(rng: np.random.Generator, shape: tuple[int, int], kind: str, gsd: float) -> Sky:
    """Clouds of one kind: ``clear`` (none), ``partly`` (8 - 20 % of the pixels), ``cloudy`` (20 - 45 %, large banks).

    Raises:
      UserError: for an unknown kind.
    """
    one_of("cloud", kind, CLOUD_KINDS)
    nothing = np.zeros(shape, np.float32)
    if kind == "clear":
        return Sky(nothing, nothing)
    side = float(np.sqrt(shape[0] * shape[1]))
    cloudy = kind == "cloudy"
    # the field is larger than the scene, so that shadows of clouds outside it fall inside
    reach = max(2, int(0.2 * side))
    larger = (shape[0] + 2 * reach, shape[1] + 2 * reach)
    field = fractal_noise(rng, larger, side * rng.uniform(0.35, 0.6) * (1.0 if cloudy else 0.5), 5 if cloudy else 4)
    inner = field[reach : reach + shape[0], reach : reach + shape[1]]
    cover = rng.uniform(0.20, 0.45) if cloudy else rng.uniform(0.08, 0.20)
    middle = np.quantile(inner, 1.0 - cover)
    soft = rng.uniform(0.03, 0.15)  # width of the edge: cumulus to stratus
    alpha = np.clip((field - middle) / soft + 0.5, 0.0, 1.0)
    alpha = alpha * alpha * (3.0 - 2.0 * alpha)
    distance = rng.uniform(100, 800) / gsd  # height times the tangent of the sun's zenith angle
    azimuth = rng.uniform(0, 2 * np.pi)
    offset = np.clip(np.round(distance * np.array([np.sin(azimuth), np.cos(azimuth)])), -reach, reach).astype(int)
    top, left = reach - offset[0], reach - offset[1]
    shadow = alpha[top : top + shape[0], left : left + shape[1]]
    alpha = alpha[reach : reach + shape[0], reach : reach + shape[1]]
    if rng.random() < 0.25:  # a veil of cirrus beside the banks: the ground shines through
        veil = rng.uniform(0.1, 0.4) / (1.0 + np.exp(-3.0 * smooth_noise(rng, shape, 0.6 * side)))
        alpha = np.maximum(alpha, veil.astype(np.float32))
    return Sky(alpha.astype(np.float32), shadow.astype(np.float32))


def region_spectra(rng: np.random.Generator, layout: Layout) -> Float[np.ndarray, "R 12"]:
    """One spectrum per region: its material with its own brightness, tilt, bumps, and for water glint."""
    material = layout.material
    count = material.size
    spread = SPREAD[material][:, None]
    normal = rng.standard_normal((count, 14), dtype=np.float32)
    log = spread * normal[:, :1] + 0.5 * spread * normal[:, 1:2] * _TILT + 0.03 * normal[:, 2:]
    spectra = REFLECTANCE[material] * np.exp(log)
    water = COVER[material] == Cover.WATER
    windy = material == INDEX["windy_water"]
    glint = rng.random(count, dtype=np.float32) ** 2 * np.where(windy, 0.08, 0.05) * (rng.random(count) < 0.6)
    return spectra + (water * glint).astype(np.float32)[:, None] * (0.9 + 0.1 * HAZE)


def surface(rng: np.random.Generator, layout: Layout, relief: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "12 H W"]:
    """Reflectance at the ground, before the atmosphere, at the native resolution of each band.

    Args:
      relief: slope towards the sun, about -0.3..0.3; brightness follows it (not on water).
    """
    shape, region = layout.class_map.shape, layout.region
    out = np.take(np.ascontiguousarray(region_spectra(rng, layout).T), region.ravel(), axis=1).reshape(12, *shape)
    water = layout.class_map == Cover.WATER
    texture = TEXTURE[layout.material][region]
    grain = rng.standard_normal((2, *shape), dtype=np.float32)
    patches = smooth_noise(rng, shape, max(3.0, 60.0 / layout.gsd))
    light = texture * (0.8 * grain[0] + 0.6 * patches) + np.where(water, 0.0, relief).astype(np.float32)
    # vegetation varies most in the infrared: a second, weaker texture that tilts the spectrum
    tilt = 0.35 * texture * (0.6 * grain[1] + 0.8 * smooth_noise(rng, shape, max(3.0, 100.0 / layout.gsd)))
    gain = np.exp(light)
    tilt *= gain
    for band in range(12):
        out[band] *= gain + _TILT[band] * tilt
    windy = layout.material[region] == INDEX["windy_water"]
    if windy.any():  # whitecaps and surf: small bright spots that an optical image shows where ships could be
        foam = (grain[0] + 0.5 * patches > 3.3) & windy
        out[:, foam] += rng.uniform(0.04, 0.25, int(foam.sum())).astype(np.float32) * SHADE[:, None] * 1.6
    for native in (10, 20, 60):
        chosen = np.flatnonzero(native == NATIVE)
        width = float(np.hypot(0.9, native / layout.gsd - 0.6 if native > layout.gsd else 0.0))
        rows, columns = blur_matrix(shape[0], width), blur_matrix(shape[1], width)
        out[chosen] = product(product(rows, out[chosen]), columns.T)
    return out


def observe(rng: np.random.Generator, ground: Float[np.ndarray, "12 H W"], sky: Sky) -> Float[np.ndarray, "12 H W"]:
    """The ground seen through shadow, haze and cloud, with sensor noise: float32 reflectance, at least -0.005."""
    shape = ground.shape[1:]
    haze = np.float32(rng.uniform(0.0, 0.012))
    out = np.float32(0.005) * rng.random(ground.shape, dtype=np.float32)  # noise: uniform is cheap, and enough
    out += ground
    out += (haze * HAZE - np.float32(0.0025))[:, None, None]
    if sky.alpha.any() or sky.shadow.any():
        top = 0.74 + 0.10 * fractal_noise(rng, shape, 0.2 * shape[0])
        top = np.clip(top, 0.42, 1.05).astype(np.float32)
        for band in range(12):
            lit = 1.0 - (1.0 - SHADE[band]) * sky.shadow
            out[band] *= lit * (1.0 - sky.alpha)
            out[band] += (CLOUD[band] * sky.alpha) * top
    return np.maximum(out, -0.005)


def to_digital_numbers(
    reflectance: Float[np.ndarray, "C H W"], valid: Bool[np.ndarray, "H W"] | None = None, *, offset: int = 0
) -> UInt16[np.ndarray, "C H W"]:
    """Product values: ``reflectance * 10000 + offset`` rounded, at least 1 where valid; 0 is nodata.

    Args:
      offset: 1000 since processing baseline 04.00 (the product's ``BOA_ADD_OFFSET`` is then -1000), 0 before.
    """
    numbers = np.clip(np.rint(reflectance * SCALE) + offset, 1, 65535).astype(np.uint16)
    return numbers if valid is None else np.where(valid, numbers, np.uint16(0))


def from_digital_numbers(numbers: UInt16[np.ndarray, "C H W"], *, offset: int = 0) -> Float[np.ndarray, "C H W"]:
    """Reflectance of product values; NaN where they are 0 (nodata)."""
    reflectance = (numbers.astype(np.float32) - offset) / SCALE
    return np.where(numbers == 0, np.float32(np.nan), reflectance)


__all__ = [
    "BANDS", "CLOUD_KINDS", "NATIVE", "SCALE", "Sky", "from_digital_numbers", "make_sky", "observe", "region_spectra",
    "surface", "to_digital_numbers",
]  # fmt: skip
