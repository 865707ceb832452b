"""Sentinel-2 digital numbers to reflectance, and the question whether the -1000 offset is still to be applied.

reflectance = (DN + offset) / 10000. The offset is -1000 since processing baseline 04.00 and 0 before, whatever the date
of the image (old scenes are reprocessed), and some providers have already applied it. The answer is sought in the tags,
then in the baseline, then in the darkest pixels of the whole scene.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from earthmind_jax.errors import UserError
from earthmind_jax.geo.quality import SCL_LAST
from earthmind_jax.geo.sample import LARGEST, SceneSample, sample_between

if TYPE_CHECKING:
    from earthmind_jax.geo.raster import Raster

ALREADY = "floating point values around 1: already reflectance, no scale and no offset applied"
QUANTIFICATION = 10000.0  # DN of reflectance 1
BASELINE_OFFSET = -1000.0
BASELINE_WITH_OFFSET = 4.0  # processing baseline 04.00
NO_OFFSET_BELOW = 800.0  # with the offset, a DN this low would be a reflectance below -0.02
ABSENT_BELOW = 500.0  # ... below -0.05: no correction overshoots that far
PRESENT_BELOW = 1500.0  # some surface darker than 0.05 in some band: nearly every scene has one
DARK_PERCENT = 0.1  # percentile that stands for the darkest pixels
SATURATED = 65535
POSSIBLE = -0.5, 10.0  # reflectance between which everything measured lies
PERCENT_BELOW = 150.0  # a reflectance of 0.015: no scene is that dark throughout
DARKEST_OF_ALL = 6500.0  # DN: only snow is as bright throughout; Landsat stores black as 7273
OWN_PROCESSING = 99.99  # baseline N9999: made by a user's sen2cor, from a product with the offset or without

BY_NAMES = "Sentinel-2 names without B10"  # all that some files tell of their sensor
DOUBTFUL = "mean other bands on Sentinel-2 than on Landsat, or are a mere count"  # ... and where they tell nothing
# Copernicus Browser's raw bands, as whole numbers stretched from reflectance 0 to 1.
_RAW = re.compile(r"(?i)Sentinel-2_L\w\w_B\w\w_\(Raw\)")
_HARMONIZED = re.compile(r"(?i)S2_(SR_)?HARMONI[SZ]ED")  # Earth Engine's collections
# Of BigEarthNet v2: made by sen2cor 2.11 from products of 2017 and 2018 without the offset.
_PATCH = re.compile(r"S2[AB]_MSIL2A_201[78]\d{4}T\d{6}_N9999_R\d{3}_T\w{5}_\d\d_\d\d")
_PRODUCT = re.compile(r"S2[ABCD]_MSI(L1C|L2A)_\d{8}T\d{6}_N(\d{2})(\d{2})")


def require_measured(raster: Raster) -> None:
    """UserError where the values are no numbers as a sensor's product stores them."""
    if raster.unit != "raw" or raster.dtype == "uint8":
        raise UserError(f"{raster.name} is an 8-bit rendering, not a measurement; read it as sensor rgb8.")


