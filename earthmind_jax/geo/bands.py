"""Which bands does a file hold? Names come from the file; a guess by layout is made only where it is silent, and said.

The traps: sorting Sentinel-2 names as text puts ``B8A`` last, and Level-2A has no ``B10``, so that counting bands is
not naming them; Landsat's B4 is red like Sentinel-2's, its B5 is not. Everything here returns its reason with its
answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from earthmind_jax.errors import UserError
from earthmind_jax.geo.quality import QUALITY_BANDS
from earthmind_jax.geo.radiometry import SENSORS
from earthmind_jax.geo.reflectance import sentinel2_product

VERY_HIGH_GSD = 5.0  # metres: coarser colour without a sensor's name could be any satellite's
_OPTICAL = re.compile(r"(?<![A-Z0-9])B(?:0?([1-9])|(1[0-3])|0?(8A))(?![A-Z0-9])")
_POLARISATION = re.compile(r"(?<![A-Z])(VV|VH|HH|HV)(?![A-Z])")
_PLACEHOLDER = re.compile(r"(bands?|layers?|gr[ae]y|undefined|none|unknown|(band|layer)?[ _-]?\d+)?", re.IGNORECASE)
_WORDS = {
    **{"R": "R", "RED": "R", "G": "G", "GREEN": "G", "B": "B", "BLUE": "B"},
    **dict.fromkeys(("N", "NIR", "NEAR INFRARED", "NEAR-INFRARED", "NEARINFRARED"), "N"),
    **dict.fromkeys(("PAN", "PANCHROMATIC"), "PAN"),
    **dict.fromkeys(("IR", "TIR", "LWIR", "MWIR", "LST", "THERMAL", "THERMAL INFRARED", "INFRARED"), "IR"),
    **dict.fromkeys(("BRIGHTNESS_TEMPERATURE", "BRIGHTNESS TEMPERATURE", "SURFACE_TEMPERATURE"), "IR"),
}  # fmt: skip
# What Earth Engine and the agencies put beside the measurements.
_AUXILIARY = re.compile(
    r"(?i)SCL|AOT|WVP|TCI_[RGB]|(MSK|CLD|QA|SR_QA|ST_QA|SR_CLOUD)\w*|ST_[A-Z]{3,}|CDIST"
    r"|angle|lia|\w*incidence\w*|layover\w*|\w*ratio\w*|[VH]{2} ?[/-] ?[VH]{2}"
)
_LANDSAT = re.compile(r"(?<![A-Z0-9])(?:L[COTEM]0[4-9]_|HLS\.L30)")
_THEMATIC_MAPPER = {f"SR_B{i}" for i in (1, 2, 3, 4, 5, 7)}
_LANDSAT_8_9 = re.compile(r"(?<![A-Z0-9])L[COT]0[89]_L(1|2)[A-Z]{2}_")
_OTHER_SAR = {
    "gf3": re.compile(r"(?i)(?<![a-z])(gf-?3|gaofen-?3)(?![0-9])"),
    "sar_x": re.compile(r"(?i)(?<![a-z])(terrasar|tandem-?x|t[sd]x1?|capella|umbra|iceye|spacenet-?6|sn6)"),
}  # fmt: skip


def canonical(description: str | None) -> str | None:
    """The field's own name inside a band description (``"B4"``, ``"Sentinel-2 B04"`` -> ``"B04"``;
    ``"Sigma0_VV_db"`` -> ``"VV"``), the description itself where it says something else, or None where it says
    nothing (``"bands"``)."""
    text = (description or "").strip()
    if _PLACEHOLDER.fullmatch(text):
        return None
    upper = text.upper()
    if upper.startswith(("SR_B", "ST_B", "TOA_B", "BT_B")) or upper in QUALITY_BANDS:  # Landsat's own numbering
        return upper
    optical = _OPTICAL.findall(upper.replace("_", " "))
    polarisation = _POLARISATION.findall(upper.replace("_", " "))
    if len(optical) == 1 and not polarisation:
        digit, number, red_edge = optical[0]
        return "B8A" if red_edge else f"B{int(digit or number):02d}"
    if len(polarisation) == 1 and not optical:
        return polarisation[0]
    return _WORDS.get(upper, text)


def auxiliary(name: str) -> bool:
    """Whether a band is about the others (quality, masks, angles) and no measurement of the ground."""
    return bool(_AUXILIARY.fullmatch(name))


def known_sensor(name: str) -> str:
    """``name`` itself, or a UserError that lists the sensors there are."""
    if name not in SENSORS:
        there = f"{nearest_name(name, SENSORS)}; the sensors are {', '.join(SENSORS)}"
        raise UserError(f"There is no sensor {name!r}{there}.")
    return name


def name_bands(
    descriptions: Sequence[str | None],
    dtype: str,
    path: str,
    tags: Mapping[str, str],
    sensor: str | None = None,
    *,
    told: Sequence[str] | None = None,
    colours: Sequence[str] = (),
    gsd: float | None = None,
    why: str = "as told",
) -> tuple[tuple[str, ...], str | None, list[str]]:
    """Names the bands of one file: (names, sensor or None, notes that give the reason).

    Args:
      sensor: what the caller knows; it settles common names ("red" -> B04) and layouts that cannot be guessed.
      told: the names as the caller knows them, in the file's order.
      colours: colour interpretation of the bands ("red"), which names bands that have no other name.
      why: what tells the sensor.
      gsd: metres; very high resolution tells colour images from satellites' reflectance.
    """
    if told is not None:
        descriptions = _as_told(told, len(descriptions), path)
    product = _LANDSAT_8_9.search(PurePath(path).name.upper())
    landsat = sensor or (f"landsat_l{product.group(1)}" if product else None)
    names = [_canonical_of(text, landsat) for text in descriptions]
    if names == [None]:
        names = [_band_of_file_name(path, landsat) or _channel_of_other_sar(path, dtype, tags)]
    if sensor is not None:
        aliases = SENSORS[known_sensor(sensor)].aliases
        common = [aliases.get((text or "").strip().lower()) for text in descriptions]
        names = [alias or name for alias, name in zip(common, names, strict=True)]
    by = "the caller" if told is not None else "the file"
    if not any(names) and _are_colours(colours, dtype):
        names, by = list("RGBN"[: len(names)]), "their colour interpretation (a fourth is near infrared)"
    twice = sorted({str(name) for name in names if name is not None and names.count(name) > 1})
    if twice and (told is not None or all(names)):
        raise UserError(f"{path}: {by} gives the name {twice[0]} to more than one band; name each band once (--bands).")
    if told is None:
        _require_landsat_8_9(names, " ".join((PurePath(path).name.upper(), *map(str, tags.values()))), path)
    if all(names):
        named = tuple(str(name) for name in names)
        guess, reason = (sensor, why) if sensor else _sensor_of_names(named, dtype, path, tags, gsd)
        notes = [f"bands named by {by}: {' '.join(named)}"]
        return named, guess, notes + ([f"sensor {guess}: {reason}"] if guess else [])
    return _by_layout(names, dtype, sensor)


def _are_colours(colours: Sequence[str], dtype: str) -> bool:
    """Whether nameless bands are red, green, blue and perhaps near infrared by their colour interpretation; three of 8
    bits are a rendering."""
    if tuple(colours[:3]) != ("red", "green", "blue"):
        return False
    return len(colours) <= 4 if dtype != "uint8" else len(colours) == 4 and colours[3] in ("undefined", "nir")


def _require_landsat_8_9(names: Sequence[str | None], texts: str, path: str) -> None:
    """UserError where surface reflectance is numbered as on Landsat 4 to 7, whose SR_B4 is near infrared, not red."""
    surface = {str(name) for name in names if str(name).startswith("SR_B")}
    older = re.search(r"(?<![A-Z0-9])L[TE]0[4-7]_|LANDSAT_[4-7]", texts)
    if surface and (older or surface == _THEMATIC_MAPPER):
        raise UserError(
            f"{path} numbers its bands as Landsat 4 to 7 do; name them as Landsat 8's, in the file's order, with "
            "--bands (SR_B1 blue is SR_B2, ..., SR_B5 is SR_B6, SR_B7 stays)."
        )


def _as_told(told: Sequence[str], count: int, path: str) -> list[str]:
    if len(told) != count:
        given = f"{len(told)} names were given ({' '.join(told)})"
        raise UserError(f"{path} has {count} bands, but {given}; name each band once, in order.")
    return list(told)


def _canonical_of(text: str | None, sensor: str | None) -> str | None:
    """:func:`canonical`, with a bare Landsat number (B4, SR's or Level-1's) under Landsat's own name."""
    upper = (text or "").strip().upper()
    found = re.fullmatch(r"(?:.*_)?B0?(\d{1,2})", upper)
    number = found.group(1) if found else ""
    if number and sensor == "landsat_l2" and not re.search(r"(SR|ST)_B\d+$", upper):
        return f"{'ST' if number == '10' else 'SR'}_B{number}"
    if number and sensor == "landsat_l1" and not re.search(r"(TOA|BT)_B\d+$", upper):
        return f"{'BT' if number in ('10', '11') else 'TOA'}_B{number}"
    return canonical(text)


