"""Sentinel-1-like gamma0 backscatter of a layout, VV and VH: levels, relief, wind, double bounce, layover, speckle.

Levels per material are those of ``materials``. The measured chips (dB, median VV / VH): water -17.5 / -22.1,
trees -7.4 / -13.6 and -8.0 / -13.2, bare -16.8 / -21.7, crops -10.2 / -17.1 and -12.8 / -18.4, rangeland
-10.4 / -14.9 to -12.3 / -17.5, built -9.3 / -15.5. They look like 6 (VV) to 11 (VH) equivalent looks after resampling,
with a VV/VH speckle correlation of 0.1 - 0.2; the noise floor is near -25 dB.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from earthmind_jax.data.simulate.layout import Layout
from earthmind_jax.data.simulate.materials import BACKSCATTER, COVER, SAR_SPREAD, SAR_TEXTURE, Cover
from earthmind_jax.data.simulate.noise import shift, smooth_noise
from earthmind_jax.errors import UserError

NOISE_FLOOR_DB = np.array([-27.0, -27.5], np.float32)  # noise equivalent, VV and VH
LOOKS = 4.5  # equivalent looks of multilooked 10 m pixels
SPECKLE_CORRELATION = 0.15  # of VV and VH
MIN_POWER = np.float32(1e-4)


def to_db(power: np.ndarray) -> np.ndarray:
    """10 log10; powers below -40 dB become -40 dB."""
    return 10.0 * np.log10(np.maximum(power, MIN_POWER))


def from_db(db: np.ndarray) -> np.ndarray:
    """Linear power of decibels."""
    return np.float32(10.0) ** (np.asarray(db, np.float32) / np.float32(10.0))


def region_levels(rng: np.random.Generator, layout: Layout) -> Float[np.ndarray, "R 2"]:
    """VV and VH in dB of each region: its material's mean, with a spread that the two share in part."""
    normal = rng.standard_normal((layout.material.size, 2), dtype=np.float32)
    spread = SAR_SPREAD[layout.material][:, None]
    own = np.stack([normal[:, 0], 0.8 * normal[:, 0] + 0.6 * normal[:, 1]], axis=1)
    levels = BACKSCATTER[layout.material] + spread * own
    roofs = COVER[layout.material] == Cover.BUILDING
    # a wall that does not face the sensor returns little: the row is as bright as its orientation lets it be
    turned = np.where(roofs, rng.random(roofs.size, dtype=np.float32) ** 2 * 5.0, 0.0).astype(np.float32)
    return levels - turned[:, None]


def mean_power(
    rng: np.random.Generator, layout: Layout, relief: Float[np.ndarray, "H W"], look: int = 1
) -> Float[np.ndarray, "2 H W"]:
    """Speckle-free gamma0 as linear power.

    Args:
      relief: slope towards the sensor, about -0.3..0.3 (terrain correction leaves some of it in the image).
      look: 1 when the sensor looks towards increasing columns, -1 the other way.
    """
    shape, region = layout.class_map.shape, layout.region
    cover = layout.class_map
    water = cover == Cover.WATER
    db = np.ascontiguousarray(region_levels(rng, layout).T)[:, region]
    texture = SAR_TEXTURE[layout.material][region]
    db += texture * (0.7 * smooth_noise(rng, shape, 2.0) + 0.7 * smooth_noise(rng, shape, max(4.0, 120.0 / layout.gsd)))
    db += np.where(water, 0.0, 4.0 * relief).astype(np.float32)
    wind = 0.8 * smooth_noise(rng, shape, 0.4 * shape[0])
    db += np.where(water, wind, 0.0).astype(np.float32) * np.array([1.0, 0.6], np.float32)[:, None, None]
    power = from_db(db)
    roofs = cover == Cover.BUILDING
    if roofs.any():
        facing = roofs & (shift(layout.objects, 0, look) != layout.objects)  # walls towards the sensor
        strength = from_db(rng.normal(3.5, 1.5) + np.array([0.0, -8.5], np.float32))
        bounce = np.where(facing, np.sqrt(power[0] / from_db(-5.5)), 0.0).astype(np.float32)
        power += strength[:, None, None] * bounce
        power += 0.35 * strength[:, None, None] * shift(bounce, 0, -look) * ~roofs  # layover, towards the sensor
        shadow = ~roofs & shift(roofs, 0, look) & (rng.random(shape, dtype=np.float32) < 0.6)
        power = np.where(shadow, 0.35 * power, power)
    return (power + from_db(NOISE_FLOOR_DB)[:, None, None]).astype(np.float32)


def speckle(
    rng: np.random.Generator, shape: tuple[int, int], *, looks: float = LOOKS, correlation: float = SPECKLE_CORRELATION
) -> Float[np.ndarray, "2 H W"]:
    """Multiplicative speckle of linear power: gamma of mean 1 and variance 1 / ``looks``, for VV and VH.

    Gamma variables of one scale add up, so a shared part of ``correlation * looks`` gives exactly that correlation.

    Raises:
      UserError: unless looks > 0 and 0 <= correlation < 1.
    """
    if not looks > 0 or not 0 <= correlation < 1:
        raise UserError(f"Speckle needs looks > 0 and 0 <= correlation < 1, not {looks} and {correlation}.")
    out = rng.standard_gamma((1.0 - correlation) * looks, (2, *shape), dtype=np.float32)
    if correlation > 0:
        out += rng.standard_gamma(correlation * looks, shape, dtype=np.float32)
    return out / np.float32(looks)