def to_reflectance(raster: Raster, *, offset: float | None = None) -> Raster:
    """Sentinel-2 digital numbers to reflectance (top of atmosphere for L1C, surface for L2A); it may be negative.

    Args:
      offset: number to add to the DN (-1000 or 0) where the caller knows it; else from tags, baseline, or the data.
    """
    if raster.unit == "reflectance":
        return raster
    require_measured(raster)
    digital, scaled = np.asarray(raster.data, np.float32), _scaled(raster)
    sample = sample_between(raster.scene_sample(), -LARGEST, LARGEST)
    if scaled is None and raster.dtype.startswith("float") and is_reflectance(sample.known[0]):
        notes = [ALREADY]
        if raster.nameless:
            _require_possible(sample, raster.path or raster.name)
        return raster.calibrated(digital, raster.valid & ~_fill(raster, digital, 1.0, notes), "reflectance", notes)
    sample = sample_between(sample, *(bound / (scaled[0][0] if scaled else 1 / QUANTIFICATION) for bound in POSSIBLE))
    _require_numbers(raster, sample, scaled)
    if raster.nameless:
        _require_order(sample, raster.path or raster.name)
    scale, quantity_note = scaled[0] if scaled else _quantification(raster)
    if offset is not None:
        reason = "as told"
    elif scaled and scaled[1] is not None:
        offset, reason = scaled[1]
    else:
        offset, reason = decide_offset(raster, sample)
    shown = "/".join(f"{number:+.0f}" for number in np.atleast_1d(offset))
    notes = [f"reflectance = (DN {shown}) {quantity_note}; offset {shown}: {reason}"]
    data = (digital + np.asarray(offset, np.float32).reshape(-1, 1, 1)) * np.float32(scale)
    empty = (digital == 0).any(0) & raster.valid
    if raster.dtype == "uint16":
        empty |= (digital == SATURATED).any(0) & raster.valid
    if empty.any():
        notes.append(f"{int(empty.sum())} pixels with DN 0 (nodata) or {SATURATED} (saturated) are invalid")
    valid = raster.valid & ~empty & ~_fill(raster, digital, scale, notes)
    return raster.calibrated(data, valid, "reflectance", notes, {"offset": offset})


def _fill(raster: Raster, stored: np.ndarray, scale: float, notes: list[str]) -> np.ndarray:
    """bool [H W]: pixels with a number that is no reflectance of anything; ``notes`` gets how many."""
    low, high = (bound / scale for bound in POSSIBLE)
    fill = raster.valid & ~((stored > low) & (stored < high)).all(0)
    if fill.any():
        notes.append(f"{int(fill.sum())} pixels hold fill values that the file does not declare and are invalid")
    return fill


def _require_numbers(raster: Raster, sample: SceneSample, scaled: Any) -> None:
    """UserError where floating point values are neither reflectance nor DN: percent, most likely."""
    values = sample.known[0]
    if scaled is not None or not raster.dtype.startswith("float") or values.size == 0:
        return
    bright = float(np.percentile(values, 99))
    if bright <= PERCENT_BELOW:
        raise UserError(
            f"{raster.path or raster.name} holds values up to about {bright:.3g}: neither reflectance (around 1) nor "
            "Sentinel-2 digital numbers (reflectance x 10000); where they are percent, store the band scale 0.01 in "
            "the file (gdal_edit.py -scale 0.01)."
        )


def decide_offset(raster: Raster, sample: SceneSample | None = None) -> tuple[float | list[float], str]:
    """(offset to add to the DN, or one for each band where they differ, reason): an explicit tag, else the processing
    baseline, else the darkest pixels."""
    seen, sure, dark = _darkest(sample or raster.scene_sample())
    tags = _plain(raster.tags)
    if _HARMONIZED.search(" ".join((PurePath(raster.path).name, *tags.values()))):
        return 0.0, "a harmonised collection has applied it already"
    if _RAW.search(_names(raster)):
        return 0.0, "a raw band of Copernicus Browser, which has applied it already"
    if _PATCH.search(PurePath(raster.path).name):
        return 0.0, "a patch of BigEarthNet v2, made from a product without it"
    if any(key.endswith("BOA_OFFSET_APPLIED") and value.lower() in ("true", "1", "yes") for key, value in tags.items()):
        return 0.0, "the tags say that it is already applied"
    each = [_own_offset(tags, band) for band in raster.stored or raster.bands]
    told = [number for number in each if number is not None]
    if told and len(told) == len(each):
        return told[0] if len(set(told)) == 1 else told, "the tags of each band"
    for key, value in tags.items():
        if key.startswith(("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")):
            told = _number(value)
            if told is not None:
                doubt = f", although {dark}" if sure and (told == 0) != (seen == 0) else ""
                return told, f"tag {key}{doubt}"
    baseline = processing_baseline(raster)
    if baseline is not None:
        told = BASELINE_OFFSET if baseline >= BASELINE_WITH_OFFSET else 0.0
        if told and sure and seen == 0:
            return 0.0, f"baseline {baseline:05.2f} adds it, but {dark}: it has been applied before"
        return told, f"processing baseline {baseline:05.2f}"
    if any(BY_NAMES in note for note in raster.notes):
        _require_dark(raster, sample or raster.scene_sample(), dark)
    return seen, dark + ("" if sure else "; not certain, give the offset if you know it")


