"""SAR backscatter in dB, from whatever scale the file has, without the noise at the image border.

Backscatter is a power; averages and resampling belong to the linear scale (``align``), display and networks to dB.
log10(0) is not a number: pixels without power are invalid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.reflectance import file_scaling
from earthmind_jax.geo.regions import label_regions
from earthmind_jax.geo.sample import SceneSample
from earthmind_jax.geo.sar_calibration import SceneCalibration, amplitude_beside, amplitude_of_one
from earthmind_jax.geo.sar_scale import BRIGHTEST_DB, FAINTEST_DB, browser_scaling, require_order, sar_scale

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

BORDER_DB = -40.0  # far below the noise floor of any Sentinel-1 mode
MIDDLE_DB = -11.0  # median of co-polarised land in C-band: where a scene without any calibration is put
LIKELY_DB = -35.0, 5.0  # the median of a co-polarised scene lies between them, whatever it shows


@dataclass(frozen=True)
class Nominal:
    """The amplitude of 0 dB of a sensor's products where they do not tell it themselves, and how far it holds."""

    amplitude: float
    note: str
    exact: bool = False


GRD = Nominal(500.0, "no calibration given: 0 dB set at DN 500, so levels are right to a few dB only")
PALSAR = Nominal(10 ** (83 / 20), "dB = 10 log10(DN squared) - 83.0, JAXA's calibration", exact=True)


def to_db(
    raster: Raster,
    *,
    scale: str | None = None,
    calibration: float | None = None,
    border_db: float | None = BORDER_DB,
    nominal: Nominal | None = GRD,
) -> Raster:
    """Backscatter in dB, from dB, linear power or amplitude. Zero power is invalid, never -inf.

    Args:
      scale: "dB", "linear" (power), "amplitude" (calibrated, power = value squared) or "dn" (uncalibrated
        amplitude); from tags or the data where None.
      calibration: the amplitude whose power is 1, for "dn": dB = 20 log10(DN / calibration); from the product's
        tags where None.
      border_db: pixels below it that hang together with the edge or with nodata are border noise; None keeps them.
      nominal: the calibration where nobody tells it; None, or one by which no scene could have these numbers, puts the
        scene's median at ``MIDDLE_DB`` instead.
    """
    if raster.unit in ("dB", "display"):
        return raster
    if raster.unit != "raw":
        raise UserError(f"{raster.name} holds {raster.unit}, which is not SAR backscatter.")
    if raster.dtype == "uint8" and scale is None:
        return _as_picture(raster)
    data, sample, notes = np.asarray(raster.data, np.float32), raster.scene_sample(), []
    own, whose = file_scaling(raster), "band scale and offset of the file"
    if own is None:
        own, whose = browser_scaling(raster), "as Copernicus Browser stores it"
    if own is not None:
        data, sample = data * np.float32(own[0]) + np.float32(own[1]), _scaled(sample, *own)
        notes.append(f"numbers x {own[0]:g} {own[1]:+g} ({whose})")
    scale, reason = sar_scale(raster, sample, scale)
    notes.append(f"SAR scale {scale}: {reason}")
    if raster.nameless:
        require_order(sample, scale, raster.path or raster.name)
    one: float | SceneCalibration = 1.0
    if scale == "dn":
        one, note = _one(raster, sample, calibration, nominal)
        notes.append(note)
    amplitude = one.at(*raster.scene_centres()) if isinstance(one, SceneCalibration) else one
    db, physical = _decibels(data, scale, amplitude)
    if scale == "dB" and raster.dtype.startswith("float"):
        physical &= (raster.data != 0).any(0)  # nothing measured is 0 dB to the last digit in every band: a fill value
    level = None if isinstance(one, SceneCalibration) else _level(sample, scale, one)
    if level is not None and not LIKELY_DB[0] <= level <= LIKELY_DB[1]:
        notes.append(
            f"although its median is then {level:+.0f} dB, as of no ground: its scale or calibration may be another "
            "(--sar-scale, --calibration)"
        )
    dropped = int((raster.valid & ~physical).sum())
    if dropped:
        notes.append(f"{dropped} pixels without power (zero, fill value) are invalid")
    valid = raster.valid & physical
    if border_db is not None:
        faint = valid & (db < border_db).any(0)
        noise = faint & _near_edge(raster, sample, scale, one, border_db) if faint.any() else faint
        if noise.any():
            notes.append(
                f"{int(noise.sum())} pixels of border noise (below {border_db:.0f} dB at the edge) are invalid"
            )
            valid &= ~noise
    return raster.calibrated(db, valid, "dB", notes, {"scale": scale})


def border_noise(db: np.ndarray, valid: np.ndarray, floor_db: float = BORDER_DB) -> np.ndarray:
    """bool [H W]: valid pixels of a whole scene below ``floor_db`` in some band that hang together (8-connected,
    through nodata) with its edge. Calm water inside the image stays."""
    faint = valid & (np.where(valid, db, 0) < floor_db).any(0)
    return faint & _from_edge(faint | ~valid) if faint.any() else faint


def _from_edge(mask: np.ndarray) -> np.ndarray:
    """bool [H W]: the part of ``mask`` that hangs together (8-connected) with the edge of the image."""
    label = label_regions(np.pad(mask, 1, constant_values=True))
    return (label == label[0, 0])[1:-1, 1:-1]