def _band_of_file_name(path: str, sensor: str | None) -> str | None:
    """The band a single-band file is named after, as in ``<patch>_B04.tif`` or ``LC08_..._ST_B10.TIF``."""
    stem = re.sub(r"_\d0m$", "", PurePath(path).stem)  # the pixel size at the end of Level-2A names
    landsat = re.search(r"(?:(SR|ST)_)?B\d{1,2}$", stem.upper())
    if sensor in ("landsat_l1", "landsat_l2") and landsat:
        return _canonical_of(landsat.group(), sensor)
    name = canonical(stem.split("_")[-1])
    return name if any(name in SENSORS[sensor].bands for sensor in ("s2_l1c", "s1")) else None


def _channel_of_other_sar(path: str, dtype: str, tags: Mapping[str, str]) -> str | None:
    """The polarisation of the one channel of a file that names another SAR sensor, "CO" where it tells none."""
    texts = " ".join((PurePath(path).name, *map(str, tags.values())))
    if dtype == "uint8" or not any(pattern.search(texts) for pattern in _OTHER_SAR.values()):
        return None
    found = set(_POLARISATION.findall(texts.upper().replace("_", " ")))
    return found.pop() if len(found) == 1 else "CO"


def _sensor_of_names(
    names: tuple[str, ...], dtype: str, path: str, tags: Mapping[str, str], gsd: float | None
) -> tuple[str | None, str]:
    file = f"{PurePath(path).name} {tags.get('PRODUCT_URI', '')}"
    present = {name for name in names if not auxiliary(name)}
    if dtype == "uint8" and len(names) == 3 and (present == {"R", "G", "B"} or present <= set(SENSORS["s2_l1c"].bands)):
        return "rgb8", "three 8-bit bands are a rendering, not a measurement"
    if present and present <= {*SENSORS["s1"].bands, "CO"}:
        return _sensor_of_polarisations(present, " ".join((file, *map(str, tags.values()))))
    for name in ("landsat_l2", "landsat_l1"):
        if present and present <= set(SENSORS[name].bands):
            return name, f"the bands are named as in {SENSORS[name].title}"
    if present and present <= set(SENSORS["s2_l1c"].bands) and dtype != "uint8" and not _LANDSAT.search(file):
        product = sentinel2_product(path, tags)
        if product:
            return f"s2_{product[0].lower()}", f"the product name says Level-{product[0][1:]}"
        if "B10" in present:
            return "s2_l1c", "band B10 exists in Level-1C only"
        return "s2_l2a", "Sentinel-2 names without B10"
    if present == {"IR"}:
        return "infrared", "the band is named so"
    if present and present <= set(SENSORS["vhr"].bands):
        if dtype == "uint8":
            return "vhr", "8-bit colour bands"
        if gsd is not None and gsd <= VERY_HIGH_GSD:
            return "vhr", f"colour bands with pixels of {gsd:.2f} m"
    return None, ""


