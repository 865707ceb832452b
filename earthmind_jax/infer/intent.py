"""What a model would do with a raster, in words: bands, ranges, tiles or windows."""

from __future__ import annotations

from earthmind_jax.config import EarthMindConfig
from earthmind_jax.data.tiles import closest_grid, tile_count
from earthmind_jax.errors import UserError
from earthmind_jax.geo.counterparts import choose
from earthmind_jax.geo.raster import Raster
from earthmind_jax.infer.windows import OVERLAP, starts


def intent(
    overview: Raster, shape: tuple[int, int], kind: str, config: EarthMindConfig, overlap: float = OVERLAP
) -> list[str]:
    """Sentences on what becomes of an image of ``shape`` (rows, columns) that is used as ``kind``.

    Args:
      overview: the calibrated scene, decimated.
      overlap: share of a window common to neighbours.
    """
    return [*_bands(overview, kind, config), _parts(shape, config, overlap)]


def _bands(overview: Raster, kind: str, config: EarthMindConfig) -> list[str]:
    sensors = config.sensors
    wanted = tuple(dict.fromkeys(sensors.optical_bands if kind == "optical" else sensors.sar_bands))
    if overview.unit == "display" and overview.dtype == "uint8" and len(overview.bands) in (1, 3):
        return [f"used as a finished picture; a model for {' '.join(wanted)} sees it unchanged"]
    try:
        _, _, notes = choose(wanted, overview.bands, overview.name, kind)
    except UserError as error:
        return [f"cannot be used: {error}"]
    if overview.unit == "display":
        scaled = "brightness over the range of each band"
    elif kind == "optical":
        scaled = f"reflectance {sensors.optical_range[0]:g} to {sensors.optical_range[1]:g} to 0..255"
    else:
        scaled = ", ".join(
            f"{band} {low:g} to {high:g} dB" for band, (low, high) in zip(wanted, sensors.sar_ranges, strict=True)
        )
        scaled += " to 0..255, " + ("padded with zeros" if sensors.sar_channels == "zero_pad" else "channels repeated")
    frames = -(-len(wanted) // 3)
    return [f"bands {' '.join(wanted)} as {frames} frame{'s'[: frames > 1]} of three channels: {scaled}", *notes]


def _parts(shape: tuple[int, int], config: EarthMindConfig, overlap: float) -> str:
    side = config.sensors.window
    if 0 < side < max(shape):
        count = len(starts(shape[0], side, overlap)) * len(starts(shape[1], side, overlap))
        return f"masks from {count} windows of {side} x {side} pixels with {overlap:.0%} overlap"
    size = config.vision.image_size
    grid = closest_grid((shape[1], shape[0]), 1, config.sensors.max_tiles, size)
    tiles = tile_count(grid, config.sensors.thumbnail)
    return (
        f"shown whole as {grid[0]} x {grid[1]} tiles of {size} pixels ({tiles} with the thumbnail where there is one)"
    )