@lru_cache(maxsize=16)
def _scaled(sample: SceneSample, factor: float, term: float) -> SceneSample:
    """A sample of stored numbers times the band scale, once for all windows of a scene; zero stays nothing."""
    values = np.where(sample.values == 0, 0, sample.values * np.float32(factor) + np.float32(term))
    return SceneSample(values.astype(np.float32), sample.valid, sample.bands)


def _near_edge(raster: Raster, sample: SceneSample, scale: str | None, one: Any, floor_db: float) -> np.ndarray:
    """bool [H W]: where a faint pixel is border noise. Decided on the decimated scene, so that it is the same in every
    window; one sample pixel more, since the decimation may step over a thin rim."""
    chosen = tuple(sample.bands.index(name) for name in raster.stored or raster.bands)
    near = _edge_of_scene(sample, chosen, scale, one, floor_db)
    rows, columns = raster.scene_positions(near.shape)
    return near[rows[:, None], columns[None, :]]


@lru_cache(maxsize=16)
def _edge_of_scene(
    sample: SceneSample, bands: tuple[int, ...], scale: str | None, one: Any, floor_db: float
) -> np.ndarray:
    values = sample.values[list(bands)]
    if scale is None:
        nothing = (values == 0).all(0)
    else:
        amplitude = one.decimated(*sample.valid.shape) if isinstance(one, SceneCalibration) else one
        db, physical = _decibels(values, scale, amplitude)
        nothing = ~physical | (np.where(physical, db, 0) < floor_db).any(0)
    grown = np.pad(_from_edge(nothing | ~sample.valid), 1, constant_values=True)
    height, width = sample.valid.shape
    return np.logical_or.reduce([grown[r : r + height, c : c + width] for r in range(3) for c in range(3)])


def _decibels(data: np.ndarray, scale: str, one: Any) -> tuple[np.ndarray, np.ndarray]:
    """(dB [C H W], bool [H W] where every band is one that a radar can measure); ``one`` is the amplitude of 0 dB, a
    number or [C H W]."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if scale == "dB":
            db = data
        elif scale == "linear":
            db = 10 * np.log10(data)
        else:
            db = 20 * np.log10(np.where(data >= 0, data, np.nan) / np.asarray(one, np.float32))
        return db, (np.isfinite(db) & (db > FAINTEST_DB) & (db < BRIGHTEST_DB)).all(0)


def _as_picture(raster: Raster) -> Raster:
    """8-bit SAR as brightness; zeros that hang together with the edge are the padding around a turned image."""
    notes = ["8-bit SAR is a rendering whose dB range is unknown: used as a picture"]
    data = np.asarray(raster.data, np.float32)
    zero = raster.valid & (data == 0).all(0)
    wedge = zero & _near_edge(raster, raster.scene_sample(), None, 1.0, 0.0) if zero.any() else zero
    if wedge.any() and not (wedge | ~raster.valid).all():
        notes.append(f"{int(wedge.sum())} pixels of zeros at the edge are padding and invalid")
    return raster.calibrated(data, raster.valid & ~wedge, "display", notes)


def _one(
    raster: Raster, sample: SceneSample, told: float | None, nominal: Nominal | None
) -> tuple[float | SceneCalibration, str]:
    """(amplitude of 0 dB, why)."""
    if told is not None:
        if not (np.isfinite(told) and told > 0):
            raise UserError(f"The calibration is the amplitude of 0 dB, a number above zero, not {told}.")
        return told, f"0 dB at DN {told:g}, as told"
    tables = raster.product.calibration if raster.product is not None else {}
    names = raster.stored or raster.bands
    if tables and set(names) <= set(tables):
        calibration = SceneCalibration(tuple(tables[name] for name in names), raster.scene_shape or raster.shape)
        return calibration, str(calibration)
    found = amplitude_of_one(raster.tags) or amplitude_beside(raster.path, names)
    if found is not None:
        return found[0], f"0 dB at DN {found[0]:g}: {found[1]}"
    if nominal is not None and nominal.exact:
        return nominal.amplitude, nominal.note
    one, doubt = _one_of_median(sample), ""
    if nominal is not None:
        level = _level(sample, "dn", nominal.amplitude)
        if level is None or LIKELY_DB[0] <= level <= LIKELY_DB[1]:
            return nominal.amplitude, nominal.note
        doubt = f"; numbers of Sentinel-1 they hardly are (the median would be {level:+.0f} dB)"
    return one, f"no calibration given: the scene's median set to {MIDDLE_DB:.0f} dB, so levels are relative{doubt}"


@lru_cache(maxsize=16)
def _middle(sample: SceneSample) -> float | None:
    """The median of a scene's co-polarised bands, as stored; None of one without values."""
    values, bands = sample.known
    like = [i for i, name in enumerate(bands) if name in ("HH", "VV")] or [0]
    return float(np.median(values[like])) if values.size else None


def _one_of_median(sample: SceneSample) -> float:
    middle = _middle(sample)
    return max(1.0 if middle is None else middle, 1e-6) / 10 ** (MIDDLE_DB / 20)


def _level(sample: SceneSample, scale: str, one: float) -> float | None:
    """The median of a scene in dB; None where it has none."""
    middle = _middle(sample)
    if middle is None or scale == "dB":
        return middle
    return (10 if scale == "linear" else 20) * math.log10(middle / one) if middle > 0 else None