def _sensor_of_polarisations(present: set[str], texts: str) -> tuple[str, str]:
    for sensor, pattern in _OTHER_SAR.items():
        found = pattern.search(texts)
        if found:
            return sensor, f"the file or its tags name {found.group()}"
    if {"VV", "HH"} <= present or len(present) > 2:
        return "sar_x", f"Sentinel-1 never has {' '.join(sorted(present))} together"
    return "s1", "the bands are polarisations"


def _by_layout(
    names: Sequence[str | None], dtype: str, sensor: str | None
) -> tuple[tuple[str, ...], str | None, list[str]]:
    count = len(names)
    for name in (sensor,) if sensor else SENSORS:
        entry = SENSORS[name]
        layouts = entry.layouts + (entry.told_layouts if sensor else ())
        for layout in layouts:
            if any(names) or len(layout) != count:
                continue
            if sensor or (dtype == "uint8") == entry.is_8bit:
                why = "as told" if sensor else f"{count} bands of {dtype}"
                note = f"the file names no bands: taken as {entry.title} ({why}) in the order {' '.join(layout)}"
                return layout, name, [note]
    taken = tuple(name or f"band_{i}" for i, name in enumerate(names, 1))
    if any(names):
        return taken, sensor, [f"the file names some of its bands only: {' '.join(taken)}"]
    note = f"the file names no bands and {count} x {dtype} is no known layout: they are called band_1 to band_{count}"
    return taken, sensor, [note]


def select(wanted: Sequence[str], names: Sequence[str], path: str) -> list[int]:
    """Positions of the wanted bands. UserError names the bands there are and the nearest name."""
    folded = {name.upper(): i for i, name in enumerate(names)}
    positions = []
    for band in wanted:
        if not isinstance(band, str):
            raise UserError(f"{path}: ask for bands by name, not by position ({band!r}); it has {' '.join(names)}.")
        position = folded.get(band.upper(), folded.get(str(canonical(band) or "").upper()))
        if position is None:
            raise UserError(f"{path} has no band {band!r}{nearest_name(band, names)}; it has {' '.join(names)}.")
        positions.append(position)
    if not positions:
        raise UserError(f"{path}: no band was asked for; it has {' '.join(names)}.")
    return positions


def nearest_name(word: str, words: Sequence[str] | Mapping[str, object]) -> str:
    """`` (did you mean x?)`` for the nearest of ``words``, or nothing."""
    folded = {w.upper(): w for w in words}
    close = difflib.get_close_matches(word.upper(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[close[0]]}?)" if close else ""