def _require_dark(raster: Raster, sample: SceneSample, reason: str) -> None:
    """UserError where nothing but the names of the bands says Sentinel-2, and no pixel is dark enough for it."""
    values, _ = sample.known
    if values.shape[-1] and float(np.percentile(values, DARK_PERCENT, axis=-1).min()) > DARKEST_OF_ALL:
        raise UserError(
            f"{raster.path or raster.name} names its bands as Sentinel-2 does, but {reason}, which are rather the "
            "numbers of Landsat Collection 2: say which it is (--sensor landsat_l2, or --sensor s2_l2a)."
        )


def _own_offset(tags: Mapping[str, str], band: str) -> float | None:
    """The offset that tags tell of one band."""
    found = (tags[key] for key in (f"BOA_ADD_OFFSET_{band}", f"RADIO_ADD_OFFSET_{band}") if key in tags)
    return next(map(_number, found), None)


def detect_offset(values: np.ndarray, bands: tuple[str, ...]) -> tuple[float, bool, str]:
    """The dark-pixel test on DN [C n] of a whole scene: (offset, certain, reason).

    Something is always nearly black: the cirrus band B10 over any clear ground, water in the infrared, shadow or leaves
    in the blue. With the offset it is stored as about 1000, without as about 0.
    """
    if values.shape[-1] == 0:
        return 0.0, False, "there is no valid pixel to judge by"
    darkest = np.percentile(values, DARK_PERCENT, axis=-1)
    chosen = int(np.argmin(darkest))
    dark = float(darkest[chosen])
    reason = f"the darkest {DARK_PERCENT} % of the scene in {bands[chosen]} is DN {dark:.0f}"
    if dark < NO_OFFSET_BELOW:
        return 0.0, dark < ABSENT_BELOW, reason
    return BASELINE_OFFSET, dark < PRESENT_BELOW, reason


@lru_cache(maxsize=16)
def _require_possible(sample: SceneSample, name: str) -> None:
    """UserError where nameless bands of floating point are mostly no reflectance: indices, features of a network."""
    values, _ = sample.known
    impossible = ((values < POSSIBLE[0]) | (values > POSSIBLE[1])).any(0)
    if impossible.size and impossible.mean() > 0.5:
        raise UserError(
            f"{name} names no bands, and {impossible.mean():.0%} of its pixels hold numbers that are no reflectance; "
            "where it is an optical image all the same, name its bands in order with --bands."
        )


@lru_cache(maxsize=16)
def _require_order(sample: SceneSample, name: str) -> None:
    """UserError where nameless bands are darker than any scene (counts, classes), or lie in the order of their names as
    text, B8A last: it looks like B08 and unlike anything else."""
    values, bands = sample.known
    if values.size and (bright := float(np.percentile(values, 99))) <= PERCENT_BELOW:
        raise UserError(
            f"{name} names no bands and holds numbers up to about {bright:.3g}: no scene of Sentinel-2 is that dark; "
            "where it is an optical image all the same, name its bands in order with --bands."
        )
    if not {"B08", "B8A"} <= set(bands) or values.shape[-1] < 100:
        return
    for band, most in zip(bands, values.max(-1), strict=True):
        if most <= SCL_LAST:
            raise UserError(
                f"{name} names no bands and {band} would hold nothing above {most:.0f}: it looks like a scene "
                "classification; name the bands in order with --bands."
            )
    like = np.corrcoef(values[[bands.index("B08"), bands.index("B8A"), len(bands) - 1]])[0]
    if like[2] > 0.9 and like[2] > like[1] + 0.02:
        raise UserError(
            f"{name} names no bands and its last one looks like B8A (correlation with B08 {like[2]:.3f}), so they seem "
            "to be sorted as text; name them in order with --bands."
        )


