"""Rasters to three-channel frames: named optical bands in triplets, SAR decibels padded to three channels.

A frame is float32 [H W 3] in 0..1 (the encoders' 8-bit pictures before rounding). Bands are always asked for by name,
so their order in a file never matters. Pixels without data get ImageNet's mean colour, which normalises to zero (to
within the rounding to 8 bits), and stay marked in the validity mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from earthmind_jax.config import SensorConfig, nearest
from earthmind_jax.data.tiles import MEAN
from earthmind_jax.errors import UserError

Bands = Mapping[str, np.ndarray]
"""Band name to [H W] values: reflectance 0..1 for optical, decibels for SAR."""

Frames = tuple[Float[np.ndarray, "F H W 3"], Bool[np.ndarray, "H W"]]


def select_bands(bands: Bands, names: Sequence[str], what: str) -> Float[np.ndarray, "C H W"]:
    """The named bands, stacked.

    Raises:
      UserError: naming the missing band and those that are there, or bands of different sizes.
    """
    for name in names:
        if name not in bands:
            there = ", ".join(bands) or "none"
            raise UserError(f"The {what} image has no band '{name}'.{nearest(name, bands)} Bands there: {there}.")
    shapes = {np.shape(bands[name]) for name in names}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        sizes = ", ".join(f"{name} {np.shape(bands[name])}" for name in names)
        raise UserError(f"The {what} bands must be [height width] of one size: {sizes}.")
    return np.stack([np.asarray(bands[name], np.float32) for name in names])


def validity(
    values: Float[np.ndarray, "C H W"], valid: Bool[np.ndarray, "H W"] | None, what: str
) -> Bool[np.ndarray, "H W"]:
    """Pixels that are finite in every band and marked valid."""
    finite = np.isfinite(values).all(0)
    if valid is None:
        return finite
    if valid.shape != finite.shape:
        raise UserError(f"The {what} validity mask is {valid.shape} but its bands are {finite.shape}.")
    return finite & valid.astype(bool)


def scale(values: np.ndarray, bounds: tuple[float, float]) -> Float[np.ndarray, "*shape"]:
    """``bounds`` to 0..1, clipped."""
    low, high = bounds
    if not high > low:
        raise UserError(f"A sensor range must go from low to high, not from {low} to {high}.")
    return np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)


def fill_invalid(frames: Float[np.ndarray, "F H W 3"], valid: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """Pixels without data become the mean colour."""
    return frames if valid.all() else np.where(valid[None, :, :, None], frames, MEAN).astype(np.float32)


def optical_frames(bands: Bands, sensors: SensorConfig, valid: np.ndarray | None = None) -> Frames:
    """Reflectance bands to one frame for each triplet of ``sensors.optical_bands``.

    Args:
      bands: reflectance by band name, 0..1 (values outside ``optical_range`` are clipped).
      valid: bool [H W], false where the scene has no data.

    Returns:
      Frames float32 [F H W 3] in 0..1, and the pixels that are valid in every band used.
    """
    values = select_bands(bands, sensors.optical_bands, "optical")
    valid = validity(values, valid, "optical")
    scaled = scale(values, sensors.optical_range)
    frames = np.moveaxis(scaled.reshape(-1, 3, *scaled.shape[1:]), 1, -1)
    return fill_invalid(np.ascontiguousarray(frames), valid), valid


def sar_frames(bands: Bands, sensors: SensorConfig, valid: np.ndarray | None = None) -> Frames:
    """Backscatter bands to frames of three channels.

    One or two bands are padded with zeros ((VV, VH, 0), the paper's choice) or repeated in turn ((VV, VH, VV), and
    (VV, VV, VV) for one band: what opening a grey picture as RGB does); more bands make further frames.

    Args:
      bands: backscatter by polarisation, dB; each band of ``sensors.sar_bands`` has its own range in ``sar_ranges``.
      valid: bool [H W], false where the scene has no data.

    Returns:
      Frames float32 [F H W 3] in 0..1, and the pixels that are valid in every band used.
    """
    values = select_bands(bands, sensors.sar_bands, "SAR")
    valid = validity(values, valid, "SAR")
    scaled = [scale(band, bounds) for band, bounds in zip(values, sensors.sar_ranges, strict=True)]
    frames = []
    for start in range(0, len(scaled), 3):
        channels = scaled[start : start + 3]
        padding = channels * 2 if sensors.sar_channels == "replicate" else [np.zeros_like(scaled[0])] * 2
        frames.append(np.stack((channels + padding)[:3], -1))
    return fill_invalid(np.stack(frames), valid), valid