@lru_cache(maxsize=16)
def _darkest(sample: SceneSample) -> tuple[float, bool, str]:
    """:func:`detect_offset` of a scene, worked out once for all of its windows."""
    return detect_offset(*sample.known)


def _plain(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with upper-case keys of letters, digits and ``_``. GDAL splits ``s2:baseline=05.09`` at the colon."""
    pairs = (f"{key}={value}".rpartition("=") for key, value in tags.items())
    return {re.sub(r"[^A-Z0-9]", "_", key.upper()): value for key, _, value in pairs}


def sentinel2_product(path: str, tags: Mapping[str, str]) -> tuple[str, float] | None:
    """(level ``"L1C"`` or ``"L2A"``, processing baseline) where a product name stands in the file name or the tags."""
    for text in (PurePath(path).name, *(str(value) for value in tags.values())):
        found = _PRODUCT.search(text)
        if found:
            return found.group(1), int(found.group(2)) + int(found.group(3)) / 100
    return None


def is_reflectance(values: np.ndarray) -> bool:
    """Whether values of whole scenes are reflectance already: nearly all of them at most 3."""
    return values.size == 0 or float(np.percentile(values, 99)) <= 3.0


def file_scaling(raster: Raster) -> tuple[float, float] | None:
    """The file's own GDAL (scale, offset) where they are set and the same for every band; UserError where the tags
    cannot be those of a reflectance or a temperature."""
    scales, offsets = set(map(_or_none, raster.scales)), set(map(_or_none, raster.offsets))
    if len(scales) != 1 or len(offsets) != 1 or (scales <= {0.0, 1.0} and offsets <= {0.0}):
        return None
    scale, offset = scales.pop(), offsets.pop()
    if scale is None or offset is None or not (1e-7 <= scale <= 1 and abs(offset) <= 1000):
        raise UserError(
            f"{raster.path or raster.name} has the band scale {scale} and offset {offset}, which give no physical "
            "values; correct or remove these tags."
        )
    return scale, offset


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None  # NaN equals nothing, not even itself


def _scaled(raster: Raster) -> tuple[tuple[float, str], tuple[float, str] | None] | None:
    """The file's own GDAL scale and offset as ((scale, note), (DN offset, reason) or None), where they are set."""
    own = file_scaling(raster)
    if own is None:
        return None
    scale, offset = own
    named = (round(offset / scale, 6), "band offset stored in the file") if offset else None
    return (scale, f"x {scale:g} (band scale)"), named


def _names(raster: Raster) -> str:
    """The file's own name, and that of the first file of a folder."""
    return f"{PurePath(raster.path).name} {raster.tags.get('PRODUCT_URI', '')}"


def _quantification(raster: Raster) -> tuple[float, str]:
    full = np.iinfo(raster.dtype).max if np.issubdtype(np.dtype(raster.dtype), np.integer) else None
    if full and _RAW.search(_names(raster)):
        return 1 / full, f"/ {full} (a raw band of Copernicus Browser, in {raster.dtype})"
    for key, value in _plain(raster.tags).items():
        number = _number(value) if key.endswith("QUANTIFICATION_VALUE") else None
        if number:
            return 1 / number, f"/ {number:.0f} (tag {key})"
    return 1 / QUANTIFICATION, f"/ {QUANTIFICATION:.0f}"


def processing_baseline(raster: Raster) -> float | None:
    """The Sentinel-2 processing baseline (5.09) where tags or a product name tell it; None for products that a user's
    sen2cor made, which all say 99.99."""
    for key, value in _plain(raster.tags).items():
        if key.endswith("PROCESSING_BASELINE"):
            number = _number(value.strip().lstrip("Nn"))
            if number is not None:
                number = number / 100 if number >= 100 else number
                return None if number == OWN_PROCESSING else number
    product = sentinel2_product(raster.path, raster.tags)
    return product[1] if product and product[1] != OWN_PROCESSING else None


def _number(text: str) -> float | None:
    found = re.match(r"\s*[-+]?\d+(\.\d+)?", text)
    return float(found.group()) if found else None
